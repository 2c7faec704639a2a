"""ONNX files seen from inside: taps of their products, and the file of their weights."""
