"""Measures the start of a worker as in the image: load, warm-up with compilation, the first two
jobs; then a second start in another process with the code that the first one compiled.

The folder has ten layers per expert, so loading takes a quarter of a real model's seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_job import clip, family_of, row_of
from benchmarks.gpu_loading import write
from benchmarks.gpu_networks import SCALES, Scale, peak_gb, synchronize
from benchmarks.gpu_parts import Case, attempt
from wan_engine.runtime import memory

ROOT = Path(__file__).parents[1]
_LAYERS = 10


def start(scale: Scale) -> Iterator[Case]:
    """`first_job_s` should be near `second_job_s`, and the second start's `warm_up_s` below 5."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        model = folder / "models" / "mine"
        model.mkdir(parents=True)
        write(scale, min(_LAYERS, scale.layers), model)
        yield {"case": "written", "seconds": time.perf_counter() - started}
        for case in ("first start", "second start"):
            yield attempt({"case": case}, lambda: _in_its_process(scale, folder))


def _in_its_process(scale: Scale, folder: Path) -> Case:
    command = [sys.executable, __file__, scale.name, str(folder)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    told = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=told)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the process ended with {done.returncode}")
    found: Case = json.loads(lines[-1])
    return found


def one_start(scale: Scale, folder: Path) -> Case:
    """Start as a worker does, and run two jobs."""
    from wan_engine import Settings
    from wan_engine.engine import Engine

    began = time.perf_counter()
    settings = Settings(
        model=str(folder / "models" / "mine"),
        models_dir=folder / "models",
        safety="off",
        scratch_dir=folder,
        output_dir=folder / "outputs",
        cache_dir=folder / "cache",
        scratch_min_gb=0.1,
    )
    engine = Engine(settings)
    pool = engine.pool
    pool.main.spec = row_of(scale)
    pool.load(pool.main)
    synchronize()
    loaded = time.perf_counter()
    pool.warm_up(engine.limits)
    synchronize()
    warm = time.perf_counter()
    took = [clip(engine, scale)["seconds"] for _ in range(2)]
    family = family_of(engine)
    return {
        "load_s": loaded - began,
        "warm_up_s": warm - loaded,
        "first_job_s": took[0],
        "second_job_s": took[1],
        "attention": family.attention,
        "recipe": str(family.recipe),
        "host_gb": memory.peaks()["host"] / 1e3,
        "peak_gb": peak_gb(),
    }


if __name__ == "__main__":
    print(json.dumps(one_start(SCALES[sys.argv[1]], Path(sys.argv[2]))), flush=True)
