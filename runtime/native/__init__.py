"""The native host: the runtime as a C library (include/rf.h), and its binding for Python (binding.py)."""
