"""Measures that several reports state: distances, shares, times, and agreement of tokens."""
