"""The page at `/`, where you can try the gateway in a browser. It uses the public APIs, and a few
routes of its own."""
