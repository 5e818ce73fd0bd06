"""The Runpod door: `/v2/{endpoint}/run`, `status` and the other routes of an endpoint."""
