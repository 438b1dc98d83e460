"""Figures of what was predicted before it was learned."""
