"""Checks of the environment before anything runs."""
