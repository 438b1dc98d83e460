"""Replay: go back to a version with its offsets, and read the log again from there."""
