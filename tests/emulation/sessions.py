"""What runs the graphs of emulated engines: ONNX Runtime, one session per file."""

import functools

import onnxruntime as ort


@functools.cache
def session_of(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options)
