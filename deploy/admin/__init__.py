"""Operator commands on offsets, versions and events."""
