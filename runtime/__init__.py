"""The runtime: frame sources, network sessions, the Segmenter, drawing, sinks, evaluation and benchmarks."""
