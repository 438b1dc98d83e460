"""Smaller encoders from larger ones: fewer layers, fewer units, zeroed weights, distillation."""
