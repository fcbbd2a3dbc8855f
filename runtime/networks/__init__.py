"""Networks: model files, and the sessions that run them on the CPU and the GPU."""
