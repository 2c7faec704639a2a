"""Measures a bundle against eager PyTorch and torch.compile, in one run on one machine."""
