"""Segments joined into one sequence of frames: counts, cross-fade and colour, on small arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_engine.media.joins import Joined, colour_table, cross_fade
from wan_engine.plan import segment_layout
from wan_engine.schema import Segment

Frames = np.ndarray


def noise(count: int, seed: int = 1, low: int = 40, high: int = 200) -> Frames:
    return np.random.default_rng(seed).integers(low, high, (count, 6, 8, 3), np.uint8)


def chunks(frames: Frames, size: int) -> list[Frames]:
    return [frames[:1], *(frames[start : start + size] for start in range(1, len(frames), size))]


def joined(parts: list[Frames], plan: list[Segment], *, blend: bool, size: int = 4) -> Frames:
    join, shown = Joined(blend=blend), []
    for frames, segment in zip(parts, plan, strict=True):
        join.begin(segment)
        shown += [join.add(chunk) for chunk in chunks(frames, size)]
        if segment.carried:
            assert len(join.tail) == segment.carried
    return np.concatenate(shown)


def planned(layout: list[tuple[int, int, int]]) -> list[Segment]:
    holds = [skip for _, skip, _ in layout[1:]] + [0]
    return [Segment(0, *row, hold) for row, hold in zip(layout, holds, strict=True)]


@settings(max_examples=100, deadline=None, database=None)
@given(
    count=st.integers(1, 90),
    latents=st.integers(1, 6),
    overlap=st.sampled_from([1, 5, 9]),
    blend=st.booleans(),
    size=st.integers(1, 9),
)
def test_segments_that_agree_join_to_the_sequence_that_they_were_cut_from(
    count: int, latents: int, overlap: int, blend: bool, size: int
) -> None:
    plan = planned(segment_layout(count, 4 * latents + 1, overlap))
    row = noise(sum(segment.frames for segment in plan))
    parts, start = [], 0
    for segment in plan:
        start -= segment.repeated
        parts.append(row[start : start + segment.frames])
        start += segment.frames
    shown = joined(parts, plan, blend=blend, size=size)
    assert np.array_equal(shown, row[:count])


def test_without_blend_an_overlap_shows_the_older_frames() -> None:
    first, second = noise(9, seed=1), noise(9, seed=2)
    plan = [Segment(0, 9, 0, 9, carried=5), Segment(0, 9, 5, 4)]
    shown = joined([first, second], plan, blend=False)
    assert np.array_equal(shown, np.concatenate([first, second[5:]]))


def test_an_overlap_fades_with_linear_weights() -> None:
    older, newer = np.full((3, 2, 2, 3), 100, np.uint8), np.full((3, 2, 2, 3), 108, np.uint8)
    assert cross_fade(older, newer)[:, 0, 0, 0].tolist() == [102, 104, 106]
    assert cross_fade(newer, older)[:, 0, 0, 0].tolist() == [106, 104, 102]


def test_a_fade_of_equal_frames_changes_nothing() -> None:
    frames = noise(5, low=0, high=256)
    assert np.array_equal(cross_fade(frames, frames), frames)


def test_a_colour_cast_of_a_later_segment_is_removed_to_its_end() -> None:
    row = noise(20)
    cast = row.astype(float) * [1.05, 1.0, 0.95] + [4, -3, 2]
    second = np.rint(cast).astype(np.uint8)[4:]
    plan = [Segment(0, 9, 0, 9, carried=5), Segment(0, 16, 5, 11)]
    shown = joined([row[:9], second], plan, blend=True)
    assert len(shown) == 20
    assert np.abs(shown.astype(int) - row).max() <= 1  # rounded once more
    plain = joined([row[:9], second], plan, blend=False)
    assert np.abs(plain.astype(int) - row).max() >= 5


def test_a_colour_cast_does_not_grow_over_many_segments() -> None:
    row, plan = noise(41), planned([(9, 0, 9), *[(9, 1, 8)] * 4])
    parts = [row[:9]]
    parts += [row[8 * index : 8 * index + 9] + np.uint8(2 * index) for index in range(1, 5)]
    shown = joined(parts, plan, blend=True)
    assert np.abs(shown.astype(int) - row).max() <= 1


def test_another_picture_does_not_count_as_another_colour() -> None:
    dark, bright = noise(5, low=0, high=40), noise(5, low=200, high=256)
    table = colour_table(dark, bright).astype(int)
    assert (table[20] - 20).max() <= 12  # ten levels of offset, and what ten per cent of gain adds
    gains = np.diff(table[50:200], axis=0).mean(axis=0)
    assert (gains <= 1.11).all() and (gains >= 0.9).all()


def test_equal_colours_are_not_changed() -> None:
    frames = noise(5, low=0, high=256)
    levels = np.arange(256, dtype=np.uint8)
    assert (colour_table(frames, frames) == levels[:, None]).all()


def test_a_flat_picture_works_too() -> None:
    flat = np.full((1, 4, 4, 3), 90, np.uint8)
    assert colour_table(flat, flat + np.uint8(3))[90].tolist() == [93, 93, 93]


@pytest.mark.parametrize("blend", [False, True])
def test_no_more_than_the_overlap_and_a_chunk_is_in_memory(blend: bool) -> None:
    join, plan = Joined(blend=blend), planned(segment_layout(400, 81, 5))
    for segment in plan:
        join.begin(segment)
        for chunk in chunks(noise(segment.frames), 4):
            join.add(chunk)
            assert len(join.tail) <= 5
