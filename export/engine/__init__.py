"""From an ONNX model to a TensorRT engine whose precision is proved."""
