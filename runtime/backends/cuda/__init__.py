"""Graphs and engines on an NVIDIA GPU: drawings and conversations whose memory stays on the device."""
