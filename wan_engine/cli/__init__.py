"""The command line: `python -m wan_engine`, one file a command."""
