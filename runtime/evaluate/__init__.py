"""Quality and speed: metrics, evaluation sets, comparison of two networks, benchmarks."""
