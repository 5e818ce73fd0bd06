"""Runs the engine in the child process of the gateway (`python -m
wan_engine.gateway.backends.engine_process`).

It reads lines: first the settings, then orders (`run`, `cancel`, `watch`). It answers `ready`,
`loras`, `progress`, `preview`, `done`, `failed`, and `unusable` with what the operator has to
change. `alive` comes every few seconds during any work. `ending` comes before a process with a
broken device ends, and `hangs` before one whose job or start makes no progress.
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
from functools import partial
from typing import Any, BinaryIO

from wan_engine import checks
from wan_engine.choice import served
from wan_engine.control import Control, Preview, Progress
from wan_engine.engine import Engine
from wan_engine.errors import EngineError
from wan_engine.gateway.backends.lora_names import LoraNames
from wan_engine.runtime import logs
from wan_engine.runtime.faults import BROKEN_EXIT, Device
from wan_engine.runtime.startup import Startup
from wan_engine.runtime.watchdog import Hang, Watchdog, dump_stacks
from wan_engine.schema import parse_request
from wan_engine.settings import Settings

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.2
_ALIVE_SECONDS = 5.0
_LEAVE_SECONDS = 60.0  # for clips that are being stored when the device breaks
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 10.0  # after an order to `watch`, previews are made for so long
Tell = Callable[[dict[str, Any]], None]


class EngineProcess:
    """Runs orders, each in a thread. One of them at a time has the device."""

    def __init__(self, engine: Engine, tell: Tell, settings: Settings, watchdog: Watchdog) -> None:
        self._engine = engine
        self._tell = tell
        self._settings = settings
        self._watchdog = watchdog
        self._device = Device(settings.device)
        self._controls: dict[str, Control] = {}
        self._ending = False

    def obey(self, order: Mapping[str, Any]) -> None:
        if order["do"] != "run":
            if (control := self._controls.get(order["id"])) is not None:
                _change(control, order["do"])
            return
        if self._ending:
            return  # the gateway starts it again once this process has ended
        off = self._settings.previews == "off"
        control = Control(
            order["id"],
            deadline_seconds=order["seconds"],
            on_progress=_Throttled(order["id"], self._tell),
            on_preview=None if off else partial(self._tell_preview, order["id"]),
            hang_seconds=self._settings.hang_seconds,
        )
        control.preview_until = 0.0  # nobody looks yet
        self._controls[order["id"]] = control
        work = (order["request"], control)
        threading.Thread(target=self._run, args=work, name="job", daemon=True).start()

    def _tell_preview(self, job_id: str, preview: Preview) -> None:
        told = {"uri": preview.uri, "step": preview.step}
        self._tell({"told": "preview", "id": job_id, **told})

    def _run(self, request: object, control: Control) -> None:
        told: dict[str, Any] = {"id": control.job_id}
        failure: Exception | None = None
        try:
            with self._watchdog.watching(control):
                result = self._engine.generate(parse_request(request), control)
            told |= {"told": "done", "output": result.output()}
            told["stage_seconds"] = dict(control.stage_seconds)
            self._device.worked()
        except EngineError as error:
            log.info("job %s failed: %s: %s", control.job_id, error.code, error)
            told |= {"told": "failed", "code": error.code, "error": str(error)}
            failure = error
        except Exception as error:
            reference = uuid.uuid4().hex[:8]
            log.exception("job %s failed, reference %s", control.job_id, reference)
            sentence = f"Internal error, reference {reference}"
            told |= {"told": "failed", "code": EngineError.code, "error": sentence}
            failure = error
        self._end(told, control, failure)

    def _end(self, told: dict[str, Any], control: Control, failure: Exception | None) -> None:
        """Report the end of a job. A broken device fails every later job, so this process ends, and
        the next one starts the waiting jobs again."""
        broken = failure is not None and not self._ending and self._device.broke(failure)
        if broken:
            self._ending = True
            self._tell({"told": "ending"})
        if broken or not self._ending or failure is None:
            self._tell(told)
        self._controls.pop(control.job_id, None)
        if broken:
            self._leave()

    def _leave(self) -> None:
        end = time.monotonic() + _LEAVE_SECONDS
        while self._controls and time.monotonic() < end:
            for control in list(self._controls.values()):
                if control.stage != "publish":  # except a job whose clip is finished
                    control.cancel()
            time.sleep(_POLL_SECONDS)
        os._exit(BROKEN_EXIT)


def _change(control: Control, what: str) -> None:
    if what == "watch":
        control.preview_until = time.monotonic() + _WATCH_SECONDS
    elif what == "cancel":
        control.cancel()


class _Throttled:
    """Reports progress in lines, with a limited rate."""

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
        except OSError:  # the gateway is gone; the next one finds the clip by its job's id
            os._exit(0)

    return tell


def open_checked(settings: Settings) -> Engine:
    """The engine, after all checks. Raises `ConfigurationError` with everything that is missing."""
    checks.require(settings)
    return Engine(settings)


def main(open_engine: Callable[[Settings], Engine] = open_checked) -> None:
    """Serve one gateway, and end with it."""
    # Output of libraries must not mix with the answers: stdout becomes stderr for all of them.
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
    # Read during the start, which may take minutes, to notice the end of the gateway.
    orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    threading.Thread(target=_tell_alive, args=(settings, tell), daemon=True).start()
    watchdog = Watchdog(partial(_on_hang, tell), frozen=True)
    engine = _started(open_engine, settings, tell, watchdog)
    process = EngineProcess(engine, tell, settings, watchdog)
    while True:
        process.obey(orders.get())


def _read(orders: queue.SimpleQueue[Any]) -> None:
    for line in sys.stdin.buffer:
        orders.put(json.loads(line))
    os._exit(0)  # the gateway has closed the pipe or is dead, so nobody waits for the running jobs


def _tell_alive(settings: Settings, tell: Tell) -> None:
    while True:
        tell({"told": "alive"})
        time.sleep(min(_ALIVE_SECONDS, settings.hang_seconds / 4))


def _on_hang(tell: Tell, hang: Hang) -> None:
    log.critical("%s: this engine ends", hang)
    dump_stacks()
    tell({"told": "hangs", "id": hang.control.job_id, "stage": hang.stage})
    os._exit(BROKEN_EXIT)


def _started(
    open_engine: Callable[[Settings], Engine], settings: Settings, tell: Tell, watchdog: Watchdog
) -> Engine:
    """Start the engine. Each stage of its start has the time limit of a load."""
    control = Control("the start", hang_seconds=settings.hang_seconds)
    startup = Startup(partial(control.enter, "load"))
    startup.on_done()
    try:
        with watchdog.watching(control):
            engine = open_engine(settings)
            startup.done("choice")
            engine.start(startup)
    except EngineError as error:
        tell({"told": "unusable", "error": str(error)})
        os._exit(1)
    except Exception:  # of torch or a driver; the gateway starts this process again
        log.exception("the engine cannot start")
        os._exit(1)
    log.info("the engine takes jobs %s", startup)
    if settings.lora_dir is not None:
        located = {task: model.located for task, model in engine.pool.models.items()}
        LoraNames(settings, located, tell).watch()
    takes = {task: list(row.takes) for task, row in engine.pool.rows.items()}
    tell({"told": "ready", "models": served(engine.pool.rows), "takes": takes})
    return engine


if __name__ == "__main__":
    main()
