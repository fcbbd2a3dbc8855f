"""Model files, and sessions that run networks on the CPU and the GPU."""
