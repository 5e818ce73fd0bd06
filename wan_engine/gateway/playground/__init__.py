"""The page at `/`: the gateway tried out in a browser, by its own public APIs alone."""
