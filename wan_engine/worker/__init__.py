"""What the Runpod worker needs beside the engine."""
