"""The clustering operator: NumPy reference, native library and TensorRT plugin."""
