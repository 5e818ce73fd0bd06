"""Defines the networks of the trained `wan-tiny`, and reads the file with their weights.

`builder/train_toy` trains the weights, and `checkpoints.py` writes the checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wan_engine.toy.camera_moves import words

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-_/&%+#@*"
TEXT_WIDTH = 32
LATENT_CHANNELS = 16


def make_vae() -> Any:
    """A VAE from 8x8 pixels and 4 frames to 16 channels, as Wan2.1's, with the layers of Wan2.2's.

    2x2 pixels are one position of the first layer, which is four times cheaper on a CPU.
    """
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],  # the library's own spelling
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def make_expert(*, layers: int) -> Any:
    """An expert with 16 noise, 4 mask and 16 condition channels, as Wan2.2-I2V-A14B's."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        in_channels=2 * LATENT_CHANNELS + 4,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=layers,
        rope_max_seq_len=1024,
    )


def make_experts() -> tuple[Any, Any]:
    """The experts for high and for low noise. The last two of four steps decide the picture."""
    return make_expert(layers=3), make_expert(layers=5)


def make_tokenizer() -> Any:
    """A tokenizer with a token for each character, and for each word of the prompts that name a
    camera move.

    The vocabulary is fixed, because a trained one differs between runs.
    """
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(character, -3.0) for character in CHARACTERS]
    pieces += [(f"▁{word}", -4.0) for word in words()]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def make_text_encoder(vocabulary: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    return UMT5EncoderModel(config)


def write_weights(path: Path, parts: dict[str, Any], metadata: dict[str, str]) -> None:
    """Write all `parts` (networks by their name in the pipeline) to one file, in half precision."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, network in parts.items():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensors[f"{name}.{key}"] = tensor.detach().half().cpu().contiguous()
    vae = parts["vae"]
    for moment in ("latents_mean", "latents_std"):
        tensors[f"{moment}"] = torch.tensor(getattr(vae.config, moment))
    save_file(tensors, path, metadata)


def read_weights(path: Path) -> dict[str, Any]:
    """Read the networks of `write_weights` in float32, by their names in the pipeline, and the
    tokenizer."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    vae, (high, low), tokenizer = make_vae(), make_experts(), make_tokenizer()
    vae.register_to_config(
        latents_mean=tensors.pop("latents_mean").tolist(),
        latents_std=tensors.pop("latents_std").tolist(),
    )
    parts = {
        "text_encoder": make_text_encoder(len(tokenizer)),
        "vae": vae,
        "transformer": high,
        "transformer_2": low,
    }
    for name, network in parts.items():
        prefix = f"{name}."
        state = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        missing, unexpected = network.load_state_dict(state, strict=False)
        tied = {"encoder.embed_tokens.weight", "shared.weight"}
        assert not unexpected and set(missing) <= tied, (name, missing, unexpected)
        network.float().eval()
    return {"tokenizer": tokenizer, **parts}
