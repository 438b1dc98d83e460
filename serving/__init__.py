"""Scores over HTTP from a model that changes underneath."""
