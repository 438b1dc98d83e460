"""Shown lists and graded judgments for the learning benchmark: from a folder, or ready-made."""
