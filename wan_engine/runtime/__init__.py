"""What a job needs of this machine while it runs: recipe, memory, scratch folder, time, faults."""
