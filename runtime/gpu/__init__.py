"""What works on frames in GPU memory: CUDA, execution contexts, clustering and view refinement. Knows no session."""
