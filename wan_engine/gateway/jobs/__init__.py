"""Keeps jobs, from acceptance until they are deleted."""
