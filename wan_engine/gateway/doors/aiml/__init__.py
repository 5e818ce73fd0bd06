"""The AI/ML API door: `/v2/video/generations` and its older paths."""
