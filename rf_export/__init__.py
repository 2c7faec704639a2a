"""Training-side half of rf-export: the RF model in PyTorch, its checkpoints, and the export to ONNX graphs."""
