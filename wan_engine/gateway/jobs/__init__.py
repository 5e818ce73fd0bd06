"""Jobs, from acceptance until they are forgotten."""
