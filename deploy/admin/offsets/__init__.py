"""Offsets of consumer groups: describe them, plan to move them, move them."""
