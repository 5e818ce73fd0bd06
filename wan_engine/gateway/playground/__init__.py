"""The page at `/`, which lets you try the gateway in a browser. It uses the public APIs only."""
