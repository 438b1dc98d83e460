"""Tests of deploy: wiring, commands, and what they say when something is wrong."""
