"""Trains `wan-tiny` on pictures and camera moves that the device draws itself.

    python -m builder.train_toy --out wan-tiny.safetensors

Trains the VAE first, then the two experts with the text encoder. The same seed and steps give the
same pictures, prompts and noise, and weights that are equal except for rounding.
wan_engine/toy/README.md describes the weights of the package.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

from builder.train_toy import experts, vae
from builder.train_toy.fast import make_fast
from builder.train_toy.loop import run_stage
from builder.train_toy.pictures import Pictures
from builder.train_toy.start import begin_with_components
from wan_engine.toy import networks

_BATCH = 32


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    generator = torch.Generator(options.device).manual_seed(options.seed)
    pictures = Pictures(generator, max(32, round(160 * options.scale)))
    parts = train(pictures, generator, options)
    steps = f"vae={options.vae_steps},experts={options.expert_steps}"
    networks.write_weights(options.out, parts, {"seed": str(options.seed), "steps": steps})
    print(options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m builder.train_toy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the file of weights to write")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default cuda if there is one",
    )
    parser.add_argument("--seed", type=int, default=2026, help="default 2026")
    parser.add_argument("--vae-steps", type=int, default=1600, help="default 1600")
    parser.add_argument("--expert-steps", type=int, default=2500, help="default 2500")
    parser.add_argument(
        "--scale", type=float, default=0.25, help="of batch sizes: 1 for a GPU, default 0.25"
    )
    return parser


def train(
    pictures: Pictures, generator: torch.Generator, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the trained networks by their names in the pipeline."""
    tell = partial(print, flush=True)
    tokenizer = networks.make_tokenizer()
    coder = networks.make_vae()
    vae.initialise(coder)
    drawings = [pictures.sample(64, 128, 128).cpu() for _ in range(8)]
    begin_with_components(coder, torch.cat(drawings))
    make_fast(coder)
    coder.to(options.device).train()
    stage = vae.VaeStage(coder, pictures, generator, scale=options.scale)
    run_stage(stage, options.vae_steps, tell)
    coder.eval().requires_grad_(False)
    vae.measure_latents(coder, pictures, generator, count=24)

    both = networks.make_experts()
    # Their initial values are computed on the CPU, on any training device.
    experts.initialise(both, coder.cpu())
    parts = {
        "vae": coder,
        "transformer": both[0],
        "transformer_2": both[1],
        "text_encoder": networks.make_text_encoder(len(tokenizer)),
    }
    for network in parts.values():
        make_fast(network)
        network.to(options.device)
    batch = max(2, round(_BATCH * options.scale))
    clips = experts.Clips(coder, pictures, generator, size=8 * batch, chunk=min(8, batch))
    prompts = experts.Prompts(tokenizer, options.seed, generator.device)
    text_encoder = parts["text_encoder"]
    trained = experts.ExpertsStage(both, text_encoder, prompts, clips, generator, batch=batch)
    run_stage(trained, options.expert_steps, tell)
    return parts


if __name__ == "__main__":
    main()
