"""Lists the video models and the settings that each was trained for. To add a checkpoint, add a row
here and nothing else.

Other packages add rows by entry points: a package names a sequence of `ModelSpec` under
`wan_engine.models`. The `family` of a row may be the class itself, as `module:Class`.

The figures are those of the official configurations (Wan-Video/Wan2.2 `wan/configs/`) unless a
comment names another source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from wan_engine.catalog.model_spec import HubLora, ModelSpec, Networks, Part
from wan_engine.errors import ConfigurationError

_I2V_A14B = ModelSpec(
    name="wan2.2-i2v-a14b",
    title="Wan2.2 I2V A14B, 40 steps with CFG",
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
    takes=("first_picture", "last_picture", "first_clip"),
    repo="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    revision="596658fd9ca6b7b71d5057529bbf319ecbc61d74",
    download_gb=126.2,
    networks=Networks(28.64, 2, 11.36, 0.25, working_bytes_per_pixel=18_200),  # docs/results.md
)

_TI2V_5B = ModelSpec(
    name="wan2.2-ti2v-5b",
    title="Wan2.2 TI2V 5B, 50 steps with CFG: for 24 GB cards",
    family="i2v",
    takes=("first_picture", "first_clip"),
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
    networks=Networks(10.02, 1, 11.36, 1.41, working_bytes_per_pixel=10_000),
)

_VACE_FUN_A14B = ModelSpec(
    name="wan2.2-vace-fun-a14b",
    title="Wan2.2 VACE-Fun A14B, 50 steps with CFG: clips of your references, or of text alone",
    family="vace",
    task="reference-to-video",
    takes=("references", "last_picture"),
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
    # A copy in diffusers layout of alibaba-pai/Wan2.2-VACE-Fun-A14B. Its commits are not known
    # here, so it is not pinned: `download` takes the newest and records its commit.
    repo="Pyros13/Wan2.2-VACE-Fun-A14B-Diffusers",
    download_gb=81.0,  # by the number of parameters, in bfloat16
    # 17.34e9 parameters per expert (40 blocks and 8 of VACE). Its memory is that of I2V A14B
    # and the hints of the eight blocks.
    networks=Networks(34.68, 2, 11.36, 0.25, working_bytes_per_pixel=20_000),
)

_VACE_14B = replace(
    _VACE_FUN_A14B,
    name="wan2.1-vace-14b",
    title="Wan2.1 VACE 14B, 50 steps with CFG: like VACE-Fun, with one expert",
    guidance_scale_2=None,
    flow_shift_480p=3.0,  # huggingface/diffusers#11582
    repo="Wan-AI/Wan2.1-VACE-14B-diffusers",
    download_gb=75.0,  # by the listing of Wan-AI/Wan2.1-VACE-14B
    networks=Networks(34.68, 1, 11.36, 0.25, working_bytes_per_pixel=20_000),
)

_T2V = "wan2.2_t2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1217.safetensors"

_VACE_FOUR_STEP = replace(
    _VACE_FUN_A14B,
    name="wan2.2-vace-fun-a14b-4step",
    title="Wan2.2 VACE-Fun A14B with the lightx2v four-step LoRA pair of T2V (December 2025)",
    steps=4,
    guidance_scale=1.0,
    guidance_scale_2=1.0,
    sampler="distilled-euler",
    # Made for T2V A14B, all layers of which are in VACE too; its own eight blocks stay as they are.
    loras=(
        HubLora(
            "lightx2v/Wan2.2-Distill-Loras",
            _T2V.format("high"),
            "89003385f8a9d53ba58fd6ede647fdc90292e8568a54683fcfe6db5556a31769",
            "high",
        ),
        HubLora(
            "lightx2v/Wan2.2-Distill-Loras",
            _T2V.format("low"),
            "4df7c206f3189472da2f92c0a42dcf308f04433d9c14302d08d56e99a3f51322",
            "low",
        ),
    ),
    download_gb=82.3,
)

_SPOKEN_NEGATIVE_PROMPT = (
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，画得不好的手部，"  # noqa: RUF001
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)

_WAV2VEC2 = "wav2vec2-large-xlsr-53-english"

_S2V_14B = ModelSpec(
    name="wan2.2-s2v-14b",
    title="Wan2.2 S2V 14B, 40 steps with CFG: lips and body follow your sound",
    family="s2v",
    task="speech-to-video",
    takes=("first_picture", "driving_sound"),
    needs=("first_picture", "driving_sound"),
    fps=16,
    max_frames=84,  # of hao-ai-lab/FastVideo; the authors' 80 give 77 for the first 5 s
    size_multiple=64,
    max_area=1280 * 720,
    steps=40,
    guidance_scale=4.5,
    guidance_scale_2=None,
    flow_shift=3.0,
    negative_prompt=_SPOKEN_NEGATIVE_PROMPT,
    continuation="motion_frames",
    continuations=("motion_frames",),
    overlap_frames=0,
    full_segments=True,  # a segment continues from 73 frames
    # No public commit of it is known, so it is not pinned.
    repo="Wan-AI/Wan2.2-S2V-14B",
    parts=(
        Part("transformer", "."),
        Part("audio_encoder", _WAV2VEC2),
        # The repository also has these three in a format that the engine does not read.
        *(
            Part(name, name, _I2V_A14B.repo, _I2V_A14B.revision)
            for name in ("text_encoder", "tokenizer", "vae")
        ),
    ),
    download_gb=45.7,  # by the number of stored parameters
    # 16.30e9 parameters, of which 1.89e9 inject sound; the speech model has 0.315e9. Its working
    # memory is estimated from I2V A14B's: 1.12 times its tokens per pixel, and 76 frames in float32
    # for the next segment.
    networks=Networks(32.59, 1, 11.36, 0.88, working_bytes_per_pixel=21_300, never_float8_gb=3.78),
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
    title="Wan2.2 I2V A14B with the lightx2v four-step LoRA pair (April 2026)",
    steps=4,
    guidance_scale=1.0,
    guidance_scale_2=1.0,
    flow_shift_480p=None,  # distilled with one shift
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

_KANDINSKY_LITE_SOUND = ModelSpec(
    name="kandinsky-6-lite-sound",
    title="Kandinsky 6 Lite, 16 distilled steps: the sound of a finished clip",
    family="kandinsky",
    task="sound-for-video",
    takes=(),
    needs=(),
    gives_sound=True,
    fps=24,
    max_frames=125,  # five seconds: 121 to 125 frames (kandinskylab/kandinsky-6 README)
    size_multiple=16,
    max_area=864 * 480,
    steps=16,
    guidance_scale=1.0,  # distilled: stock refuses CFG with its PiFlow scheduler
    guidance_scale_2=None,
    flow_shift=5.0,
    negative_prompt="",
    continuations=("last_frames",),
    text_tokens=1024,  # max_sequence_length of diffusers' Kandinsky6TI2VAPipeline
    repo="kandinskylab/Kandinsky-6.0-Lite-distill-5s-Diffusers",
    opt_in="the licences of its weights are not verified: the code is MIT, and the weights hold a "
    "HunyuanVideo VAE, an MMAudio VAE, Qwen2.5-VL and CLIP, each with a licence of its own",
    licence="code MIT; weights not verified",
    wan_blocks=False,
    # By the number of parameters: 3e9, Qwen2.5-VL 7B (8.29e9), CLIP-L, the two VAEs, the vocoder.
    download_gb=24.0,
    networks=Networks(6.0, 1, 16.9, 0.5, working_bytes_per_pixel=15_000),
)

_ROWS = (
    # First, so that `auto` takes it if the SVI pair is present.
    replace(
        _FOUR_STEP,
        name="wan2.2-i2v-a14b-4step-svi",
        title="Wan2.2 I2V A14B with the four-step and the Stable Video Infinity 2.0 Pro pair: "
        "for 10 and 15 s",
        continuation="svi",
        continuations=("svi",),  # the pair fails with any other condition
        takes=("first_picture", "first_clip"),
        # As its authors advise (vita-epfl/Stable-Video-Infinity, issue 51).
        full_segments=True,
        # No checksum of the pair is published, so any file of this name is accepted.
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
    _VACE_FOUR_STEP,
    _VACE_FUN_A14B,
    _VACE_14B,
    _KANDINSKY_LITE_SOUND,
    _S2V_14B,
    replace(
        _I2V_A14B,
        name="wan-tiny",
        title="a toy with two tiny experts, trained on drawings, that runs on any CPU",
        max_area=256 * 144,
        steps=4,
        flow_shift_480p=None,
        guidance_scale=1.0,
        guidance_scale_2=1.0,
        sampler="distilled-euler",
        repo=None,
        revision=None,
        is_toy=True,
        caveat="a toy trained on drawings, for tests only: the clip is soft, and only the camera "
        "moves",
        download_gb=0.0,
        networks=Networks(0.02, 2, 0.01, 0.01, working_bytes_per_pixel=10_000),
    ),
)

CATALOG: Mapping[str, ModelSpec] = {row.name: row for row in _ROWS}
"""The models by name. `auto` looks for their files in this order."""

ENTRY_POINTS = "wan_engine.models"


def known_models() -> Mapping[str, ModelSpec]:
    """The rows of the catalogue, followed by the rows of installed packages. Raises
    `ConfigurationError` if the rows of a package cannot be read."""
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
                f"{error!r}. Fix or uninstall its package."
            ) from error
        if taken := sorted((CATALOG.keys() | added.keys()) & rows.keys()):
            raise ConfigurationError(
                f"The entry point {point.name} of {ENTRY_POINTS} ({point.value}) adds "
                f"{', '.join(taken)}, which is there already. Rename its row."
            )
        added |= rows
    return added


FALLBACK = "wan-tiny"
"""The model of a local run if no real model is present."""


def infer(name: str, model_index: Mapping[str, Any]) -> ModelSpec:
    """The row for your own checkpoint in diffusers layout, by its `model_index.json`.

    It gets the settings of the catalogue row of the same kind. Raises `ConfigurationError` for
    other pipelines.
    """
    kind = str(model_index.get("_class_name", ""))
    two_experts = model_index.get("boundary_ratio") is not None
    if kind == "WanSpeechToVideoPipeline":
        return _own(_S2V_14B, name)
    if kind == "WanVACEPipeline":
        return _own(_VACE_FUN_A14B if two_experts else _VACE_14B, name)
    if kind == "Kandinsky6TI2VAPipeline":
        distilled = "PiflowScheduler" in model_index.get("scheduler", ())
        # The defaults of diffusers' pipeline for checkpoints that are not distilled.
        plain = replace(_KANDINSKY_LITE_SOUND, steps=50, guidance_scale=5.0)
        return _own(_KANDINSKY_LITE_SOUND if distilled else plain, name)
    # Repositories of the TI2V kind, which accept an image, also name the text-to-video class.
    both = kind == "WanPipeline" and model_index.get("expand_timesteps")
    if kind != "WanImageToVideoPipeline" and not both:
        raise ConfigurationError(
            f"{name} holds a {kind or 'folder without model_index.json'}; this engine runs "
            "WanImageToVideoPipeline, WanVACEPipeline, WanSpeechToVideoPipeline and "
            "Kandinsky6TI2VAPipeline checkpoints. Set WAN_MODEL to one of those, or to a name "
            "that `python -m wan_engine models` lists."
        )
    if model_index.get("expand_timesteps"):
        row = _TI2V_5B
    elif two_experts:
        row = _I2V_A14B
    else:
        # A single expert, such as Wan2.1 I2V 14B: guidance 5.0 throughout.
        row = replace(
            _I2V_A14B,
            guidance_scale=5.0,
            guidance_scale_2=None,
            takes=("first_picture", "first_clip"),
            continuations=("last_frames",),
        )
    return _own(row, name)


def _own(row: ModelSpec, name: str) -> ModelSpec:
    """A user's own checkpoint with the settings of `row`."""
    title = f"own checkpoint {name}"
    return replace(
        row,
        name=name,
        title=title,
        repo=None,
        revision=None,
        parts=(),
        licence="unknown",
    )
