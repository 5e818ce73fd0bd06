"""`python -m wan_engine`, which is installed as `wan-engine`: the commands are in `cli/`."""

from __future__ import annotations

from wan_engine.cli.app import PROGRAM, app


def main() -> None:
    """Run the command that the arguments name; ends with its exit code."""
    app(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
