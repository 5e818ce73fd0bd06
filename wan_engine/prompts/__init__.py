"""Expands the prompt of a caller into a script, with a model or without one.

A bad answer of the model never fails a job. The engine then uses the template's text, and the
result has a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from wan_engine import weights
from wan_engine.catalog import WRITERS
from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, DeadlineExceeded
from wan_engine.prompts import template
from wan_engine.prompts.local import LocalWriter
from wan_engine.prompts.replies import shots_of
from wan_engine.prompts.server import ServerWriter
from wan_engine.prompts.task import Task, Writer, WriterFailed
from wan_engine.schema import Order, Script, ScriptShot
from wan_engine.settings import Settings

Backend = Literal["openai", "transformers", "template"]

log = logging.getLogger(__name__)
text_log = logging.getLogger(f"{__name__}.text")
"""A logger for expanded prompts only, so that you can silence it where the log must not contain
prompts."""


@dataclass(frozen=True)
class Expansion:
    """The script of a job. `text` is for people, and empty if the prompt was not expanded."""

    script: Script
    text: str = ""
    backend: Backend | None = None
    warning: str | None = None

    @property
    def in_the_callers_words(self) -> bool:
        """Whether the script begins with the caller's own words. A model that writes has read all
        of them."""
        return self.backend in (None, "template")

    @classmethod
    def none(cls, order: Order) -> Expansion:
        """The caller's prompt unchanged, in one shot."""
        return cls(Script((ScriptShot(order.prompt, order.duration),)))


class Expander:
    """Expands prompts with one writer, or with the template alone. Thread-safe."""

    def __init__(
        self,
        backend: Backend,
        reason: str,
        writer: Writer | None,
        seconds: float,
    ) -> None:
        self.backend, self.reason = backend, reason
        self._writer, self._seconds = writer, seconds

    def load(self) -> None:
        """Load the writer's weights, so that the first job does not wait for them. Raises
        `ConfigurationError` for files that cannot be read."""
        if self._writer is None:
            return
        try:
            self._writer.load()
        except Exception as error:
            raise ConfigurationError(
                f"The prompt writer could not be loaded ({type(error).__name__}). Fetch its files "
                "again, or set WAN_PROMPT_BACKEND=template."
            ) from error

    def expand(
        self,
        order: Order,
        image: Image.Image | None,
        control: Control,
        fitted: Callable[[ScriptShot], ScriptShot] = lambda shot: shot,
        *,
        heard: bool = False,
    ) -> Expansion:
        """A script of the order's duration. `fitted` shortens a shot to the length that the video
        model reads. With `heard`, it also describes the sound, for a model that makes sound.

        Raises only `Cancelled` and `DeadlineExceeded`.
        """
        task = Task.of(order, heard=heard)
        started = time.monotonic()
        backend, warning = self.backend, None
        try:
            shots = self._write(task, image, control)
        except WriterFailed as failed:
            log.warning("prompt expansion by %s failed: %s", self.backend, failed)
            warning = f"Prompt expansion failed: {failed}. A template was used instead"
            backend, shots = "template", template.expand(task)
        shots = tuple(fitted(shot) for shot in shots)
        text = _shown(shots)
        log.info(
            "prompt expanded by %s in %.1f s: %d characters to %d, %d shots",
            backend,
            time.monotonic() - started,
            len(task.prompt),
            len(text),
            len(shots),
        )
        text_log.info("the prompt that is used: %s", text)
        return Expansion(Script(shots), text, backend, warning)

    def _write(
        self, task: Task, image: Image.Image | None, control: Control
    ) -> tuple[ScriptShot, ...]:
        control.checkpoint()
        if self._writer is None:
            return template.expand(task)
        try:
            return shots_of(self._writer.write(task, image, self._seconds, control), task)
        except (Cancelled, DeadlineExceeded, WriterFailed):
            raise
        except Exception as error:
            log.warning("the prompt writer failed", exc_info=True)
            raise WriterFailed("the prompt writer failed") from error


def open_expander(
    settings: Settings,
    device: str = "cpu",
    spare_gb: float = 0.0,
    turn: Callable[[Control], AbstractContextManager[None]] = lambda control: nullcontext(),
) -> Expander:
    """The expander for these settings on this machine.

    `spare_gb` is the GPU memory that the video model leaves free at its peak. `turn` gives the
    device to one job at a time. Raises `ConfigurationError` if the configured backend lacks
    something.
    """
    backend, reason = choose(settings, device)
    writer: Writer | None = None
    if backend == "openai":
        url, key = settings.prompt_url, settings.prompt_api_key
        assert url is not None
        model = settings.prompt_model
        served = WRITERS[model].repo if model in WRITERS else None
        secret = key.get_secret_value() if key else None
        writer = ServerWriter(url.get_secret_value(), served or model, secret)
    elif backend == "transformers":
        located = weights.resolve_writer(settings)
        stays = device == "cpu" or spare_gb >= located.resident_gb
        if device != "cpu":
            reason += ", kept on the GPU" if stays else ", on the GPU for the time of an answer"
        writer = LocalWriter(located.folder, device, stays=stays, turn=turn)
    return Expander(backend, reason, writer, settings.prompt_seconds)


def choose(settings: Settings, device: str) -> tuple[Backend, str]:
    """The backend and the reason. `auto` takes the first of these: a configured server, local
    weights with a GPU, the template. Raises `ConfigurationError`."""
    if settings.prompt_backend == "openai" and not settings.prompt_url:
        raise ConfigurationError("WAN_PROMPT_BACKEND is `openai`, and WAN_PROMPT_URL is not set.")
    if settings.prompt_backend != "auto":
        return settings.prompt_backend, "named by WAN_PROMPT_BACKEND"
    if settings.prompt_url:
        return "openai", "auto: WAN_PROMPT_URL is set"
    located = weights.locate_writer(settings)
    if located is None:
        return "template", f"auto: no WAN_PROMPT_URL, and {settings.prompt_model} is not here"
    # a 4B model takes minutes for 512 tokens on a CPU
    if device == "cpu" and not located.is_toy:
        return "template", f"auto: {settings.prompt_model} is here, but no GPU to run it in time"
    return "transformers", f"auto: {settings.prompt_model} is here"


def _shown(shots: tuple[ScriptShot, ...]) -> str:
    """The script as text: one shot is its prompt, several have their times in front."""
    if len(shots) == 1:
        return shots[0].text
    lines, start = [], 0
    for number, shot in enumerate(shots, 1):
        lines.append(f"Shot {number} ({start}-{start + shot.seconds} s): {shot.text}")
        start += shot.seconds
    return "\n".join(lines)
