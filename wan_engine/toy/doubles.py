"""Lists the test doubles. Settings may name them, and no list of models shows them.

They render noise, and their classifiers make no clip safe. Do not use them for real jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wan_engine.catalog import CATALOG, ClassifierSpec, ModelSpec, Networks, WriterSpec

_TI2V = replace(
    CATALOG["wan2.2-ti2v-5b"],
    name="wan-tiny-ti2v",
    title="a tiny TI2V model with random weights, for tests; clips show texture",
    max_area=256 * 160,
    steps=6,
    repo=None,
    revision=None,
    is_toy=True,
    caveat="a toy with random weights: the clip shows texture, not the image",
    download_gb=0.0,
    networks=Networks(0.02, 1, 0.01, 0.01, working_bytes_per_pixel=10_000),
)

_VACE = replace(
    CATALOG["wan2.2-vace-fun-a14b"],
    name="wan-tiny-vace",
    title="a tiny VACE model with random weights, for tests; clips show texture",
    max_area=256 * 160,
    steps=6,
    repo=None,
    revision=None,
    is_toy=True,
    caveat="a toy with random weights: the clip shows texture, not the references",
    download_gb=0.0,
    networks=Networks(0.02, 2, 0.01, 0.01, working_bytes_per_pixel=10_000),
)

_SOUND = replace(
    CATALOG["kandinsky-6-lite-sound"],
    name="wan-tiny-sound",
    title="a tiny Kandinsky 6 model with random weights, for tests; its sound is noise",
    max_area=96 * 64,
    steps=4,
    repo=None,
    is_toy=True,
    opt_in="",
    caveat="a toy with random weights: its sound is noise that changes with the picture",
    licence="Apache-2.0",
    download_gb=0.0,
    networks=Networks(0.02, 1, 0.01, 0.01, working_bytes_per_pixel=10_000),
)

_S2V = replace(
    CATALOG["wan2.2-s2v-14b"],
    name="wan-tiny-s2v",
    title="a tiny S2V model with random weights, for tests; clips show texture",
    max_area=256 * 160,
    steps=4,
    repo=None,
    parts=(),
    is_toy=True,
    caveat="a toy with random weights: the clip shows texture, and no lips",
    download_gb=0.0,
    networks=Networks(0.02, 1, 0.01, 0.01, working_bytes_per_pixel=10_000),
)

MODELS: Mapping[str, ModelSpec] = {row.name: row for row in (_TI2V, _VACE, _S2V, _SOUND)}

CLASSIFIERS: Mapping[str, ClassifierSpec] = {
    "tiny-prompt-guard": ClassifierSpec(
        name="tiny-prompt-guard",
        title="a test double that flags three words; it does not make a clip safe",
        kind="prompt",
        is_toy=True,
    ),
    "tiny-image-classifier": ClassifierSpec(
        name="tiny-image-classifier",
        title="a test double that flags magenta; it does not make a clip safe",
        kind="image",
        flagged={"nsfw": 0.6},
        is_toy=True,
    ),
}

WRITERS: Mapping[str, WriterSpec] = {
    "tiny-prompt-writer": WriterSpec(
        name="tiny-prompt-writer",
        title="a tiny Qwen3-VL model with random weights, for tests; its answers make no sense",
        is_toy=True,
        resident_gb=0.1,
    ),
}
