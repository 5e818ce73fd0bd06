"""`handler.py` as a process on `wan-tiny`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.services.control_plane import ControlPlane
from benchmarks.services.processes import ROOT, Process, Start, cold

HANDLER = str(ROOT / "handler.py")


@contextmanager
def worker_process(
    plane: ControlPlane,
    folder: Path,
    program: Sequence[str] = (HANDLER,),
    start: Start = cold,
    **settings: str,
) -> Iterator[Process]:
    """A worker at its smallest, in its own session, whose files and `worker.log` are in `folder`.
    `settings` go over its environment. A second worker can use the folder of the first."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    environment = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        **plane.environment(),
        "OMP_NUM_THREADS": "1",  # the frames are tiny, and processes of other tests run beside it
        "WAN_MODEL": "wan-tiny",
        "WAN_RENDER_AREA": "3072",
        "WAN_FPS": "native",
        "WAN_PRESET": "superfast",
        "WAN_SAFETY_PROMPT_MODEL": "tiny-prompt-guard",
        "WAN_SAFETY_IMAGE_MODEL": "tiny-image-classifier",
        "WAN_STORAGE": "local",
        "WAN_OUTPUT_DIR": str(folder / "outputs"),
        "WAN_SCRATCH_DIR": str(folder / "scratch"),
        "WAN_CACHE_DIR": str(folder.parent / "cache"),
        "WAN_PROGRESS_SECONDS": "0.1",
        **settings,
    }
    with (folder / "worker.log").open("ab") as log, Path(os.devnull).open() as nothing:
        process = start(
            program,
            env=environment,
            cwd=folder,
            stdin=nothing,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the SDK's ping process must end with it
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
