"""Maps the two published layouts of Wan2.2-S2V to the first: its authors' names, and those of
diffusers' pull request 12258."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wan_engine.errors import ConfigurationError

_PARTS = (
    (r"\battn1\.", "self_attn."),
    (r"\battn2\.", "cross_attn."),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\bto_out\.0\b", "o"),
    (r"\bffn\.net\.0\.proj\b", "ffn.0"),
    (r"\bffn\.net\.2\b", "ffn.2"),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\b", "head.head"),
    (r"^condition_embedder\.time_embedder\.linear_1\b", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2\b", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1\b", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2\b", "text_embedding.2"),
    (r"^condition_embedder\.time_proj\b", "time_projection.1"),
    (r"^condition_embedder\.pose_embedder\b", "cond_encoder"),
    (r"^condition_embedder\.ca(us|su)al_audio_encoder\b", "casual_audio_encoder"),
    (r"\bweighted_avg\.weights$", "weights"),
    (r"\b(conv\w*)\.conv\.conv\b", r"\1.conv"),
    (r"^trainable_condition_mask\b", "trainable_cond_mask"),
)
_SETTINGS: Mapping[str, str] = {
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "pose_dim": "cond_dim",
    "num_attention_heads": "num_heads",
    "num_weighted_avg_layers": "audio_layers",
    "inject_layers": "audio_inject_layers",
}
_AS_IT_IS: Mapping[str, Any] = {
    "model_type": "s2v",
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "enable_motioner": False,
    "enable_framepack": True,
    "add_last_motion": True,
}
_TAKEN = frozenset((
    "dim", "ffn_dim", "freq_dim", "text_dim", "in_dim", "out_dim", "cond_dim", "num_heads",
    "num_layers", "audio_dim", "audio_layers", "num_audio_token", "audio_inject_layers", "eps",
))  # fmt: skip


def native_name(name: str) -> str:
    """Return the authors' name of a weight, for its name in either layout."""
    # In diffusers' blocks the second norm precedes the text attention. It is the authors' third.
    renamed = re.sub(r"^(blocks\.\d+)\.norm2\.", r"\1.norm3.", name)
    for pattern, replacement in _PARTS:
        renamed = re.sub(pattern, replacement, renamed)
    return renamed


def native_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the authors' settings from either layout's `config.json`, without settings that the
    network does not use. Raises `ConfigurationError` for another network than that of
    Wan2.2-S2V-14B."""
    wrong = [name for name, value in _AS_IT_IS.items() if given.get(name, value) != value]
    if wrong:
        raise ConfigurationError(
            "The transformer's config.json is of a variant of Wan2.2-S2V that this engine does not "
            f"have: {', '.join(f'{name} is {given[name]}' for name in wrong)}. Take "
            "Wan-AI/Wan2.2-S2V-14B"
        )
    found = {_SETTINGS.get(name, name): value for name, value in given.items()}
    if width := given.get("attention_head_dim"):
        found["dim"] = width * found["num_heads"]
    return {name: value for name, value in found.items() if name in _TAKEN}
