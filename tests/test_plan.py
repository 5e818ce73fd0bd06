"""The arithmetic of a clip: sizes, frames and segments, over all shapes, models and lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wan_engine import toy
from wan_engine.catalog import CATALOG, ModelSpec
from wan_engine.plan import (
    FrameMode,
    PlanLimits,
    crop_size,
    make_plan,
    punch_in,
    render_size,
    segment_layout,
    target_size,
)
from wan_engine.schema import (
    SEED_MAX,
    AspectRatio,
    FirstClip,
    Framing,
    Media,
    Order,
    Plan,
    Script,
    ScriptShot,
    Size,
    VideoRequest,
)

ROWS = [*CATALOG.values(), *toy.MODELS.values()]
AREAS = {"1280*720": 1280 * 720, "1920*1080": 1920 * 1080}
LONGEST_SIDE = 8000
SHORTEST_SIDE = 240

fuzz = settings(max_examples=200, deadline=None, database=None)


@dataclass(frozen=True)
class Picture:
    """The attributes of an image that a plan reads. A real image of this size would fill the
    memory."""

    size: tuple[int, int]


def plan_of(
    picture: tuple[int, int] = (1280, 720),
    *,
    spec: ModelSpec = CATALOG["wan2.2-i2v-a14b"],
    size: str = "1280*720",
    shots: tuple[tuple[str, int], ...] = (("Leaves sway", 5),),
    seed: int = 42,
    frame: FrameMode = "image",
    fps: int | None = None,
    first_clip: float = 0,
) -> Plan:
    seconds = sum(length for _, length in shots)
    fields: dict[str, Any] = {"size": size, "duration": seconds, "seed": seed}
    request = VideoRequest(prompt="Leaves sway", image="https://example.com/a.jpg", **fields)
    tail = (cast(Any, Picture(picture)),) * spec.overlap_frames
    clip = FirstClip(Path("clip.mp4"), first_clip, tail) if first_clip else None
    media = Media(cast(Any, Picture(picture)), first_clip=clip)
    scripted = tuple(ScriptShot(prompt, length) for prompt, length in shots)
    return make_plan(request.order(), Script(scripted), media, spec, PlanLimits(frame, fps))


@st.composite
def pictures(draw: st.DrawFn, most: int = 3) -> tuple[int, int]:
    """Sizes of accepted images, at most `most` times as long as wide."""
    width = draw(st.integers(SHORTEST_SIDE, LONGEST_SIDE))
    shortest = max(SHORTEST_SIDE, -(-width // most))
    return width, draw(st.integers(shortest, min(LONGEST_SIDE, width * most)))


@st.composite
def scripts(draw: st.DrawFn) -> tuple[tuple[str, int], ...]:
    """One to five shots that add up to a documented duration."""
    duration = draw(st.sampled_from([5, 10, 15]))
    cuts = sorted(draw(st.sets(st.integers(1, duration - 1), max_size=4)))
    ends = zip([0, *cuts], [*cuts, duration], strict=True)
    return tuple((f"shot from second {start}", end - start) for start, end in ends)


sizes = st.sampled_from(list(AREAS))
frames = st.sampled_from(["image", "exact"])
rows = st.sampled_from(ROWS)
seeds = st.integers(0, SEED_MAX)
clip_fps = st.one_of(st.none(), st.sampled_from([24, 25, 30, 60]), st.integers(8, 60))


# --- the size of the clip ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "small", "large"),
    [
        ((1600, 900), (1280, 720), (1920, 1080)),
        ((3840, 2160), (1280, 720), (1920, 1080)),
        ((900, 1600), (720, 1280), (1080, 1920)),
        ((512, 512), (960, 960), (1440, 1440)),
        ((8000, 8000), (960, 960), (1440, 1440)),
        ((640, 480), (1108, 832), (1662, 1248)),
        ((480, 640), (832, 1108), (1248, 1662)),
        ((1344, 768), (1270, 726), (1904, 1088)),
        ((1926, 1076), (1284, 718), (1926, 1076)),
    ],
)
def test_the_picture_keeps_its_shape_as_measured_on_the_hosted_model(
    picture: tuple[int, int], small: tuple[int, int], large: tuple[int, int]
) -> None:
    assert target_size(*picture, "1280*720", "image") == small
    assert target_size(*picture, "1920*1080", "image") == large


@fuzz
@given(picture=pictures(), size=sizes, spec=rows)
def test_a_clip_has_the_area_that_was_asked_for_and_the_shape_of_the_image(
    picture: tuple[int, int], size: str, spec: ModelSpec
) -> None:
    plan = plan_of(picture, spec=spec, size=size)
    assert plan.width * plan.height == pytest.approx(AREAS[size], rel=0.01)
    assert plan.width / plan.height == pytest.approx(picture[0] / picture[1], rel=0.01)
    exact = plan_of(picture, spec=spec, size=size, frame="exact")
    assert f"{exact.width}*{exact.height}" == size


# --- the size that the model renders -------------------------------------------------------------


@fuzz
@given(picture=pictures(), size=sizes, spec=rows, frame=frames)
def test_the_rendered_size_is_valid_for_the_model_and_near_its_area(
    picture: tuple[int, int], size: str, spec: ModelSpec, frame: FrameMode
) -> None:
    plan = plan_of(picture, spec=spec, size=size, frame=frame)
    assert plan.render_width % spec.size_multiple == 0
    assert plan.render_height % spec.size_multiple == 0
    assert min(plan.render_width, plan.render_height) > 0
    area = plan.render_width * plan.render_height
    assert area <= spec.max_area * 1.05
    if not spec.is_toy:
        assert area >= 0.9 * min(AREAS[size], spec.max_area)


@fuzz
@given(picture=pictures(), size=sizes, spec=rows, frame=frames)
def test_the_crop_is_inside_the_render_and_has_the_shape_of_the_clip_to_the_pixel(
    picture: tuple[int, int], size: str, spec: ModelSpec, frame: FrameMode
) -> None:
    plan = plan_of(picture, spec=spec, size=size, frame=frame)
    assert (plan.width % 2, plan.height % 2) == (0, 0)
    assert 0 < plan.crop_width <= plan.render_width
    assert 0 < plan.crop_height <= plan.render_height
    off_by = (
        abs(plan.crop_width - plan.crop_height * plan.width / plan.height),
        abs(plan.crop_height - plan.crop_width * plan.height / plan.width),
    )
    assert min(off_by) <= 0.5
    # It touches two edges of the render, or needs no scaling.
    reaches = plan.crop_width == plan.render_width or plan.crop_height == plan.render_height
    assert reaches or (plan.crop_width, plan.crop_height) == (plan.width, plan.height)
    if not spec.is_toy:
        shown = plan.crop_width * plan.crop_height / (plan.render_width * plan.render_height)
        assert shown >= 0.95


@fuzz
@given(picture=pictures(most=LONGEST_SIDE // SHORTEST_SIDE), size=sizes, spec=rows, frame=frames)
@example(picture=(8000, 240), size="1280*720", spec=toy.MODELS["wan-tiny-ti2v"], frame="image")
@example(picture=(240, 8000), size="1920*1080", spec=toy.MODELS["wan-tiny-ti2v"], frame="image")
def test_every_accepted_image_has_a_plan(
    picture: tuple[int, int], size: str, spec: ModelSpec, frame: FrameMode
) -> None:
    plan = plan_of(picture, spec=spec, size=size, frame=frame)
    assert min(plan.crop_width, plan.crop_height, plan.width, plan.height) > 0


@pytest.mark.parametrize(
    ("model", "size", "render", "crop"),
    [
        ("wan2.2-i2v-a14b", "1280*720", (1280, 720), (1280, 720)),
        ("wan2.2-i2v-a14b", "1920*1080", (1280, 720), (1280, 720)),
        ("wan2.2-i2v-a14b-4step", "1280*720", (1280, 720), (1280, 720)),
        ("wan2.2-ti2v-5b", "1280*720", (1248, 704), (1248, 702)),
        ("wan-tiny", "1280*720", (256, 144), (256, 144)),
    ],
)
def test_a_wide_picture_is_rendered_at_a_known_size(
    model: str, size: str, render: tuple[int, int], crop: tuple[int, int]
) -> None:
    plan = plan_of((1600, 900), spec=CATALOG[model], size=size)
    assert (plan.render_width, plan.render_height) == render
    assert (plan.crop_width, plan.crop_height) == crop


def test_a_render_that_is_a_little_larger_is_cropped_and_not_scaled() -> None:
    assert crop_size(1270, 726, 1280, 736, 16) == (1270, 726)


def test_a_render_that_is_much_larger_is_scaled() -> None:
    assert crop_size(960, 540, 1280, 720, 16) == (1280, 720)


def test_a_render_that_is_smaller_is_scaled() -> None:
    assert crop_size(1280, 720, 256, 160, 16) == (256, 144)


def test_a_render_that_is_too_wide_is_cropped_to_its_middle() -> None:
    assert crop_size(720, 720, 256, 144, 16) == (144, 144)


@pytest.mark.parametrize("side", [32, 64, 96])
def test_a_valid_size_is_rendered_as_it_is(side: int) -> None:
    assert render_size(side, side, toy.MODELS["wan-tiny-ti2v"]) == (side, side)


# --- frames and segments -------------------------------------------------------------------------


@fuzz
@given(script=scripts(), spec=rows, fps=clip_fps)
def test_the_clip_and_its_shots_are_as_long_as_requested(
    script: tuple[tuple[str, int], ...], spec: ModelSpec, fps: int | None
) -> None:
    plan = plan_of(spec=spec, shots=script, fps=fps)
    seconds = sum(length for _, length in script)
    assert plan.fps == (fps or spec.fps)
    assert plan.frames == seconds * plan.fps
    assert plan.source_fps == spec.fps
    assert plan.source_frames == sum(segment.shown for segment in plan.segments)
    assert [(shot.prompt, shot.frames / plan.fps) for shot in plan.shots] == list(script)
    for shot in plan.shots:
        if plan.fps == spec.fps:
            assert shot.source_frames == shot.frames  # every kept frame is shown
        # Every frame of the clip lies on a frame of the model or between two,
        last_shown = Fraction(shot.frames - 1, plan.fps)
        assert last_shown <= Fraction(shot.source_frames - 1, plan.source_fps)
        # and no frame is kept without one of the clip's near it.
        assert last_shown > Fraction(shot.source_frames - 2, plan.source_fps)


@fuzz
@given(script=scripts(), spec=rows, fps=st.integers(8, 60))
def test_a_higher_frame_rate_is_interpolated_and_not_sampled(
    script: tuple[tuple[str, int], ...], spec: ModelSpec, fps: int
) -> None:
    sampled, native = (
        sum(segment.frames for segment in plan_of(spec=spec, shots=script, fps=rate).segments)
        for rate in (fps, None)
    )
    # Without an overlap, segments are 4n, and the frame after five seconds is one more latent.
    spare = 0 if spec.overlap_frames else 4 * len(script)
    assert sampled <= native + spare


def test_the_frame_after_the_end_is_not_worth_a_segment() -> None:
    spec = replace(CATALOG["wan2.2-i2v-a14b"], fps=17, max_frames=85)
    plan = plan_of(spec=spec, fps=30)
    assert [segment.shown for segment in plan.segments] == [85]  # 86 would need a second one
    assert plan.frames == 150


@pytest.mark.parametrize(
    ("name", "seconds", "fps", "kept"),
    [
        ("wan2.2-i2v-a14b", 5, 30, [81]),
        ("wan2.2-i2v-a14b", 10, 30, [57, 52, 52]),
        ("wan2.2-i2v-a14b", 15, 30, [65, 60, 60, 56]),
        ("wan2.2-i2v-a14b", 5, 60, [81]),
        ("wan2.2-i2v-a14b", 5, 24, [81]),
        ("wan2.2-i2v-a14b", 5, 16, [80]),
        ("wan2.2-i2v-a14b", 5, 8, [79]),
        ("wan2.2-ti2v-5b", 5, 30, [121]),
        ("wan2.2-ti2v-5b", 15, 30, [97, 92, 92, 80]),
        ("wan2.2-ti2v-5b", 15, 24, [97, 92, 92, 79]),
        ("wan2.2-s2v-14b", 5, 16, [80]),
        ("wan2.2-s2v-14b", 5, 30, [81]),
        ("wan2.2-s2v-14b", 10, 30, [84, 77]),
        ("wan2.2-s2v-14b", 15, 30, [84, 84, 73]),
    ],
)
def test_the_number_of_kept_frames_at_known_rates(
    name: str, seconds: int, fps: int, kept: list[int]
) -> None:
    plan = plan_of(spec=CATALOG[name], shots=(("a", seconds),), fps=fps)
    assert [segment.shown for segment in plan.segments] == kept
    assert plan.frames == seconds * fps


@fuzz
@given(script=scripts(), spec=rows)
def test_segments_have_trained_lengths_and_begin_with_frames_that_the_one_before_holds_back(
    script: tuple[tuple[str, int], ...], spec: ModelSpec
) -> None:
    rest = 1 if spec.overlap_frames else 0
    for shot in plan_of(spec=spec, shots=script).shots:
        lengths = {segment.frames for segment in shot.segments}
        wrong = [length for length in lengths if length % 4 != rest or length > spec.max_frames]
        assert wrong == []
        first, *others = (segment.repeated for segment in shot.segments)
        assert (first, set(others)) in ((0, set()), (0, {spec.overlap_frames}))
        assert [segment.carried for segment in shot.segments] == [*others, 0]


@pytest.mark.parametrize(
    "spec",
    [row for row in ROWS if row.overlap_frames and not row.gives_sound],
    ids="{.name}".format,
)
@pytest.mark.parametrize(("seconds", "one", "five"), [(5, 1, 1), (10, 2, 3), (15, 3, 4)])
def test_the_number_of_segments_of_a_clip(
    spec: ModelSpec, seconds: int, one: int, five: int
) -> None:
    for overlap, count in ((1, one), (5, five)):
        plan = plan_of(spec=replace(spec, overlap_frames=overlap), shots=(("a", seconds),))
        assert len(plan.segments) == count


layouts = {
    "count": st.integers(1, 2000),
    "latents": st.integers(1, 60),
    "overlap": st.sampled_from([1, 5, 9, 13]),
}


@fuzz
@given(**layouts)
def test_segments_are_equally_long_and_show_all_frames_and_no_more(
    count: int, latents: int, overlap: int
) -> None:
    most, common = 4 * latents + 1, min(overlap, 4 * latents - 3)
    layout = segment_layout(count, most, overlap)
    assert sum(keep for *_, keep in layout) == count
    ((length,),) = [{length for length, *_ in layout}]
    assert length % 4 == 1 and length <= most
    # Each begins with the last frames that were shown, and shows some new ones.
    assert [skip for _, skip, _ in layout] == [0] + [common] * (len(layout) - 1)
    assert [keep for *_, keep in layout[:-1]] == [length - skip for _, skip, _ in layout[:-1]]
    assert all(1 <= keep <= length - skip for _, skip, keep in layout)


@fuzz
@given(**layouts)
def test_there_are_no_more_segments_and_latent_frames_than_needed(
    count: int, latents: int, overlap: int
) -> None:
    most, common = 4 * latents + 1, min(overlap, 4 * latents - 3)
    needed = 1
    while common + needed * (most - common) < count and count > most:
        needed += 1
    layout = segment_layout(count, most, overlap)
    assert len(layout) == needed
    length, skip, keep = layout[-1]
    assert length - skip - keep < 4 * needed


@pytest.mark.parametrize(
    ("count", "most", "overlap", "layout"),
    [
        (80, 81, 5, [(81, 0, 80)]),
        (81, 81, 5, [(81, 0, 81)]),
        (82, 81, 1, [(45, 0, 45), (45, 1, 37)]),
        (82, 81, 5, [(45, 0, 45), (45, 5, 37)]),
        (160, 81, 1, [(81, 0, 81), (81, 1, 79)]),
        (160, 81, 5, [(57, 0, 57), (57, 5, 52), (57, 5, 51)]),
        (240, 81, 1, [(81, 0, 81), (81, 1, 80), (81, 1, 79)]),
        (240, 81, 5, [(65, 0, 65), (65, 5, 60), (65, 5, 60), (65, 5, 55)]),
        (120, 121, 5, [(121, 0, 120)]),
        (240, 121, 5, [(85, 0, 85), (85, 5, 80), (85, 5, 75)]),
        (360, 121, 1, [(121, 0, 121), (121, 1, 120), (121, 1, 119)]),
        (360, 121, 5, [(97, 0, 97), (97, 5, 92), (97, 5, 92), (97, 5, 79)]),
        (112, 81, 1, [(57, 0, 57), (57, 1, 55)]),
        (1, 81, 5, [(1, 0, 1)]),
        (2, 81, 5, [(5, 0, 2)]),
        (16, 5, 1, [(5, 0, 5), (5, 1, 4), (5, 1, 4), (5, 1, 3)]),
    ],
)
def test_a_known_layout(
    count: int, most: int, overlap: int, layout: list[tuple[int, int, int]]
) -> None:
    assert segment_layout(count, most, overlap) == layout


# --- seeds ---------------------------------------------------------------------------------------


@fuzz
@given(script=scripts(), spec=rows, seed=seeds)
@example(script=(("a", 15),), spec=CATALOG["wan-tiny"], seed=SEED_MAX)
@example(script=(("a", 15),), spec=CATALOG["wan-tiny"], seed=SEED_MAX + 1 - 1_000_003)
def test_seeds_are_in_range_and_distinct_and_start_with_the_seed_of_the_request(
    script: tuple[tuple[str, int], ...], spec: ModelSpec, seed: int
) -> None:
    plan = plan_of(spec=spec, shots=script, seed=seed)
    used = [segment.seed for segment in plan.segments]
    assert used[0] == plan.seed == seed
    assert len(set(used)) == len(used)
    assert all(0 <= one <= SEED_MAX for one in used)


@given(seed=st.integers(0, SEED_MAX - 20), step=st.integers(1, 20))
@settings(deadline=None, database=None)
def test_neighbouring_seeds_share_no_segment(seed: int, step: int) -> None:
    one, other = (
        {segment.seed for segment in plan_of(shots=(("a", 15),), seed=start).segments}
        for start in (seed, seed + step)
    )
    assert not one & other


@fuzz
@given(picture=pictures(), script=scripts(), spec=rows, seed=seeds, frame=frames)
def test_the_same_request_has_the_same_plan(
    picture: tuple[int, int],
    script: tuple[tuple[str, int], ...],
    spec: ModelSpec,
    seed: int,
    frame: FrameMode,
) -> None:
    one, other = (
        plan_of(picture, spec=spec, shots=script, seed=seed, frame=frame) for _ in range(2)
    )
    assert one == other


def test_the_seed_must_be_fixed_first() -> None:
    with pytest.raises(AssertionError, match="settles the seed"):
        plan_of(seed=-1)


@pytest.mark.parametrize("size", [(8000, 240), (240, 8000), (8000, 1)])
@pytest.mark.parametrize("name", list(CATALOG))
def test_a_thin_strip_has_a_valid_size_in_any_area(size: tuple[int, int], name: str) -> None:
    spec = replace(CATALOG[name], max_area=1024)
    width, height = render_size(*target_size(*size, "1280*720", "image"), spec)
    assert width % spec.size_multiple == height % spec.size_multiple == 0 < min(width, height)


# --- shots ---------------------------------------------------------------------------------------

places = st.tuples(st.floats(0, 1), st.floats(0, 1))


@fuzz
@given(framing=st.sampled_from(["whole", "closer", "detail"]), subject=places)
def test_a_punch_in_is_inside_the_image_and_has_its_shape(
    framing: Framing, subject: tuple[float, float]
) -> None:
    left, top, right, bottom = punch_in(framing, subject)
    assert 0 <= left < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9
    assert right - left == pytest.approx(bottom - top)
    assert right - left >= 0.55
    assert left - 1e-9 <= subject[0] <= right + 1e-9
    assert top - 1e-9 <= subject[1] <= bottom + 1e-9


def test_every_framing_has_another_size() -> None:
    sides = [punch_in(framing, (0.5, 0.5)) for framing in ("whole", "closer", "detail")]
    widths = [right - left for left, _, right, _ in sides]
    assert widths == sorted(widths, reverse=True) and widths[0] == 1
    assert all(large / small > 1.2 for large, small in pairwise(widths))


@fuzz
@given(script=scripts(), spec=rows)
def test_cuts_are_where_the_script_places_them(
    script: tuple[tuple[str, int], ...], spec: ModelSpec
) -> None:
    ends = list(accumulate(seconds for _, seconds in script))
    assert list(plan_of(spec=spec, shots=script).cut_seconds) == ends[:-1]


def test_the_camera_text_follows_the_prompt_and_the_crop_follows_the_subject() -> None:
    request = VideoRequest(prompt="x", image="https://example.com/a.jpg", seed=1)
    shots = ScriptShot("She turns.", 3), ScriptShot("She smiles.", 2, "Slow push in.", "detail")
    media = Media(cast(Any, Picture((1280, 720))), subject=(0.9, 0.1))
    plan = make_plan(request, Script(shots), media, CATALOG["wan-tiny"], PlanLimits())
    assert [shot.prompt for shot in plan.shots] == ["She turns.", "She smiles. Slow push in."]
    assert plan.shots[0].crop == (0, 0, 1, 1)
    assert plan.shots[1].crop == pytest.approx((0.4, 0, 1, 0.6))
    assert plan.cut_seconds == (3.0,)


@pytest.mark.parametrize("size", get_args(Size))
@pytest.mark.parametrize("ratio", get_args(AspectRatio))
def test_a_clip_without_a_picture_has_the_named_size_of_its_aspect_ratio(
    size: Size, ratio: AspectRatio
) -> None:
    width, height = (int(side) for side in ratio.split(":"))
    order = Order("x", references=(), size=size, aspect_ratio=ratio, seed=1)
    media, script = Media(aspect=(width, height)), Script((ScriptShot("x", 5),))
    spec = CATALOG["wan2.2-vace-fun-a14b"]
    plan = make_plan(order, script, media, spec, PlanLimits())
    assert abs(plan.width / plan.height / (width / height) - 1) < 0.02
    budget = {"1280*720": 1280 * 720, "1920*1080": 1920 * 1080}[size]
    assert abs(plan.width * plan.height / budget - 1) < 0.02
    assert plan.render_width % 16 == plan.render_height % 16 == 0
    assert plan.render_width * plan.render_height <= 1280 * 720 * 1.05


@pytest.mark.parametrize(("seconds", "count"), [(5, 1), (10, 3), (15, 4)])
def test_a_row_that_wants_full_segments_has_the_trained_length_in_each(
    seconds: int, count: int
) -> None:
    layout = segment_layout(seconds * 16, 81, 5, full=True)
    assert [length for length, _, _ in layout] == [81] * count
    assert sum(keep for _, _, keep in layout) == seconds * 16
    assert all(keep > 0 for _, _, keep in layout)


def test_shots_of_two_models_have_one_size_that_is_valid_for_both_and_their_own_segments() -> None:
    first = CATALOG["wan2.2-i2v-a14b"]
    later = replace(
        CATALOG["wan2.2-vace-fun-a14b"], size_multiple=32, max_area=832 * 480, max_frames=41
    )
    request = VideoRequest(prompt="x", image="https://example.com/a.jpg", seed=1, duration=10)
    shots = ScriptShot("She turns.", 5), ScriptShot("She smiles.", 5, "", "detail")
    media = Media(cast(Any, Picture((1280, 720))), subject=(0.9, 0.1))
    plan = make_plan(request, Script(shots), media, first, PlanLimits(fps=30), later)
    assert (plan.width, plan.height) == (1280, 720)
    assert plan.render_width % 32 == plan.render_height % 32 == 0
    assert plan.render_width * plan.render_height <= 832 * 480 * 1.05
    assert plan.tasks == ("image-to-video", "reference-to-video")
    assert [len(shot.segments) for shot in plan.shots] == [1, 3]
    assert [shot.crop for shot in plan.shots] == [(0, 0, 1, 1)] * 2
    assert [shot.frames for shot in plan.shots] == [150, 150]
    assert plan.steps == 40 + 3 * 50
    one = make_plan(request, Script((ScriptShot("x", 10),)), media, first, PlanLimits(), later)
    assert one == make_plan(request, Script((ScriptShot("x", 10),)), media, first, PlanLimits())


# --- a last picture, and a clip that is continued ------------------------------------------------


def plan_between(
    spec: ModelSpec, seconds: int, fps: int | None, *, before: float = 0, kept: bool = True
) -> Plan:
    """The plan of a clip that ends with a picture. With `before`, it also continues a clip of so
    many seconds."""
    tail = (cast(Any, Picture((1280, 720))),) * spec.overlap_frames
    clip = FirstClip(Path("clip.mp4"), before, tail) if before else None
    picture: Any = Picture((1280, 720))
    order = Order("x", image="https://a.io/a.png", duration=seconds, seed=7, keep_first_clip=kept)
    media = Media(picture, last_image=picture, first_clip=clip)
    script = Script((ScriptShot("x", seconds),))
    return make_plan(order, script, media, spec, PlanLimits("image", fps))


continuing = st.sampled_from([row for row in ROWS if row.overlap_frames])


@fuzz
@given(
    spec=continuing,
    seconds=st.integers(5, 15),
    fps=clip_fps,
    before=st.floats(2, 4) | st.just(0.0),
    kept=st.booleans(),
)
def test_a_clip_with_given_ends_is_exact_and_samples_whole_latents(
    spec: ModelSpec, seconds: int, fps: int | None, before: float, kept: bool
) -> None:
    plan = plan_between(spec, seconds, fps, before=before, kept=kept)
    assert plan.frames == seconds * plan.fps
    assert plan.given_frames == (round(before * plan.fps) if kept else 0)
    assert sum(shot.frames for shot in plan.shots) == plan.made_frames
    first, last = plan.segments[0], plan.segments[-1]
    assert first.repeated == (spec.overlap_frames if before else 0)
    for segment in plan.segments:
        assert segment.frames % 4 == 1 and segment.frames <= spec.max_frames
        assert segment.frames - segment.repeated >= 4
    assert last.repeated + last.shown == last.frames  # the picture is the last frame shown
    # The model's frames end within one frame of the clip's end, or a little after it.
    needed = plan.made_frames * spec.fps / plan.fps
    assert needed - 1 <= plan.source_frames <= needed + 5
    assert plan.shots[-1].ends_on_picture and last.ends_clip


@pytest.mark.parametrize(("seconds", "sampled"), [(2, [33]), (5, [81]), (10, [57, 57, 57])])
def test_a_last_picture_is_one_frame_after_the_end(seconds: int, sampled: list[int]) -> None:
    plan = plan_between(CATALOG["wan2.2-i2v-a14b"], seconds, 30)
    assert [segment.frames for segment in plan.segments] == sampled
    assert plan.source_frames == 16 * seconds + 1


def test_a_continued_clip_repeats_five_frames_of_the_one_before() -> None:
    plan = plan_of(spec=CATALOG["wan2.2-i2v-a14b"], first_clip=2.0)
    assert [(one.frames, one.repeated, one.shown) for one in plan.segments] == [(53, 5, 48)]
    assert (plan.given_frames, plan.made_frames, plan.frames) == (32, 48, 80)
