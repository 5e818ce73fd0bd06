"""Chooses the model that serves an order, and says why. A pure function of the order and the
configured models; a table in the tests shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    "first_clip": "first_clip",
    "references": "references",
    "driving_sound": "audio",
}
_SILENT = "No sound model is configured, so the clip has a silent track"
_LIPS = "The audio is added to the clip, but {} does not move lips to it"

_CROPS = "each starts from a crop of the image"

_SOUND_REASONS: Mapping[Track, str] = {
    "given": "the request has audio",
    "made": "the request has no audio, and a sound model is configured",
    "silent": "the request has no audio, and no sound model is configured",
    "none": "generate_audio is off",
}


@dataclass(frozen=True)
class Later:
    """How the later shots are made: by `spec`, with the picture as a reference, or, if `spec` is
    None, by the first shot's model from a crop of the picture. `reason` says why."""

    spec: ModelSpec | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """The row that serves an order, and the `reason`. `undone` has one sentence for each feature of
    a hosted model that this row lacks; `warnings` has those that the caller asked for. `track` is
    the source of the clip's sound. `sound_spec` is the row that makes the sound from the finished
    frames, if the row of the frames does not. `later` is None if there is nothing to choose for
    later shots."""

    spec: ModelSpec
    reason: str
    track: Track
    undone: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sound_spec: ModelSpec | None = None
    later: Later | None = None

    @property
    def later_spec(self) -> ModelSpec | None:
        """The row of the later shots, if it is another one."""
        return self.later.spec if self.later else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why these models, and what the caller asked for and does not get, for the log."""
        later = (f"later shots: {self.later.reason}",) if self.later else ()
        return f"{self.spec.task}: {self.reason}", *later, *self.warnings

    def described(self) -> dict[str, Any]:
        """The choice in the JSON of a plan."""
        told: dict[str, Any] = {
            "reason": self.reason,
            "sound": self.track,
            "sound_model": self._sound_model,
            "sound_reason": _SOUND_REASONS[self.track],
        }
        if self.later:
            name = (self.later.spec or self.spec).name
            told["later_shots"] = {"model": name, "reason": self.later.reason}
        return {**told, "undone": list(self.undone)}

    @property
    def _sound_model(self) -> str | None:
        if self.track != "made":
            return None
        return (self.sound_spec or self.spec).name


def choose(order: Order, models: Models, *, generate_audio: bool = True) -> Choice:
    """Choose the model for `order`. Raises `NotServed` with the field that no configured model
    accepts.

    `generate_audio` says whether an order without a sound gets a track, if it does not say so
    itself.
    """
    if order.sound is None:
        said, order = False, replace(order, sound=generate_audio)
    else:
        said = True
    tasks = list(_tasks(order))
    rows = [models[task] for task, _ in tasks if task in models]
    for task, why in tasks:
        spec = models.get(task)
        if spec is not None and _lacking(order, spec) is None:
            track, sound_spec = _track(order, spec, models)
            silent = (_SILENT,) if track == "silent" else ()
            lips = tuple(_lips(track, spec))
            return Choice(
                spec,
                why,
                track,
                undone=(*lips, *silent),
                warnings=(*lips, *(silent if said else ())),
                sound_spec=sound_spec,
                later=_later(order, spec, track, models),
            )
    if not rows:
        raise NotServed(_not_configured(order, models))
    raise NotServed(_lacking(order, rows[0]) or "")


def without_later_model(choice: Choice, why: str) -> Choice:
    """The choice with later shots by the first shot's model."""
    return replace(choice, later=Later(None, f"{_CROPS}, because {why}"))


def served(models: Models) -> dict[Task, str]:
    """The names of the models by task, for health routes and `models`."""
    return {task: spec.name for task, spec in models.items()}


def _tasks(order: Order) -> Iterator[tuple[Task, str]]:
    """The tasks that can serve an order, the best first, each with its reason."""
    if order.references is not None:
        given = "the request has references" if order.references else "the request has no image"
        yield "reference-to-video", given
        return
    if order.audio is not None:
        yield "speech-to-video", "the request has audio, and lips move to it"
    if order.audio is None and order.sound:
        yield "image-to-video-with-sound", "the request asks for sound"
    given = "the request has an image" if order.first_clip is None else "the request has a clip"
    yield "image-to-video", given
    yield "image-to-video-with-sound", "the request has an image, and there is no other model"


def _lacking(order: Order, spec: ModelSpec) -> str | None:
    """The reason why a row cannot serve an order, as a sentence for the caller."""
    if order.loras and not spec.wan_blocks:
        return f'field "loras" cannot be used: the model {spec.name} takes no LoRA'
    for given in order.gives:
        if given not in spec.takes:
            return (
                f'field "{_FIELDS[given]}" cannot be used: the model {spec.name} takes {spec.taken}'
            )
    for needed in spec.needs:
        if needed == "driving_sound" and order.audio is None:
            return f'field "audio" is required by the model {spec.name}'
        begins = order.first_clip is not None and needed == "first_picture"  # with its last frame
        if needed != "driving_sound" and needed not in order.gives and not begins:
            return f'field "{_FIELDS[needed]}" is required by the model {spec.name}'
    return None


def _later(order: Order, spec: ModelSpec, track: Track, models: Models) -> Later | None:
    """Choose the model of the later shots of a clip that begins with a picture. A reference model
    can show the subject in another pose. A crop of the picture always shows the same pose."""
    reference = models.get("reference-to-video")
    several = order.shot_type == "multi" and order.expand_prompt
    if reference is None or order.image is None or not several:
        return None
    why = _no_reference(order, order.image, spec, track, reference)
    if why is not None:
        return Later(None, f"{_CROPS}, because {why}")
    return Later(reference, "the image is their reference")


def _no_reference(
    order: Order, image: str, spec: ModelSpec, track: Track, reference: ModelSpec
) -> str | None:
    """Return why `reference` cannot make the later shots of a clip of `spec`, or None."""
    if (track == "made" and spec.gives_sound) or "driving_sound" in spec.takes:
        return f"{spec.name} makes picture and sound together"
    if reference.fps != spec.fps:
        return f"{reference.name} makes {reference.fps} fps, and {spec.name} makes {spec.fps}"
    return _lacking(replace(order, image=None, references=(image,)), reference)


def _track(order: Order, spec: ModelSpec, models: Models) -> tuple[Track, ModelSpec | None]:
    """Return the source of the clip's sound, and the row that makes it from the finished frames."""
    if order.audio is not None:
        return "given", None
    if not order.sound:
        return "none", None
    if spec.gives_sound:
        return "made", None
    maker = models.get("sound-for-video")
    return ("silent", None) if maker is None else ("made", maker)


def _lips(track: Track, spec: ModelSpec) -> Iterator[str]:
    if track == "given" and "driving_sound" not in spec.takes:
        yield _LIPS.format(spec.name)


def _not_configured(order: Order, models: Models) -> str:
    field = "image" if order.first_clip is None else "first_clip"
    field = field if order.references is None else "references"
    here = ", ".join(f"{task} ({spec.name})" for task, spec in models.items())
    return (
        f'field "{field}" cannot be used: no model is configured for {order.task}, only for {here}'
    )
