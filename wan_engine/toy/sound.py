"""Writes a tiny checkpoint of the Kandinsky 6 kind: the real classes with small random weights, in
the layout of its repositories. Its sound is noise that changes with the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wan_engine.toy import writer

_SEED = 2026
_WIDTH = 32
_CHANNELS = 4  # of the picture latents and the sound latents
_PREDICTIONS = 2  # per step of the distilled scheduler
_LOUDER = 8.0  # so that the picture changes the sound of random weights


def write(folder: Path) -> None:
    """Write the model to `folder`."""
    import torch

    torch.manual_seed(_SEED)
    parts = {**_texts(), **_networks()}
    with torch.no_grad():
        for name, parameter in parts["transformer"].named_parameters():
            if "av_cross_attention" in name or "audio_out_layer.out_layer" in name:
                parameter.mul_(_LOUDER)
        for parameter in parts["vocoder"].conv_pre.parameters():
            parameter.mul_(_LOUDER)
    index: dict[str, Any] = {"_class_name": "Kandinsky6TI2VAPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    # The real tokenizers also have tokens for pictures and videos, which prompts here do not use.
    index["tokenizer"] = ["transformers", "Qwen2_5_VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _networks() -> dict[str, Any]:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        Kandinsky6Transformer3DModel,
        MMAudioVAE,
        MMAudioVocoder,
        PiflowScheduler,
    )

    return {
        "transformer": Kandinsky6Transformer3DModel(
            in_visual_dim=_CHANNELS,
            out_visual_dim=_CHANNELS * _PREDICTIONS,
            in_text_dim=_WIDTH,
            in_text_dim2=_WIDTH,
            time_dim=16,
            model_dim=24,
            ff_dim=48,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 4, 4),
            in_audio_dim=_CHANNELS,
            out_audio_dim=_CHANNELS * _PREDICTIONS,
            text_token_padding=True,
            ca_rope=True,
            cross_gates=True,
            fix_modulation=True,
            visual_token_type_num_embeddings=2,
        ).eval(),
        "vae": AutoencoderKLHunyuanVideo(
            latent_channels=_CHANNELS,
            block_out_channels=(4, 4, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            mid_block_add_attention=False,
        ).eval(),
        "audio_vae": MMAudioVAE(
            mel_bins=16,
            latent_channels=_CHANNELS,
            hidden_channels=16,
            channel_multipliers=(1, 1),
            layers_per_block=1,
        ).eval(),
        "vocoder": MMAudioVocoder(
            num_mels=16,
            upsample_initial_channel=32,
            upsample_rates=(8, 8, 8),
            upsample_kernel_sizes=(16, 16, 16),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1,),),
        ).eval(),
        "scheduler": PiflowScheduler(n_grid=_PREDICTIONS),
    }


def _texts() -> dict[str, Any]:
    """Make the two tokenizers and their encoders."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    tokenizer, second = writer.make_tokenizer(), _clip_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in writer.SPECIAL}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000,
            "mrope_section": [2, 3, 3],
        },
    }
    vision = {
        "depth": 1,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_heads": 2,
        "out_hidden_size": _WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    clip = CLIPTextConfig(
        vocab_size=len(second),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=second.bos_token_id,
        eos_token_id=second.eos_token_id,
        pad_token_id=second.pad_token_id,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config).eval(),
        "tokenizer_2": second,
        "text_encoder_2": CLIPTextModel(clip).eval(),
    }


def _clip_tokenizer() -> Any:
    """Make a tokenizer with one token for each byte, within a word and at its end."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    signs = sorted(ByteLevel.alphabet())
    names = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
