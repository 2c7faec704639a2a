"""The reference checkpoint's data, objective and training loop."""
