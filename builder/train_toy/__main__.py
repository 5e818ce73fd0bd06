"""Trains `wan-tiny` from nothing: pictures and camera moves that are drawn on the device.

    python -m builder.train_tiny --device cuda --seconds 200 --out outputs/train_tiny

First the VAE, then the two experts with the text encoder. Writes `wan-tiny.safetensors` (what
`builder/tiny.py` makes the checkpoint of), `figures.json`, `train.log` and a sheet of each
`--photo` to `--out`. A run that is broken off goes on from `train.checkpoint` with `--resume`. With
`--steps` the same seed gives the same pictures, prompts and noise; with `--seconds` it takes as
many steps as the machine manages, and figures.json says how many those were.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from builder import tiny_networks
from builder.training import evaluation
from builder.training import experts as experts_module
from builder.training import vae as vae_module
from builder.training.experts import Clips, ExpertsStage, Prompts
from builder.training.fast import make_fast
from builder.training.loop import Budget, Log, Position, Stage, run_stage
from builder.training.pictures import Pictures
from builder.training.start import begin_with_components

_SHARE = {"vae": 0.42, "experts": 0.58}
"""Of the seconds or steps of `--stage all`."""


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "train.log", lambda line: print(line, flush=True), as_json=options.json)
    training = Training(options, log)
    if options.resume:
        training.load(options.checkpoint)
    training.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m builder.train_tiny",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--seconds", type=float, help="of training; evaluation comes on top")
    parser.add_argument("--steps", help="instead of seconds, a stage: vae=4000,experts=900")
    parser.add_argument("--stage", choices=("vae", "experts", "all"), default="all")
    parser.add_argument("--scale", type=float, default=1.0, help="of batches; 0.25 for a CPU")
    parser.add_argument("--rate", type=float, default=1.0, help="of the usual learning rate")
    parser.add_argument("--start", type=Path, help="weights to begin with instead of random ones")
    parser.add_argument("--new-experts", action="store_true", help="but the VAE of --start")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="default: train.checkpoint in --out")
    parser.add_argument("--photo", type=Path, action="append", default=[], help="to evaluate on")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


class Training:
    """The networks, their stages, and how far these are."""

    def __init__(self, options: argparse.Namespace, log: Log) -> None:
        self.options, self.log = options, log
        options.checkpoint = options.checkpoint or options.out / "train.checkpoint"
        self.started = time.perf_counter()
        if options.device == "cuda":
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(options.seed)
        self.generator = torch.Generator(options.device).manual_seed(options.seed)
        count = max(32, round(160 * min(1.0, options.scale)))
        self.pictures = Pictures(self.generator, count)
        self.tokenizer = tiny_networks.make_tokenizer()
        if options.start:
            parts = tiny_networks.read_weights(options.start)
        else:
            high, low = tiny_networks.make_experts()
            parts = {
                "vae": tiny_networks.make_vae(),
                "transformer": high,
                "transformer_2": low,
                "text_encoder": tiny_networks.make_text_encoder(len(self.tokenizer)),
            }
            vae_module.initialise(parts["vae"])
            drawings = [self.pictures.sample(64, 128, 128).cpu() for _ in range(8)]
            begin_with_components(parts["vae"], torch.cat(drawings))
        parts.pop("tokenizer", None)
        self.parts = {name: network.to(options.device).train() for name, network in parts.items()}
        for network in self.parts.values():
            make_fast(network)
        self.experts = (self.parts["transformer"], self.parts["transformer_2"])
        self.positions = {name: Position() for name in _SHARE}
        self.stage: Stage | None = None
        self.log("ready", seconds=self.seconds, pictures=count, **self._sizes())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def _sizes(self) -> dict[str, int]:
        return {
            name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in self.parts.items()
        }

    def run(self) -> None:
        for name, budget in self._budgets().items():
            position = self.positions[name]
            if position.done:
                continue
            self.stage = self._make_stage(name)
            rates = [group["lr"] for group in self.stage.optimizer.param_groups]
            if self._stage_state is not None:
                self.stage.load_state_dict(self._stage_state)
                self._stage_state = None
            for group, rate in zip(self.stage.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.options.rate
            run_stage(self.stage, budget, position, self.log, save=self.save)
            if name == "vae":
                self._finish_vae()
            position.done = True
            self.save()
            self.write()
        self.evaluate()

    _stage_state: dict[str, Any] | None = None

    def _budgets(self) -> dict[str, Budget]:
        names = list(_SHARE) if self.options.stage == "all" else [self.options.stage]
        if self.options.steps:
            counts = dict(part.split("=") for part in self.options.steps.split(","))
            return {name: Budget(steps=int(counts[name])) for name in names if name in counts}
        whole = sum(_SHARE[name] for name in names)
        seconds = self.options.seconds or 200.0
        return {name: Budget(seconds=seconds * _SHARE[name] / whole) for name in names}

    def _make_stage(self, name: str) -> Stage:
        scale, vae = self.options.scale, self.parts["vae"]
        if name == "vae":
            return vae_module.VaeStage(vae, self.pictures, self.generator, scale=scale)
        vae.eval().requires_grad_(False)
        if self.options.new_experts or not self.options.start or self.positions["vae"].steps:
            self._begin_experts()
        prompts = Prompts(self.tokenizer, self.options.seed, self.generator.device)
        batch = max(2, round(32 * scale))
        clips = Clips(vae, self.pictures, self.generator, size=8 * batch, chunk=min(8, batch))
        text_encoder = self.parts["text_encoder"]
        return ExpertsStage(self.experts, text_encoder, prompts, clips, self.generator, batch=batch)

    def _begin_experts(self) -> None:
        """What they begin with is computed on the CPU, wherever they are trained."""
        networks = (self.parts["vae"], *self.experts)
        for network in networks:
            network.cpu()
        experts_module.initialise(self.experts, self.parts["vae"])
        for network in networks:
            network.to(self.options.device)

    def _finish_vae(self) -> None:
        vae = self.parts["vae"].eval()
        vae_module.measure_latents(vae, self.pictures, self.generator, count=24)
        for photo in self.options.photo:
            pixels = evaluation.read_photo(photo).to(self.options.device)
            self.log("photo", of=photo.name, **evaluation.evaluate_vae(vae, pixels))

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        assert self.stage is not None
        state = {
            "parts": {name: network.state_dict() for name, network in self.parts.items()},
            "moments": [self.parts["vae"].config[k] for k in ("latents_mean", "latents_std")],
            "positions": {name: asdict(position) for name, position in self.positions.items()},
            "stage": (self.stage.name, self.stage.state_dict()),
            "generator": self.generator.get_state(),
        }
        scratch = self.options.checkpoint.with_suffix(".part")
        torch.save(state, scratch)
        scratch.replace(self.options.checkpoint)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, network in self.parts.items():
            network.load_state_dict(state["parts"][name])
        mean, std = state["moments"]
        self.parts["vae"].register_to_config(latents_mean=mean, latents_std=std)
        self.positions = {name: Position(**values) for name, values in state["positions"].items()}
        name, stage_state = state["stage"]
        if not self.positions[name].done:
            self._stage_state = stage_state
        self.generator.set_state(state["generator"])
        self.log("resumed", **{name: p.steps for name, p in self.positions.items()})

    def write(self) -> None:
        """The weights, as they are now."""
        steps = ",".join(f"{name}={p.steps}" for name, p in self.positions.items() if p.steps)
        metadata = {"seed": str(self.options.seed), "steps": steps}
        path = self.options.out / "wan-tiny.safetensors"
        tiny_networks.write_weights(path, self.parts, metadata)
        self.log("written", file=path.name, megabytes=path.stat().st_size / 1e6)

    def evaluate(self) -> None:
        """Figures on every `--photo`, printed and written."""
        for network in self.parts.values():
            network.eval()
        photos: dict[str, Any] = {}
        for photo in self.options.photo:
            pixels = evaluation.read_photo(photo).to(self.options.device)
            figures: dict[str, Any] = {"vae": evaluation.evaluate_vae(self.parts["vae"], pixels)}
            if self.positions["experts"].steps:
                figures["moves"], strips = evaluation.evaluate_clips(
                    self.parts["vae"],
                    self.experts,
                    self.parts["text_encoder"],
                    self.tokenizer,
                    pixels,
                )
                evaluation.write_sheet(self.options.out / f"{photo.stem}.png", strips)
            photos[photo.name] = figures
            self.log("photo", of=photo.name, **_short(figures))
        summary = {
            "command": " ".join(["python -m builder.train_tiny", *sys.argv[1:]]),
            "device": _device_name(self.options.device),
            "torch": torch.__version__,
            "seconds": round(self.seconds, 1),
            "stages": {name: asdict(position) for name, position in self.positions.items()},
            "photos": photos,
        }
        (self.options.out / "figures.json").write_text(json.dumps(summary, indent=2) + "\n")
        print(json.dumps(summary), flush=True)


def _short(figures: dict[str, Any]) -> dict[str, Any]:
    moves = figures.get("moves", {})
    return figures["vae"] | {
        move: f"{row['first_frame_db']:.1f}/{row['last_frame_db']:.1f}dB seen as {row['seen_as']}"
        for move, row in moves.items()
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


if __name__ == "__main__":
    main()
