"""What a GPU does with full-size Wan networks, part by part, and where the roofline is.

Random weights of the real sizes: honest for time and memory, not for quality. Needs torch,
transformers and diffusers, and what the worker needs for `decode`, `job` and `cards`. Each part
runs in a process of its own with a time limit, so that one that fails costs only itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
for folder in (str(ROOT), str(HERE)):
    if folder not in sys.path:  # where this file is run as a script
        sys.path.insert(0, folder)

PARTS = {
    "ceilings": 40,
    "attention": 60,
    "block": 150,
    "whole": 150,
    "decode": 90,
    "encode": 60,
    "offload": 120,
    "loading": 120,
    "job": 330,
    "cards": 300,
}
"""The parts in order, with the seconds after which each is given up."""


def versions() -> dict[str, Any]:
    """What was measured on what."""
    import diffusers
    import torch
    import transformers

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_gb"] = round(properties.total_memory / 1e9, 1)
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def part(name: str, scale_name: str, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The cases of one part, measured in this process."""
    import gpu_job
    import gpu_parts
    from gpu_networks import SCALES

    gpu_parts.chosen = frozenset(cases)
    where = gpu_job if name in ("job", "cards") else gpu_parts
    measure: Callable[..., Iterator[dict[str, Any]]] = getattr(where, name)
    for case in measure(SCALES[scale_name]):
        if "skipped" not in case:
            yield {"part": name, **case}


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Each part in its own process; lines are passed on as they come."""
    rows: list[dict[str, Any]] = []
    for name in arguments.parts:
        command = [sys.executable, __file__, "--inside", name, "--scale", arguments.scale]
        if arguments.cases:
            command += ["--cases", *arguments.cases]
        started, limit = time.monotonic(), arguments.limit or PARTS[name]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=_environment()
        ) as process:
            watch = threading.Timer(limit, process.kill)
            watch.start()
            try:
                for row in filter(None, map(_parsed, process.stdout or ())):
                    rows.append(row)
                    _keep(arguments.out, row)
                    print(json.dumps(row), flush=True)
            finally:
                watch.cancel()
        code = process.returncode
        row = {"part": name, "case": "end", "exit": code, "wall_s": time.monotonic() - started}
        _keep(arguments.out, row)
        print(json.dumps(row), flush=True)
    return rows


def _environment() -> dict[str, str]:
    return {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}


def _parsed(line: str) -> dict[str, Any] | None:
    """A case; what is printed beside them goes on to stderr."""
    try:
        row = json.loads(line)
    except ValueError:
        print(line, end="", file=sys.stderr)
        return None
    return row if isinstance(row, dict) and "part" in row else None


def _keep(out: Path | None, row: dict[str, Any]) -> None:
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for docs/results.md."""
    lines = ["| part | case | figures |", "|---|---|---|"]
    for row in rows:
        shown = {key: value for key, value in row.items() if key not in ("part", "case", "kernels")}
        figures = ", ".join(f"{key} {_short(value)}" for key, value in shown.items())
        lines.append(f"| {row['part']} | {row.get('case', '')} | {figures} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/gpu.py --parts attention block --out gpu.jsonl\n"
        "         python benchmarks/gpu.py --scale tiny      on any machine: does it run?",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", nargs="+", default=[], help="only these, by name")
    parser.add_argument("--scale", default="a14b", help="a14b or tiny")
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    parser.add_argument("--limit", type=float, help="seconds for each part, instead of its own")
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.inside:
        for row in part(arguments.inside, arguments.scale, arguments.cases):
            print(json.dumps(row), flush=True)
        return
    about = {"part": "about", "case": arguments.scale, **versions()}
    print(json.dumps(about), flush=True)
    _keep(arguments.out, about)
    print(table([about, *run(arguments)]))


if __name__ == "__main__":
    main()
