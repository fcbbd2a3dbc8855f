"""Frames in GPU memory: CUDA, clustering and view refinement."""
