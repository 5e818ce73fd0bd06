"""The engine's end of the pipes: `python -m wan_engine.gateway.backends.engine_process`.

Line by line: first the settings, then orders (`run`, `cancel`); answers are `ready`, `progress`,
`done`, `failed`, and `unusable` with what the operator has to change.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from wan_engine import checks, logs
from wan_engine.control import Control, Progress
from wan_engine.engine import Engine
from wan_engine.errors import EngineError
from wan_engine.schema import VideoRequest
from wan_engine.settings import Settings
from wan_engine.startup import Startup

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.2
_BROKEN_EXIT = 75  # EX_TEMPFAIL: begin another one
Tell = Callable[[dict[str, Any]], None]


class EngineProcess:
    """Runs orders, each in a thread; the engine gives the device to one of them at a time."""

    def __init__(self, engine: Engine, tell: Tell) -> None:
        self._engine = engine
        self._tell = tell
        self._controls: dict[str, Control] = {}

    def obey(self, order: Mapping[str, Any]) -> None:
        if order["do"] == "cancel":
            if (control := self._controls.get(order["id"])) is not None:
                control.cancel()
            return
        control = Control(
            order["id"],
            deadline_seconds=order["seconds"],
            on_progress=_Throttled(order["id"], self._tell),
        )
        self._controls[order["id"]] = control
        work = (order["request"], control)
        threading.Thread(target=self._run, args=work, name="job", daemon=True).start()

    def _run(self, request: object, control: Control) -> None:
        broken = False
        told: dict[str, Any] = {"id": control.job_id}
        try:
            result = self._engine.generate(VideoRequest.parse(request), control)
            told |= {"told": "done", "output": result.output()}
            told["stage_seconds"] = dict(control.stage_seconds)
        except EngineError as error:
            log.info("job %s failed: %s: %s", control.job_id, error.code, error)
            told |= {"told": "failed", "code": error.code, "error": str(error)}
        except Exception as error:
            reference = uuid.uuid4().hex[:8]
            log.exception("job %s failed, reference %s", control.job_id, reference)
            sentence = f"Internal error, reference {reference}"
            told |= {"told": "failed", "code": EngineError.code, "error": sentence}
            broken = type(error).__name__ == "AcceleratorError"
        self._controls.pop(control.job_id, None)
        self._tell(told)
        if broken:  # a broken CUDA context fails every job after it
            os._exit(_BROKEN_EXIT)


class _Throttled:
    """Progress as lines, few enough to be read by somebody who does other things as well."""

    def __init__(self, job_id: str, tell: Tell) -> None:
        self._job_id = job_id
        self._tell = tell
        self._stage = ""
        self._told_at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.stage == self._stage and now - self._told_at < _PROGRESS_SECONDS:
            return
        self._stage, self._told_at = progress.stage, now
        known = {"stage": progress.stage, "step": progress.step, "steps": progress.steps}
        self._tell({"told": "progress", "id": self._job_id, **known})


def _lines(out: BinaryIO) -> Tell:
    lock = threading.Lock()

    def tell(told: dict[str, Any]) -> None:
        line = json.dumps(told).encode() + b"\n"
        try:
            with lock:
                out.write(line)
                out.flush()
        except OSError:  # the gateway is gone: the next one finds the clip by its job's id
            os._exit(0)

    return tell


def open_checked(settings: Settings) -> Engine:
    """The engine, after all that it needs was looked at. Raises `ConfigurationError` with all that
    is missing."""
    checks.require(settings)
    return Engine(settings)


def main(open_engine: Callable[[Settings], Engine] = open_checked) -> None:
    """Serve one gateway, and end with it."""
    # What libraries print must not get between the answers: stdout becomes stderr for all of them.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tell = _lines(out)
    first = sys.stdin.buffer.readline()
    if not first:
        return
    settings = Settings(**json.loads(first)["settings"])
    layout = logs.RedactingFormatter("%(levelname)-7s| %(message)s", logs.secrets_of(settings))
    logs.set_up(settings, logging.StreamHandler(), layout)
    logging.getLogger("wan_engine.prompts.text").setLevel(logging.WARNING)
    # Read beside the start, which may take minutes: the end of the gateway is seen then too.
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    process = EngineProcess(_started(open_engine, settings, tell), tell)
    while True:
        process.obey(orders.get())


def _read(orders: queue.SimpleQueue[Any]) -> None:
    for line in sys.stdin.buffer:
        orders.put(json.loads(line))
    os._exit(0)  # the gateway has closed the pipe, or is dead: nobody waits for what runs here


def _started(open_engine: Callable[[Settings], Engine], settings: Settings, tell: Tell) -> Engine:
    startup = Startup()
    try:
        engine = open_engine(settings)
        startup.done("choice")
        engine.start(startup)
    except EngineError as error:
        tell({"told": "unusable", "error": str(error)})
        os._exit(1)
    except Exception:
        log.exception("the engine cannot start")
        os._exit(1)
    log.info("the engine takes jobs %s", startup)
    tell({"told": "ready", "model": engine.spec.name})
    return engine


if __name__ == "__main__":
    main()
