"""Composition root, and what operators touch."""
