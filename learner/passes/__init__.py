"""Passes of texts through a model: how they lie in memory, on a CPU or a GPU."""
