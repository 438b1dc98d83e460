"""Engines other than torch, and the graphs that they run."""
