"""Lists the video models and the settings that each was trained for. A new checkpoint is a new row
here and nothing else.

Rows of others come by entry points: a package that names a sequence of `ModelSpec` under
`wan_engine.models` adds them, and a row's `family` may be the class itself, as `module:Class`.

Figures are the official configurations (Wan-Video/Wan2.2 `wan/configs/`) unless a comment names
another source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from wan_engine.errors import ConfigurationError
from wan_engine.schema import Input, Task

Sampler = Literal["unipc", "distilled-euler"]
Expert = Literal["high", "low", "both"]
Continuation = Literal["svi", "latents", "last_frames"]
"""How a segment goes on from the one before it, where a clip is longer than the model's own length.

`svi`: the condition of Stable Video Infinity 2.0 Pro, which needs its LoRA pair. `latents`: the
last clean latents are the first ones of the next segment. `last_frames`: the last frames are
encoded again into the condition.
"""

# Wan-Video/Wan2.2 wan/configs/shared_config.py; the models were tuned with this exact Chinese text.
_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"  # noqa: RUF001
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"  # noqa: RUF001
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)


@dataclass(frozen=True)
class HubLora:
    """A LoRA on the Hub that belongs to a row. `sha256` pins what `download` accepts; None: any."""

    repo: str
    path: str
    sha256: str | None
    expert: Expert
    scale: float = 1.0


@dataclass(frozen=True)
class Networks:
    """What decides how a model fits into memory: weights in bfloat16 and 10^9 bytes, and what
    computing takes beside them, in bytes a pixel of the rendered area, at the trained length."""

    expert_gb: float
    experts: int
    text_encoder_gb: float
    vae_gb: float
    working_bytes: int


_WORDS: Mapping[Input, str] = {
    "first_picture": "a first picture",
    "last_picture": "a last picture",
    "references": "references",
    "driving_sound": "a sound that drives the picture",
}


@dataclass(frozen=True)
class ModelSpec:
    """One checkpoint and the settings it was trained for.

    `task` is what it does, `takes` what it may be given beside its prompt, `needs` what of that it
    cannot do without; `gives_sound`: its frames come with sound. `family` is a name of
    `wan_engine.families.FAMILIES`, or `module:Class`.

    `size_multiple`: rendered sides are multiples of it (VAE stride times patch). `max_frames`: the
    trained length, 4n + 1. `guidance_scale` belongs to the high-noise expert, `guidance_scale_2` to
    the low-noise one (the order of diffusers; the official configuration has it the other way
    round). 1.0 switches CFG off. `flow_shift_480p` is the shift of renders up to 832x480, where the
    row has one of its own for them. `continuations`: what the model's condition can hold,
    `continuation` the one that is used; `overlap_frames`: frames, 4n + 1, that a segment has in
    common with the one before it; `full_segments`: each of several has the trained length, where
    the others have equal ones that are no longer than they need. `text_tokens`: how much of a
    prompt is read. `caveat`: what a user must be told of a model that is built here and not
    fetched.
    """

    name: str
    title: str
    family: str
    fps: int
    max_frames: int
    size_multiple: int
    max_area: int
    steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    flow_shift: float
    flow_shift_480p: float | None = None
    sampler: Sampler = "unipc"
    task: Task = "image-to-video"
    takes: tuple[Input, ...] = ("first_picture",)
    needs: tuple[Input, ...] = ("first_picture",)
    gives_sound: bool = False
    negative_prompt: str = _NEGATIVE_PROMPT
    continuation: Continuation = "last_frames"
    continuations: tuple[Continuation, ...] = ("last_frames", "svi")
    overlap_frames: int = 5
    full_segments: bool = False
    text_tokens: int = 512  # Wan-Video/Wan2.2 wan/configs/shared_config.py, text_len
    repo: str | None = None
    revision: str | None = None
    loras: tuple[HubLora, ...] = ()
    built: bool = False
    caveat: str = ""
    licence: str = "Apache-2.0"
    download_gb: float = 0.0
    networks: Networks = Networks(0.02, 2, 0.01, 0.01, working_bytes=1000)

    @property
    def taken(self) -> str:
        """What it may be given, in words."""
        return ", ".join(_WORDS[one] for one in self.takes) or "a prompt alone"

    @property
    def working_gb(self) -> float:
        """Accelerator memory beside the weights at the largest area that is rendered."""
        return self.networks.working_bytes * self.max_area / 1e9


_I2V_A14B = ModelSpec(
    name="wan2.2-i2v-a14b",
    title="Wan2.2 I2V A14B, 40 steps with CFG: the quality tier",
    family="i2v",
    fps=16,
    max_frames=81,
    size_multiple=16,
    max_area=1280 * 720,
    steps=40,
    guidance_scale=3.5,
    guidance_scale_2=3.5,
    flow_shift=5.0,
    flow_shift_480p=3.0,  # Wan-Video/Wan2.1 README, for image-to-video at 480p
    repo="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    revision="596658fd9ca6b7b71d5057529bbf319ecbc61d74",
    download_gb=126.2,
    networks=Networks(28.64, 2, 11.36, 0.25, working_bytes=18_200),  # docs/results.md
)

_TI2V_5B = ModelSpec(
    name="wan2.2-ti2v-5b",
    title="Wan2.2 TI2V 5B, 50 steps with CFG: for 24 GB cards",
    family="i2v",
    fps=24,
    max_frames=121,
    size_multiple=32,
    max_area=1280 * 704,
    steps=50,
    guidance_scale=5.0,
    guidance_scale_2=None,
    flow_shift=5.0,
    continuation="latents",
    continuations=("latents", "last_frames"),
    repo="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    revision="b8fff7315c768468a5333511427288870b2e9635",
    download_gb=34.2,
    networks=Networks(10.02, 1, 11.36, 1.41, working_bytes=10_000),
)

_VACE_FUN_A14B = ModelSpec(
    name="wan2.2-vace-fun-a14b",
    title="Wan2.2 VACE-Fun A14B, 50 steps with CFG: clips of your references, or of text alone",
    family="vace",
    task="reference-to-video",
    takes=("references",),
    needs=(),
    fps=16,
    max_frames=81,
    size_multiple=16,
    max_area=1280 * 720,
    steps=50,
    guidance_scale=5.0,
    guidance_scale_2=5.0,
    flow_shift=5.0,
    continuations=("last_frames",),
    # A copy in diffusers layout of alibaba-pai/Wan2.2-VACE-Fun-A14B. No commit of it could be found
    # in public, so it is not pinned: `download` takes the newest and writes down which.
    repo="Pyros13/Wan2.2-VACE-Fun-A14B-Diffusers",
    download_gb=81.0,  # by the number of parameters, in bfloat16
    # 17.34e9 parameters an expert (40 blocks and 8 of VACE); memory by that of I2V A14B, with the
    # eight blocks' hints beside it.
    networks=Networks(34.68, 2, 11.36, 0.25, working_bytes=20_000),
)

_VACE_14B = replace(
    _VACE_FUN_A14B,
    name="wan2.1-vace-14b",
    title="Wan2.1 VACE 14B, 50 steps with CFG: as VACE-Fun, one expert",
    guidance_scale_2=None,
    flow_shift_480p=3.0,  # huggingface/diffusers#11582
    repo="Wan-AI/Wan2.1-VACE-14B-diffusers",
    download_gb=75.0,  # by the listing of Wan-AI/Wan2.1-VACE-14B
    networks=Networks(34.68, 1, 11.36, 0.25, working_bytes=20_000),
)

_KIJAI = (
    "LoRAs/Wan22_Lightx2v/Wan_2_2_I2V_A14B_{}_lightx2v_4step_lora_260412_rank_64_fp16.safetensors"
)

_SVI = (
    "LoRAs/Stable-Video-Infinity/v2.0/SVI_v2_PRO_Wan2.2-I2V-A14B_{}_lora_rank_128_fp16.safetensors"
)

_FOUR_STEP = replace(
    _I2V_A14B,
    name="wan2.2-i2v-a14b-4step",
    title="Wan2.2 I2V A14B with the lightx2v four-step LoRA pair (April 2026): the fast tier",
    steps=4,
    guidance_scale=1.0,
    guidance_scale_2=1.0,
    flow_shift_480p=None,  # distilled on one shift
    sampler="distilled-euler",
    loras=(
        HubLora(
            "Kijai/WanVideo_comfy",
            _KIJAI.format("HIGH"),
            "8e0a86e765ade42a1deca52eb7411348254a019147be8c4eed88c7ad465d3399",
            "high",
        ),
        HubLora(
            "Kijai/WanVideo_comfy",
            _KIJAI.format("LOW"),
            "09e10abd98460b66439bd77ea671e94c10fdc8251e0b986aa196d1904e3cc583",
            "low",
        ),
    ),
    download_gb=127.5,
)

_ROWS = (
    # First, so that `auto` takes it where somebody has put the SVI pair.
    replace(
        _FOUR_STEP,
        name="wan2.2-i2v-a14b-4step-svi",
        title="The fast tier with the Stable Video Infinity 2.0 Pro LoRA pair: for 10 and 15 s",
        continuation="svi",
        continuations=("svi",),  # with any other condition the pair misbehaves
        # As its authors advise (vita-epfl/Stable-Video-Infinity, issue 51).
        full_segments=True,
        # No checksum of the pair could be found in public, so any file of the name is taken.
        loras=(
            *_FOUR_STEP.loras,
            HubLora("Kijai/WanVideo_comfy", _SVI.format("HIGH"), None, "high"),
            HubLora("Kijai/WanVideo_comfy", _SVI.format("LOW"), None, "low"),
        ),
        download_gb=130.0,
    ),
    _FOUR_STEP,
    _I2V_A14B,
    _TI2V_5B,
    _VACE_FUN_A14B,
    _VACE_14B,
    replace(
        _I2V_A14B,
        name="wan-tiny",
        title="a toy of two tiny experts, trained on drawings: tries the path on any CPU",
        max_area=256 * 144,
        steps=4,
        flow_shift_480p=None,
        guidance_scale=1.0,
        guidance_scale_2=1.0,
        sampler="distilled-euler",
        repo=None,
        revision=None,
        built=True,
        caveat="a toy trained on drawings, for trying the path, not for use: the clip is soft, and "
        "nothing in it moves but the camera",
        download_gb=0.0,
        networks=Networks(0.02, 2, 0.01, 0.01, working_bytes=10_000),
    ),
)

CATALOG: Mapping[str, ModelSpec] = {row.name: row for row in _ROWS}
"""By name, best first: the order in which `auto` looks for files."""

ENTRY_POINTS = "wan_engine.models"


def known_models() -> Mapping[str, ModelSpec]:
    """The catalogue, and behind it the rows that installed packages add. Raises
    `ConfigurationError` for a package whose rows cannot be read."""
    return {**CATALOG, **_added_models()}


@cache
def _added_models() -> Mapping[str, ModelSpec]:
    added: dict[str, ModelSpec] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            rows = {row.name: row for row in point.load()}
        except Exception as error:
            raise ConfigurationError(
                f"The entry point {point.name} of {ENTRY_POINTS} ({point.value}) gives no rows: "
                f"{error!r}. Mend or uninstall its package."
            ) from error
        if taken := sorted((CATALOG.keys() | added.keys()) & rows.keys()):
            raise ConfigurationError(
                f"The entry point {point.name} of {ENTRY_POINTS} ({point.value}) adds "
                f"{', '.join(taken)}, which is there already. Rename its row."
            )
        added |= rows
    return added


FALLBACK = "wan-tiny"
"""What a local run uses when no real model is present."""


def infer(name: str, model_index: Mapping[str, Any]) -> ModelSpec:
    """The row for somebody's own checkpoint in diffusers layout, from its `model_index.json`.

    It gets the settings of the catalogue's row of the same kind. Raises `ConfigurationError` for
    other pipelines.
    """
    kind = str(model_index.get("_class_name", ""))
    # The text-to-video class is also what repositories of the TI2V kind name, which take an image.
    both = kind == "WanPipeline" and model_index.get("expand_timesteps")
    if kind != "WanImageToVideoPipeline" and not both:
        raise ConfigurationError(
            f"{name} holds a {kind or 'folder without model_index.json'}; this engine runs "
            f"WanImageToVideoPipeline "
            "checkpoints. Set WAN_MODEL to one of those, or to a name that `python -m "
            "wan_engine models` lists."
        )
    if model_index.get("expand_timesteps"):
        row = _TI2V_5B
    elif model_index.get("boundary_ratio") is not None:
        row = _I2V_A14B
    else:
        # A single expert, such as Wan2.1 I2V 14B: guidance 5.0 throughout.
        row = replace(
            _I2V_A14B,
            guidance_scale=5.0,
            guidance_scale_2=None,
            continuations=("last_frames",),
        )
    return replace(
        row, name=name, title=f"own checkpoint {name}", repo=None, revision=None, licence="unknown"
    )
