"""Fakes for tests, each behind an interface that the code already has."""
