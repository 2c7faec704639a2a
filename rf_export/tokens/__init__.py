"""Representation tokens shown to people: over their picture, and beside what their codes stand for."""
