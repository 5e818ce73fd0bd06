"""The Runpod door: `/v2/{endpoint}/run` and what belongs to it."""
