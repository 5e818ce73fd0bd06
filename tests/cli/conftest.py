"""Runs the command line as a user or a script does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parents[2]
Wan = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def wan(tmp_path: Path, tiny_cache: Path) -> Wan:
    """Runs `python -m wan_engine ...` in an empty folder. The large libraries are already imported,
    unless `cold` is set or `environment` has a variable of the Hub. Clips have few frames, unless
    `whole` is set."""

    def run(
        *arguments: str,
        stdin: str = "",
        cold: bool = False,
        whole: bool = False,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        env = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "WAN_CACHE_DIR": str(tiny_cache),
            "OMP_NUM_THREADS": "1",
            "WAN_FPS": "native",
            "WAN_PRESET": "superfast",
            "WAN_RENDER_AREA": "3072",
            "WAN_SAFETY_PROMPT_MODEL": "tiny-prompt-guard",
            "WAN_SAFETY_IMAGE_MODEL": "tiny-image-classifier",
            **environment,
        }
        program = ["-m", "wan_engine", *arguments]
        if arguments[:1] in (("generate",), ("plan",)) and not whole:
            program = [str(ROOT / "tests" / "small.py"), *program]
        if not cold and not any(name.startswith("HF_") for name in environment):
            return warm.shared().run(program, env=env, cwd=tmp_path, stdin=stdin)
        return subprocess.run(
            [sys.executable, *program],
            cwd=tmp_path,
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
