"""Makes the tiny checkpoints: the real classes with small sizes, in the layout of diffusers and
transformers.

With them, the whole path from `from_pretrained` to mp4 runs anywhere. `wan-tiny` has the weights
next to this file, trained on drawings: it animates a picture, as a toy. The other models have
random weights, and their pictures are texture. A folder is a pure function of `RECIPE`, those
weights and the library versions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from wan_engine.toy import classifiers, networks, sound, writer

RECIPE = "4"
"""Part of a cached folder's name. Increase it with any change here, in `classifiers.py` or of the
weights, so that no outdated folder is used."""

_WRITER = "tiny-prompt-writer"
_SEED = 2026
_TEXT_WIDTH = 32
WEIGHTS = Path(__file__).parent / "wan-tiny.safetensors"
"""The weights of `wan-tiny`. The README.md next to them says how they were made."""


def build(name: str, folder: Path) -> Path:
    """Build the tiny checkpoint `name` (one of `NAMES`) in `folder`, unless it exists. Returns
    `folder`.

    The folder appears complete or not at all, so several processes may build it at once.
    """
    if _is_there(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        _KINDS[name](scratch)
        with suppress(OSError):  # mkdtemp sets 0700, which others who share the cache cannot read
            scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not _is_there(folder):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def place_in_cache(name: str) -> Path:
    """The checkpoint's folder, relative to the cache."""
    return Path(f"tiny-writer-{writer.RECIPE}") if name == _WRITER else Path(f"tiny-{RECIPE}", name)


def _is_there(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def _trained(folder: Path) -> None:
    """`wan-tiny`: the kind of Wan2.2-I2V-A14B with the trained weights."""
    from diffusers import WanImageToVideoPipeline

    pipeline = WanImageToVideoPipeline(
        **networks.read_weights(WEIGHTS), scheduler=_scheduler(), boundary_ratio=0.9
    )
    pipeline.save_pretrained(folder)


def _two_experts(folder: Path) -> None:
    """The kind of Wan2.2-I2V-A14B: 16 noisy + 4 mask + 16 condition channels, two experts, boundary
    0.9."""
    import torch
    from diffusers import WanImageToVideoPipeline

    torch.manual_seed(_SEED)
    characters, text_encoder = _text_parts()
    vae = _vae()
    pipeline = WanImageToVideoPipeline(
        tokenizer=characters,
        text_encoder=text_encoder,
        vae=vae.eval(),
        scheduler=_scheduler(),
        transformer=_transformer(in_channels=36, out_channels=16),
        transformer_2=_transformer(in_channels=36, out_channels=16),
        boundary_ratio=0.9,
    )
    pipeline.save_pretrained(folder)


def _expand_timesteps(folder: Path) -> None:
    """The kind of Wan2.2-TI2V-5B: 48 latent channels, spatial stride 16, the first latent frame
    kept clean."""
    import torch
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline

    torch.manual_seed(_SEED)
    characters, text_encoder = _text_parts()
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],  # the library's own spelling
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )
    pipeline = WanImageToVideoPipeline(
        tokenizer=characters,
        text_encoder=text_encoder,
        vae=vae.eval(),
        scheduler=_scheduler(),
        transformer=_transformer(in_channels=48, out_channels=48),
        expand_timesteps=True,
    )
    pipeline.save_pretrained(folder)


def _vace(folder: Path) -> None:
    """The kind of Wan2.2-VACE-Fun-A14B: 96 control channels, two experts, boundary 0.875."""
    import torch
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    torch.manual_seed(_SEED)
    characters, text_encoder = _text_parts()
    vae = _vae()

    def expert() -> Any:
        return WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=_TEXT_WIDTH,
            freq_dim=32,
            ffn_dim=64,
            num_layers=4,
            rope_max_seq_len=1024,
            vace_layers=[0, 2],
            vace_in_channels=96,
        ).eval()

    pipeline = WanVACEPipeline(
        tokenizer=characters,
        text_encoder=text_encoder,
        vae=vae.eval(),
        scheduler=_scheduler(),
        transformer=expert(),
        transformer_2=expert(),
        boundary_ratio=0.875,
    )
    pipeline.save_pretrained(folder)


def _s2v(folder: Path) -> None:
    """The kind of Wan2.2-S2V-14B: a transformer with its authors' names, and a speech model of 50
    features a second."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from wan_engine.networks.speech import SpeechTransformer

    torch.manual_seed(_SEED)
    characters, text_encoder = _text_parts()
    speech = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    transformer = SpeechTransformer(
        dim=48,
        ffn_dim=64,
        freq_dim=32,
        text_dim=_TEXT_WIDTH,
        num_heads=2,
        num_layers=3,
        audio_dim=16,
        audio_layers=3,
        audio_inject_layers=(0, 2),
    )
    parts = {
        "text_encoder": text_encoder,
        "tokenizer": characters,
        "vae": _vae().eval(),
        "transformer": transformer.eval(),
        "audio_encoder": Wav2Vec2Model(speech).eval(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {"_class_name": "WanSpeechToVideoPipeline"}
    entries = {name: ["wan_engine", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}, indent=1))


def _vae() -> Any:
    """The kind of Wan 2.1's and A14B's: 16 channels, stride 8."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],  # the library's own spelling
    )


def _text_parts() -> tuple[Any, Any]:
    """A character tokenizer and its UMT5 encoder."""
    from transformers import UMT5Config, UMT5EncoderModel

    characters = tokenizer()
    config = UMT5Config(
        vocab_size=len(characters), d_model=_TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return characters, UMT5EncoderModel(config).eval()


def tokenizer() -> Any:
    """A tokenizer of characters with a fixed vocabulary, because a trained vocabulary differs
    between runs."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -3.0) for character in networks.CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _transformer(*, in_channels: int, out_channels: int) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=out_channels,
        text_dim=_TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=1024,
    ).eval()


def _scheduler() -> Any:
    """The scheduler of the converted repositories, with the flow shift that the engine must
    correct."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=3.0,
    )


_KINDS: dict[str, Callable[[Path], None]] = {
    "wan-tiny": _trained,
    "wan-tiny-random": _two_experts,
    "wan-tiny-ti2v": _expand_timesteps,
    "wan-tiny-vace": _vace,
    "wan-tiny-sound": sound.write,
    "wan-tiny-s2v": _s2v,
    "tiny-prompt-guard": classifiers.prompt_guard,
    "tiny-image-classifier": classifiers.image_classifier,
    _WRITER: writer.write,
}
NAMES = tuple(_KINDS)
