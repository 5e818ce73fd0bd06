"""What the Runpod worker needs besides the engine."""
