"""Build TensorRT engines from ONNX models, with proved precision."""
