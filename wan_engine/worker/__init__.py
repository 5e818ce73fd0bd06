"""The parts of the Runpod worker besides the engine."""
