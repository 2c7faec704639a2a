"""A CUDA device and TensorRT for tests, which really compute: device memory is host memory, an engine is an ORT
session.

What they are strict about is what the real ones are strict about, or silent: memory that was freed, addresses off their
boundary, copies out of bounds, work that nobody waited for, forbidden calls during a capture, arguments that the real
API does not take. Nothing here measures time.
"""
