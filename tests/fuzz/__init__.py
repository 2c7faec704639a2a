"""Hostile and damaged inputs for every reader: `python tests/fuzz/run.py --help`."""
