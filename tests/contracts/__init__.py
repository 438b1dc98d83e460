"""Contracts that every class of a kind must keep, whoever wrote it."""
