"""Guarantees of the weighting folder."""
