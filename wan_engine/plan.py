"""Turns an order into exact numbers: sizes, frames, segments. Pure arithmetic, no I/O, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import product
from typing import Any, Literal, get_args

from wan_engine.catalog import ModelSpec
from wan_engine.schema import (
    SEED_MAX,
    WHOLE,
    Crop,
    Framing,
    Lora,
    Media,
    Order,
    Plan,
    Script,
    Segment,
    Shot,
    Size,
    Task,
)

FrameMode = Literal["image", "exact"]

_TEMPORAL_STRIDE = 4  # pixel frames per latent frame, the same in all Wan VAEs
_AREA_SLACK = 1.05  # a render may exceed the model's area by this much if its shape fits better
_SEED_STRIDE = 1_000_003  # or the second segment of seed 42 would be the first of seed 43


# Shares of both sides, so that the shape stays. A cut needs a clear change of size (less than a
# fifth looks like a mistake); below 0.6 too little is left to scale up.
_FRAMINGS: dict[Framing, float] = {"whole": 1.0, "closer": 0.78, "detail": 0.6}
_SUBJECT_DEPTH = 0.62  # below the middle: heads are above it and must not be cut off

NAMED_SIZES: Mapping[str, Mapping[tuple[int, int], tuple[int, int]]] = {
    "1280*720": {
        (16, 9): (1280, 720),
        (9, 16): (720, 1280),
        (1, 1): (960, 960),
        (4, 3): (1088, 832),
        (3, 4): (832, 1088),
    },
    "1920*1080": {
        (16, 9): (1920, 1080),
        (9, 16): (1080, 1920),
        (1, 1): (1440, 1440),
        (4, 3): (1632, 1248),
        (3, 4): (1248, 1632),
    },
}
"""Sizes of clips without a first picture, by budget and aspect ratio: those of DashScope's
`wan2.6-r2v`."""


@dataclass(frozen=True)
class PlanLimits:
    """`frame`: "image" keeps the image's shape within the pixel budget, "exact" gives exactly the
    size. `fps` is the clip's; None is the model's own."""

    frame: FrameMode = "image"
    fps: int | None = None


def make_plan(
    order: Order,
    script: Script,
    media: Media,
    spec: ModelSpec,
    limits: PlanLimits,
    later: ModelSpec | None = None,
) -> Plan:
    """Plan the whole clip. `order.seed` must be chosen (not -1). If there is a model `later`, it
    makes all shots after the first, with the same fps."""
    assert order.seed >= 0, "the engine settles the seed first"
    rows = [spec, *[later or spec for _ in script.shots[1:]]]
    multiple = math.lcm(*(row.size_multiple for row in rows))
    area = min(row.max_area for row in rows)
    if media.image is None:
        width, height = NAMED_SIZES[order.size][media.aspect]
    else:
        width, height = target_size(*media.image.size, order.size, limits.frame)
    legal = replace(spec, size_multiple=multiple, max_area=area)
    render_width, render_height = render_size(width, height, legal)
    crop_width, crop_height = crop_size(width, height, render_width, render_height, multiple)
    shots: list[Shot] = []
    seeds = _seeds(order.seed)
    fps = limits.fps or spec.fps
    given = 0
    if media.first_clip is not None and order.keep_first_clip:
        given = round(media.first_clip.seconds * fps)
    for row, scripted in zip(rows, script.shots, strict=True):
        first, last = scripted is script.shots[0], scripted is script.shots[-1]
        length = scripted.seconds * fps - (given if first else 0)
        ends = media.last_image is not None and last
        before = len(media.first_clip.tail) if media.first_clip is not None and first else 0
        layout = _covering_layout(length, fps, row, before=before, ends_on_picture=ends)
        carried = [repeated for _, repeated, _ in layout[1:]] + [0]
        numbers = zip(layout, carried, seeds, strict=False)  # seeds last, because they never end
        segments = tuple(Segment(seed, *part, hands_on) for part, hands_on, seed in numbers)
        if last:
            segments = (*segments[:-1], replace(segments[-1], ends_clip=True))
        crop = punch_in(scripted.framing, media.subject) if row is spec else WHOLE
        made_by = row.task, row.steps
        shots.append(Shot(scripted.text, segments, length, crop, *made_by, scripted.sound, ends))
    return Plan(
        width=width,
        height=height,
        render_width=render_width,
        render_height=render_height,
        crop_width=crop_width,
        crop_height=crop_height,
        fps=fps,
        frames=given + sum(shot.frames for shot in shots),
        seed=order.seed,
        shots=tuple(shots),
        source_fps=spec.fps,
        given_frames=given,
    )


def target_size(
    image_width: int, image_height: int, size: str, frame: FrameMode
) -> tuple[int, int]:
    """Width and height of the clip in pixels, both even.

    `size` is a pixel budget A, and the clip keeps the image's ratio r: W = even(sqrt(A r)), H =
    even(sqrt(A / r)). This matches a measurement of the hosted model (1344x768 gives 1270x726 at
    720p).
    """
    width, height = (int(side) for side in size.split("*"))
    if frame == "exact":
        return width, height
    area, ratio = width * height, image_width / image_height
    return _even(math.sqrt(area * ratio)), _even(math.sqrt(area / ratio))


def render_size(width: int, height: int, spec: ModelSpec) -> tuple[int, int]:
    """The size to sample: valid for the model, within its area, and as close in shape to the target
    as possible."""
    multiple = spec.size_multiple
    area = min(width * height, spec.max_area)
    scale = math.sqrt(area / (width * height))
    sizes = list(product(_around(width * scale, multiple), _around(height * scale, multiple)))
    fitting = [(w, h) for w, h in sizes if w * h <= area * _AREA_SLACK]
    candidates = fitting or [min(sizes)]  # the strip is so thin that one step is already too much
    ratio = width / height
    return min(
        candidates, key=lambda size: (abs(math.log(size[0] / size[1] / ratio)), -size[0] * size[1])
    )


def rendered_sizes(
    picture: tuple[int, int], spec: ModelSpec, limits: PlanLimits
) -> list[tuple[int, int]]:
    """Every size at which a picture of `picture` pixels may be sampled, smallest first."""
    targets = [target_size(*picture, size, limits.frame) for size in get_args(Size)]
    return sorted({render_size(*target, spec) for target in targets})


def crop_size(
    width: int, height: int, render_width: int, render_height: int, multiple: int
) -> tuple[int, int]:
    """The middle part of the render that becomes the picture, in exactly the target's shape.

    If the render is larger by less than one step of `multiple`, it is only cropped, and its pixels
    stay as they are.
    """
    if 0 <= render_width - width < multiple and 0 <= render_height - height < multiple:
        return width, height
    if render_width * height > render_height * width:
        return round(render_height * width / height), render_height
    return render_width, round(render_width * height / width)


def frames_to_cover(shown: int, fps: int, source_fps: int) -> int:
    """The number of frames at `source_fps` that a shot needs, so that each of its `shown` frames at
    `fps` lies on one of them or between two.

    Frame i is at i / fps, source frame j at j / source_fps. From 16 to 30 fps, the last frame of n
    seconds lies after source frame 16 n - 1 and needs the next one.
    """
    return -(-(shown - 1) * source_fps // fps) + 1


def _covering_layout(
    shown: int, fps: int, spec: ModelSpec, *, before: int = 0, ends_on_picture: bool = False
) -> list[tuple[int, int, int]]:
    """The segments of a shot of `shown` frames at `fps`, with one frame after its end if that costs
    nothing.

    5 s at 16 fps sample 81 frames, so it exists already. If it would need another segment it is
    left out, and the last source frame is shown for less than its own time. The first segment
    repeats the last `before` source frames of a clip that the shot continues.
    """
    lengths = spec.max_frames, spec.overlap_frames, spec.full_segments
    plain = before + math.ceil(shown * spec.fps / fps)
    needed = before + frames_to_cover(shown, fps, spec.fps)
    if ends_on_picture:
        # The last frame is the last one of the last segment, which is as short as possible.
        needed = math.ceil((plain - 1) / _TEMPORAL_STRIDE) * _TEMPORAL_STRIDE + 1
    layout = segment_layout(needed, *lengths)
    if not ends_on_picture and len(layout) > len(segment_layout(plain, *lengths)):
        layout = segment_layout(plain, *lengths)
    if ends_on_picture:
        *others, (_, skip, keep) = layout
        layout = [*others, (skip + keep, skip, keep)]
    (length, skip, keep), *later = layout
    return [(length, skip + before, keep - before), *later]


def segment_layout(
    frames: int, max_frames: int, overlap: int = 1, full: bool = False
) -> list[tuple[int, int, int]]:
    """`(frames, skip, keep)` of each segment. Lengths are 4n + 1 and at most `max_frames`; the
    `keep` add up to `frames`.

    Each later segment shares `overlap` frames, 4m + 1, with the previous one, so it adds
    `length - overlap`. For a model that continues without any, `overlap` is 0 and lengths are 4n.
    There are as few segments as possible, because each join is a risk. All have the same length, so
    that the last one moves like the others and one shape is compiled. Fewer than four sampled
    frames per segment are unused. With `full`, several segments have `max_frames` each, and the
    last one may sample frames that the clip does not need.
    """
    assert not overlap or overlap % _TEMPORAL_STRIDE == 1, "the overlap is whole latent frames"
    if frames <= max_frames:
        overlap = min(overlap, 1)  # one segment needs only the rounding to 4n + 1
    overlap = min(overlap, max_frames - _TEMPORAL_STRIDE)  # the rest must be new frames
    count = max(1, math.ceil((frames - overlap) / (max_frames - overlap)))
    added = math.ceil((frames - overlap) / count / _TEMPORAL_STRIDE) * _TEMPORAL_STRIDE
    length = max_frames if full and count > 1 else overlap + added
    layout = []
    for index in range(count):
        skip = overlap if index else 0
        keep = min(length - skip, frames)
        layout.append((length, skip, keep))
        frames -= keep
    return layout


def sound_windows(plan: Plan, spec: ModelSpec) -> tuple[Segment, ...]:
    """The windows in which the model `spec` makes the sound of a finished clip, at its own fps.

    They run over cuts, because sound continues where the picture changes.
    """
    frames = math.ceil(plan.frames * spec.fps / plan.fps)
    layout = segment_layout(frames, spec.max_frames, spec.overlap_frames)
    seeds = _seeds(plan.seed)
    return tuple(Segment(seed, *row) for row, seed in zip(layout, seeds, strict=False))


def punch_in(framing: Framing, subject: tuple[float, float]) -> Crop:
    """The part of the image that a shot starts from, in the image's own shape, around `subject`."""
    side = _FRAMINGS[framing]
    left = min(max(subject[0] - side / 2, 0.0), 1.0 - side)
    top = min(max(subject[1] - side * _SUBJECT_DEPTH, 0.0), 1.0 - side)
    return left, top, left + side, top + side


