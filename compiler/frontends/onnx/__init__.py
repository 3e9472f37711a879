"""ONNX: the operators of the standard and of com.microsoft, in files that may be anything."""
