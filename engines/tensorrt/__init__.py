"""Builds engines for TensorRT, on the GPU that runs them, and for TensorRT-RTX, also ahead of time."""