def _seeds(seed: int) -> Iterator[int]:
    """The request's seed first, then one for each further segment."""
    while True:
        yield seed
        seed = (seed + _SEED_STRIDE) % (SEED_MAX + 1)


def _even(value: float) -> int:
    return 2 * round(value / 2)


def _around(value: float, multiple: int) -> set[int]:
    steps = round(value / multiple, 6)  # 256.00000001 counts as 256
    return {max(1, math.floor(steps)) * multiple, max(1, math.ceil(steps)) * multiple}


# --- JSON ----------------------------------------------------------------------------------------


def described(
    plan: Plan,
    spec: ModelSpec,
    *,
    chosen: Mapping[str, Any],
    names: Mapping[Task, str],
    made_by: str,
    seconds: float | None,
    price: Decimal,
    loras: Sequence[Lora] = (),
) -> dict[str, Any]:
    """The plan as JSON, for `python -m wan_engine plan --json`.

    `chosen` says why this model was chosen, and what it lacks; `names` are the models of the tasks.
    `seconds` is the expected render time on this machine, or None if it is unknown; `price` is the
    `cost` of the result in USD; `loras` are those of the request.
    """
    shots, start = [], plan.given_frames
    for shot in plan.shots:
        shots.append(_shot(shot, start / plan.fps, plan.fps, names[shot.task]))
        start += shot.frames
    return {
        "model": spec.name,
        "task": spec.task,
        **chosen,
        "loras": [asdict(one) for one in loras],
        "size": [plan.width, plan.height],
        "rendered": [plan.render_width, plan.render_height],
        "seconds": plan.frames / plan.fps,
        **({"given_seconds": plan.given_frames / plan.fps} if plan.given_frames else {}),
        "frames": plan.frames,
        "fps": plan.fps,
        "source_frames": plan.source_frames,
        "source_fps": plan.source_fps,
        "made_by": made_by,
        "steps": plan.steps,
        "continuation": spec.continuation,
        "seed": plan.seed,
        "cut_seconds": list(plan.cut_seconds),
        "shots": shots,
        "expected_seconds": None if seconds is None else round(seconds, 1),
        "cost": float(price),
    }


def _shot(shot: Shot, start: float, fps: int, model: str) -> dict[str, Any]:
    return {
        "start": start,
        "seconds": shot.frames / fps,
        "model": model,
        "prompt": shot.prompt,
        **({"sound": shot.sound} if shot.sound else {}),
        "crop": [round(side, 3) for side in shot.crop],
        "segments": [
            {
                "seed": segment.seed,
                "sampled": segment.frames,
                "repeated": segment.repeated,
                "shown": segment.shown,
            }
            for segment in shot.segments
        ],
    }
