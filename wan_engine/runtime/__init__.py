"""Manages what a running job needs from this machine: recipe, memory, scratch folder, time,
faults."""
