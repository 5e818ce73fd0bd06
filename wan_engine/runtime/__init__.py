"""What a job needs from this machine while it runs: recipe, memory, scratch folder, time,
faults."""
