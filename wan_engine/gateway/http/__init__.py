"""The server under the doors: connections, bodies, who calls, health."""
