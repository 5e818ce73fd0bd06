"""The hosted APIs that the gateway answers as, one folder each."""
