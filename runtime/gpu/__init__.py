"""Frames in GPU memory: CUDA, execution contexts, clustering and view refinement; no sessions."""
