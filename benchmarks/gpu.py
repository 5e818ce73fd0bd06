"""Measures full-size Wan networks on a GPU, part by part, against the roofline.

The weights are random and of the real sizes, which is valid for time and memory, not for quality.
It needs torch, transformers and diffusers, and the worker's packages for `decode`, `job` and
`cards`. Each part runs in its own process with a time limit, so that a failed part does not stop
the others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

PARTS = {
    "checks": 90,
    "ceilings": 40,
    "attention": 60,
    "errors": 60,
    "block": 150,
    "whole": 150,
    "decode": 90,
    "encode": 60,
    "offload": 120,
    "loading": 120,
    "loading_full": 300,
    "start": 240,
    "job": 330,
    "cards": 300,
}
"""The parts in order, each with its time limit in seconds."""


_DEFAULT = [name for name in PARTS if name != "loading_full"]  # needs 45 GB of disk
_MODULES = {
    "checks": "gpu_checks",
    "errors": "gpu_errors",
    "start": "gpu_start",
    "loading": "gpu_loading",
    "loading_full": "gpu_loading",
    "job": "gpu_job",
    "cards": "gpu_job",
}


def versions() -> dict[str, Any]:
    """The card and the versions of the packages."""
    import diffusers
    import torch
    import transformers

    from wan_engine.media import ffmpeg

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "ffmpeg": ffmpeg.version(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_gb"] = round(properties.total_memory / 1e9, 1)
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def part(name: str, scale_name: str, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure the cases of one part in this process. Raises `ValueError` for a case that it does
    not have, after the others."""
    unknown = set(cases)
    for case in _measured(name, scale_name, cases):
        unknown.discard(case["case"])
        if "skipped" not in case:
            yield {"part": name, **case}
    if unknown:
        raise ValueError(f"Part {name} has no case {', '.join(sorted(unknown))}")


def _measured(name: str, scale_name: str, cases: Sequence[str]) -> Iterator[dict[str, Any]]:
    from benchmarks import gpu_parts
    from benchmarks.gpu_networks import SCALES

    gpu_parts.chosen = frozenset(cases)
    where = importlib.import_module(f"benchmarks.{_MODULES.get(name, 'gpu_parts')}")
    measure: Callable[..., Iterator[dict[str, Any]]] = getattr(where, name)
    yield from measure(SCALES[scale_name])


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run each part in its own process, and pass its lines on as they come."""
    rows: list[dict[str, Any]] = []

    def seen(row: dict[str, Any]) -> None:
        rows.append(row)
        keep(arguments.out, row)
        print(json.dumps(row), flush=True)

    for name in arguments.parts:
        limit = arguments.limit or PARTS[name]
        run_part(name, arguments.scale, arguments.cases, limit, seen)
    return [row for row in rows if row["case"] != "end"]


def run_part(
    name: str,
    scale: str,
    cases: Sequence[str],
    limit: float,
    seen: Callable[[dict[str, Any]], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run one part in its own process, and kill it with its children after `limit` seconds. `seen`
    gets each row when it is printed, and one for the end. Returns the exit status."""
    command = [sys.executable, __file__, "--inside", name, "--scale", scale]
    if cases:
        command += ["--cases", *cases]
    started = time.monotonic()
    told = {**_environment(), **(environment or {})}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=told, start_new_session=True
    ) as process:

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        watch = threading.Timer(limit, end)
        watch.start()
        try:
            for row in filter(None, map(_parsed, process.stdout or ())):
                seen(row)
        except BaseException:  # it has its own session, and would continue
            end()
            raise
        finally:
            watch.cancel()
    took = time.monotonic() - started
    seen({"part": name, "case": "end", "exit": process.returncode, "wall_s": took})
    return process.returncode


def _environment() -> dict[str, str]:
    from wan_engine.settings.environment import tell_libraries

    tell_libraries()
    return dict(os.environ)


def _parsed(line: str) -> dict[str, Any] | None:
    """Print a case to the real stdout. Other output goes to stderr."""
    try:
        row = json.loads(line)
    except ValueError:
        print(line, end="", file=sys.stderr)
        return None
    return row if isinstance(row, dict) and "part" in row else None


def keep(out: Path | None, row: dict[str, Any]) -> None:
    """Add a row to a file of JSON lines."""
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
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python benchmarks/gpu.py --parts attention block --out gpu.jsonl\n"
        "         python benchmarks/gpu.py --scale tiny      on any machine: does it run?",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=_DEFAULT, help="default all but loading_full"
    )
    parser.add_argument(
        "--cases", nargs="+", default=[], help="only these cases of the parts, by name"
    )
    parser.add_argument(
        "--scale", default="a14b", help="size of the networks: a14b (default), small or tiny"
    )
    parser.add_argument("--out", type=Path, help="file to add JSON lines to")
    parser.add_argument(
        "--limit", type=float, help="seconds for each part, instead of its own limit"
    )
    parser.add_argument("--inside", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.inside:
        for row in part(arguments.inside, arguments.scale, arguments.cases):
            print(json.dumps(row), flush=True)
        return
    about = {"part": "about", "case": arguments.scale, **versions()}
    print(json.dumps(about), flush=True)
    keep(arguments.out, about)
    print(table([about, *run(arguments)]))


if __name__ == "__main__":
    main()
