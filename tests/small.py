"""`small.py PROGRAM ...` runs one of our programs with few and small frames of `wan-tiny`.

Encoding takes most of the time of jobs as small as those of tests. PROGRAM is a file, or `-m` and a
module, as for `python`.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FEWEST: dict[str, Any] = {"fps": 4, "max_frames": 21}
"""5 seconds are one segment, 10 are three, 15 are four, as with 81 frames at 16 fps."""


def shrink_clips(replace_attribute: Callable[[Any, str, Any], None]) -> None:
    """Quarter both sides of every clip that is planned from here on."""
    from wan_engine import plan

    target_size, named_sizes = plan.target_size, plan.NAMED_SIZES

    def quarter(*asked: Any) -> tuple[int, int]:
        width, height = target_size(*asked)
        return width // 8 * 2, height // 8 * 2

    sizes = {
        size: {ratio: (width // 8 * 2, height // 8 * 2) for ratio, (width, height) in named.items()}
        for size, named in named_sizes.items()
    }
    replace_attribute(plan, "target_size", quarter)
    replace_attribute(plan, "NAMED_SIZES", sizes)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from wan_engine.catalog import CATALOG

    CATALOG["wan-tiny"] = replace(CATALOG["wan-tiny"], **FEWEST)  # type: ignore[index]
    shrink_clips(setattr)
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
