"""Contenders of the update benchmark: one model, one loss, the same batches."""
