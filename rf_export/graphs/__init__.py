"""The exported graphs as PyTorch modules, in two dialects."""
