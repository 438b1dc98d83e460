"""Losses of a ranking model."""
