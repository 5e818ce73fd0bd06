"""An engine process without a model, with the real protocol and the real storage.

The prompt controls a job: "sleep 0.5" takes that long, "fail" is refused, "die" kills the process,
"deaf" cannot be stopped, "late" stores its clip although it was stopped, "hang" holds the device
and gives no sign of life, "wait" waits for the device, "break" breaks the device, "raise" is a bug.
Each render adds a line to `renders.log`. The first start of the model "slow" does not end, and is
reported after twice WAN_HANG_SECONDS.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

from wan_engine.control import Control, Preview
from wan_engine.errors import Cancelled, ConfigurationError, ContentPolicy
from wan_engine.gateway.backends import engine_process
from wan_engine.runtime import faults, watchdog
from wan_engine.runtime.startup import Startup
from wan_engine.schema import VideoRequest, VideoResult
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage

STEPS = 10


class FakeEngine:
    def __init__(self, settings: Settings) -> None:
        if settings.model == "missing":
            raise ConfigurationError("There is no model here")
        self._storage = LocalStorage(settings.output_dir)
        self._log = settings.output_dir / "renders.log"
        self._slow = settings.model == "slow"
        rows = {"image-to-video": SimpleNamespace(name="fake", takes=("first_picture",))}
        self.pool = SimpleNamespace(rows=rows)

    def start(self, startup: Startup) -> None:
        mark = self._log.with_name("started")
        if self._slow and not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            time.sleep(3600)
        print("libraries print to stdout")
        startup.done("model")

    def generate(self, request: VideoRequest, control: Control) -> VideoResult:
        if (done := self._storage.finished(control.job_id, control)) is not None:
            return VideoResult(done[0], Decimal(done[1]["cost"]), done[1]["seed"])
        what, _, number = request.prompt.partition(" ")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise ContentPolicy("prompt")
        if what == "raise":
            raise RuntimeError("a secret path: /etc/passwd")
        if what == "deaf":
            time.sleep(3600)
        if what in ("hang", "wait", "break"):
            stay(what, control)
        if what == "late":
            with suppress(Cancelled):
                stay("wait", control)
            control = Control(job_id=control.job_id)
        for step in range(STEPS):
            control.progress("denoise", step, STEPS)
            if control.wants_preview:
                control.preview(Preview("data:image/webp;base64,AAAA", step))
            time.sleep(float(number or 0) / STEPS)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            log.write(f"{control.job_id}\n")
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(b"clip of " + control.job_id.encode())
            file.flush()
            record = {"cost": "0.5", "seed": 7}
            url = self._storage.put(Path(file.name), control.job_id, record, control)
        control.enter(None)
        return VideoResult(url, Decimal("0.5"), 7, stage_seconds=control.stage_seconds)


def stay(what: str, control: Control) -> None:
    control.has_device = what != "wait"
    control.progress("queue" if what == "wait" else "denoise", 0, STEPS)
    time.sleep(0.5)
    if what == "break":
        faults._computes = lambda _: False
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasLt`")
    while what == "wait":
        control.checkpoint()
        time.sleep(0.05)
    time.sleep(3600)


if __name__ == "__main__":
    watchdog.LOAD_TIMES = 2
    engine_process.main(FakeEngine)  # type: ignore[arg-type]
