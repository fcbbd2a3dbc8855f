"""Import of any semantic segmentation network into tfiseg's ONNX format."""
