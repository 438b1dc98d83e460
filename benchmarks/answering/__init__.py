"""Contenders of the serving benchmark: one model, the same questions."""
