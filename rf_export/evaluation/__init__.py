"""Judges pictures against captions: an independent detector, its training, and the score made with it."""
