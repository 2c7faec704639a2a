"""The commands that ship with the runtime, and what they print."""
