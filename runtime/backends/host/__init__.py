"""Graphs on this machine's CPU with ONNX Runtime, with all memory on the host."""
