"""Runs the command line: `python -m wan_engine`, or `wan-engine` once the package is installed."""

from __future__ import annotations

from wan_engine.cli.app import PROGRAM, app


def main() -> None:
    """Run the command in the arguments, and exit with its code."""
    app(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
