"""Figures with their command."""
