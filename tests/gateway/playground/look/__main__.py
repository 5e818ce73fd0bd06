"""Takes pictures of every state of the playground, at four widths, light and dark, and checks each.

python -m tests.gateway.playground.look build/look
python -m tests.gateway.playground.look build/look --only start queued

Look at `sheets/NAME.png`, one picture for each state; `sheets/NAME.txt` is what a screen reader
knows of it. It needs Chromium and `npm ci --prefix tests/system`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import expect

from tests.gateway.playground.conftest import chromium
from tests.gateway.playground.look.shots import Look, photograph
from tests.gateway.playground.look.states import STATES


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gateway.playground.look",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--only", nargs="+", choices=STATES, metavar="STATE", default=list(STATES))
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=20_000)
    looked = wrong = 0
    with chromium() as browser:
        for name in chosen.only:
            found = photograph(STATES[name], browser, chosen.folder)
            looked += len(found)
            for sentence, windows in together(found).items():
                wrong += 1
                print(f"{name}: {sentence} ({', '.join(windows)})", flush=True)
    print(f"{len(chosen.only)} states in {looked} windows, {wrong} faults")
    print(f"Look at {chosen.folder / 'sheets'}")
    return 1 if wrong else 0


def together(found: Sequence[Look]) -> dict[str, list[str]]:
    """Each fault once, with the windows that have it."""
    windows: dict[str, list[str]] = {}
    for look in found:
        for sentence in look.wrong:
            windows.setdefault(sentence, []).append(f"{look.width} {look.scheme}")
    return windows


if __name__ == "__main__":
    sys.exit(main())
