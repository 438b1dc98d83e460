"""Guarantees of serving, in process and without a model."""
