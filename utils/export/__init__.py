"""Other formats: ONNX, 8 bits, and the comparison of runtimes."""
