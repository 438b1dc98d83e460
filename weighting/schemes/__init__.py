"""Weighting schemes: one weight per file, its paper beside it."""
