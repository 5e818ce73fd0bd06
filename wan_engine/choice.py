"""Chooses the model that serves an order, and says why. A pure function of the order and the
configured models; a table in the tests shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wan_engine.catalog import ModelSpec
from wan_engine.errors import NotServed
from wan_engine.schema import Input, Order, Task

Track = Literal["given", "made", "silent", "none"]
"""The source of the sound: the caller, the model, a silent track, or no track."""

Models = Mapping[Task, ModelSpec]
"""The row of each task that has a model on this machine, with the settings applied."""

_FIELDS: Mapping[Input, str] = {
    "first_picture": "image",
    "last_picture": "last_image",
    "references": "references",
    "driving_sound": "audio",
}
_SILENT = "No model here makes sound: the clip has a silent track"


@dataclass(frozen=True)
class Choice:
    """The row that serves an order, and the `reason`. `undone` has one sentence for each feature of
    a hosted model that this row lacks; `warnings` has those that the caller asked for. `track` is
    the source of the clip's sound."""

    spec: ModelSpec
    reason: str
    track: Track
    undone: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """The choice in the JSON of a plan."""
        return {"reason": self.reason, "sound": self.track, "undone": list(self.undone)}


def choose(order: Order, models: Models) -> Choice:
    """Choose the model for `order`. Raises `NotServed` with the field that no configured model
    accepts."""
    tasks = list(_tasks(order))
    rows = [models[task] for task, _ in tasks if task in models]
    for task, why in tasks:
        spec = models.get(task)
        if spec is not None and _lacking(order, spec) is None:
            track = _track(order, spec)
            silent = (_SILENT,) if track == "silent" else ()
            return Choice(spec, why, track, (*_lips(track, spec), *silent), silent)
    if not rows:
        raise NotServed(_not_configured(order, models))
    raise NotServed(_lacking(order, rows[0]) or "")


def served(models: Models) -> dict[Task, str]:
    """The names of the models by task, for health routes and `models`."""
    return {task: spec.name for task, spec in models.items()}


def _tasks(order: Order) -> Iterator[tuple[Task, str]]:
    """The tasks that can serve an order, the best first, each with its reason."""
    if order.references is not None:
        yield "reference-to-video", "it has references" if order.references else "it has no picture"
        return
    if order.audio is not None and order.sound is not False:
        yield "speech-to-video", "its sound moves the lips"
    if order.audio is None and order.sound is True:
        yield "image-to-video-with-sound", "it asks for sound with the picture"
    yield "image-to-video", "it begins with a picture"
    yield "image-to-video-with-sound", "it begins with a picture, and no other model is here"


def _lacking(order: Order, spec: ModelSpec) -> str | None:
    """The reason why a row cannot serve an order, as a sentence for the caller."""
    for given in order.gives:
        if given not in spec.takes:
            return (
                f'field "{_FIELDS[given]}" cannot be used: the model {spec.name} takes {spec.taken}'
            )
    for needed in spec.needs:
        if needed == "driving_sound" and order.audio is None:
            return f'field "audio" is required by the model {spec.name}'
        if needed != "driving_sound" and needed not in order.gives:
            return f'field "{_FIELDS[needed]}" is required by the model {spec.name}'
    return None


def _track(order: Order, spec: ModelSpec) -> Track:
    if order.sound is False:
        return "none"
    if order.audio is not None:
        return "given"
    if spec.gives_sound:
        return "made"
    return "silent" if order.sound else "none"


def _lips(track: Track, spec: ModelSpec) -> Iterator[str]:
    if track == "given" and "driving_sound" not in spec.takes:
        yield f"The sound is added to the clip; {spec.name} does not move lips by it"


def _not_configured(order: Order, models: Models) -> str:
    field = "references" if order.references is not None else "image"
    here = ", ".join(f"{task} ({spec.name})" for task, spec in models.items())
    return f'field "{field}" cannot be used: {order.task} has no model here, which serves {here}'
