"""Trains the two experts and the text encoder with flow matching on the states of the four-step
sampler.

The picture and the prompt fully determine a move over a picture, so there is one correct result for
every noise. Each batch is sampled as the pipeline samples it. At every step, a loss points from the
present state of the networks to that result.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from builder.train_toy import aim
from builder.train_toy.aim import Aim
from builder.train_toy.fast import half_precision
from builder.train_toy.moves import warp
from builder.train_toy.pictures import Pictures
from builder.train_toy.prompts import prompt
from builder.train_toy.vae import encode, normalise
from wan_engine.toy.camera_moves import MOVES

LEARNING_RATE = 6e-4
SHIFT = 5.0
BOUNDARY = 0.9
STEPS = 4
TEXT_LENGTH = 512  # the pipeline pads the prompt's states with zeros to this length
_LONGEST_PROMPT = 160

_SHAPES = ((144, 256), (144, 256), (192, 192), (144, 256), (256, 144), (144, 256), (160, 224))
_SMALL_SHAPES = ((96, 128), (96, 160), (128, 96), (112, 112), (80, 144))
_SMALL = (
    (21, 8, 8), (6, 18, 32), (21, 10, 14), (5, 32, 18),
    (11, 14, 26), (6, 24, 24), (21, 6, 24), (7, 18, 32),
)  # fmt: skip
"""Frames, height and width in latents, for training without pictures."""

_AIMING = ("text_embedder", "attn2", "norm2", "ffn")
"""The parameters that learn from tokens without content. Others would only forget pictures."""

_AIM_WEIGHT = 10.0
_FIRST_CLIPS, _FIRST_LARGE = 0.15, 0.8  # progress
_STEPS_A_BATCH = 12
"""New clips are made one batch at a time, because one clip takes a GPU as long as many."""
_GREY_FRAMES = 33  # after this many frames, the code of grey repeats
_KNOWN_FRAMES = (1, 1, 1, 5)  # 5: a later segment, with the frames that overlap


def sigmas(steps: int = STEPS, shift: float = SHIFT) -> list[float]:
    """Return the noise levels of the four-step sampler, from 1 (timesteps 1000, 937.5, 833.3, 625),
    then 0."""
    plain = [1 - step / steps for step in range(steps)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in plain] + [0.0]


AIMS = (Aim(0), Aim(1))
"""The aims of the experts for high and for low noise."""


def initialise(experts: tuple[Any, Any], vae: Any) -> None:
    """Initialize as `aim` describes: repeat the known frame, and know where to look for a move."""
    grey = condition_of(vae, torch.zeros(1, 3, 81, 64, 64), 1)[0, 4:, 2:].mean((1, 2, 3))
    for expert, part, index in zip(experts, AIMS, (slice(0, 2), slice(2, 4)), strict=True):
        aim.initialise(expert, grey, part)
        aim.scale_by_time(expert, sigmas()[index])


class Prompts:
    """A table of prompts for each move, as tokens."""

    def __init__(self, tokenizer: Any, seed: int, device: torch.device, each: int = 600) -> None:
        source = random.Random(seed)
        texts = [prompt(move, source) for move in MOVES for _ in range(each)]
        self.tokens, self.mask = tokenise(tokenizer, texts, device)
        self._each = each

    def sample(
        self, moves: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        which = torch.randint(self._each, moves.shape, generator=generator, device=generator.device)
        index = moves * self._each + which
        return self.tokens[index], self.mask[index]


def tokenise(
    tokenizer: Any, texts: list[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=_LONGEST_PROMPT,
        truncation=True,
        return_tensors="pt",
    )
    return tokens.input_ids.to(device), tokens.attention_mask.to(device)


def text_states(text_encoder: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return [n, 512, width], with zeros after each prompt, as the pipeline passes them to the
    transformer."""
    states = text_encoder(tokens, attention_mask=mask).last_hidden_state
    states = states * mask[..., None]
    return F.pad(states, (0, 0, 0, TEXT_LENGTH - states.shape[1]))


@torch.no_grad()
def condition_of(vae: Any, clip: torch.Tensor, known: int) -> torch.Tensor:
    """Return 4 mask and c condition channels: the first `known` frames of `clip`, then mid-grey."""
    length, given = clip.shape[2], clip[:, :, :_GREY_FRAMES].clone()
    given[:, :, known:] = 0
    latents = normalise(vae, encode(vae, given).float())
    more = (length - 1) // 4 + 1 - latents.shape[2]  # grey after grey has one code
    latents = torch.cat([latents, latents[:, :, -1:].expand(-1, -1, more, -1, -1)], dim=2)
    mask = torch.zeros_like(latents[:, :4])
    mask[:, :, : (known - 1) // 4 + 1] = 1
    return torch.cat([mask, latents], dim=1)


class Clips:
    """A store of encoded clips per picture shape. Some are replaced before each step."""

    def __init__(
        self, vae: Any, pictures: Pictures, generator: torch.Generator, *, size: int, chunk: int
    ) -> None:
        self._vae, self._pictures, self._generator = vae, pictures, generator
        self._size, self._chunk = size, chunk
        self._stores: dict[tuple[int, int], list[tuple[torch.Tensor, ...]]] = {}

    def sample(self, shape: tuple[int, int], count: int, fresh: int) -> tuple[torch.Tensor, ...]:
        """Return moves [n], clean latents and conditions [n, c, 21, h, w], after adding `fresh` new
        clips."""
        store = self._stores.setdefault(shape, [])
        fresh = max(fresh, count - len(store))
        while fresh > 0:
            part = min(fresh, self._chunk)
            store.extend(zip(*self._make(shape, part), strict=True))
            fresh -= part
        del store[: max(0, len(store) - self._size)]
        which = torch.randperm(len(store), generator=self._order())[:count].tolist()
        return tuple(torch.stack(column) for column in zip(*(store[i] for i in which), strict=True))

    def _order(self) -> torch.Generator:
        seed = torch.randint(
            2**31, (1,), generator=self._generator, device=self._generator.device
        ).item()
        return torch.Generator().manual_seed(int(seed))

    @torch.no_grad()
    def _make(self, shape: tuple[int, int], count: int) -> tuple[torch.Tensor, ...]:
        generator, device = self._generator, self._generator.device
        pictures = self._pictures.sample(count, *shape)
        often = torch.tensor([3.0 if move == "still" else 1.0 for move in MOVES], device=device)
        moves = often.multinomial(count, replacement=True, generator=generator)
        frames = torch.arange(81, device=device).float().expand(count, 81)
        known = _KNOWN_FRAMES[int(torch.randint(4, (1,), generator=generator, device=device))]
        with half_precision(device):
            clip = warp(pictures, moves, frames)
            clean = normalise(self._vae, encode(self._vae, clip).float())
            condition = condition_of(self._vae, clip, known)
        return moves, clean.half(), condition.half()


class ExpertsStage:
    """Implements `Stage`: trains both experts and the text encoder with one optimizer."""

    name = "experts"

    def __init__(
        self,
        experts: tuple[Any, Any],
        text_encoder: Any,
        prompts: Prompts,
        clips: Clips,
        generator: torch.Generator,
        *,
        batch: int = 32,
    ) -> None:
        self.experts, self.text_encoder = experts, text_encoder
        self._prompts, self._clips, self._generator = prompts, clips, generator
        self._batch = batch
        self._modules = torch.nn.ModuleList([*experts, text_encoder])
        self._parameters = list(self._modules.parameters())
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=LEARNING_RATE,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=generator.device.type == "cuda",
        )
        self._steps = 0
        self._beside_the_aim = [
            parameter
            for name, parameter in self._modules.named_parameters()
            if not name.startswith("2.") and not any(part in name for part in _AIMING)
        ]
        self._hidden: dict[int, torch.Tensor] = {}
        for index, (expert, part) in enumerate(zip(experts, AIMS, strict=True)):
            expert.blocks[part.block].register_forward_hook(self._keep(index))
            aim.keep_gates(expert)

    def _keep(self, index: int) -> Any:
        def keep(_block: Any, _inputs: Any, output: torch.Tensor) -> None:
            self._hidden[index] = output

        return keep

    def step(self, progress: float) -> dict[str, torch.Tensor]:
        """Train the aim alone at first and now and then, and otherwise four sampler steps of one
        batch."""
        self._steps += 1
        if progress < _FIRST_CLIPS:
            self.optimizer.param_groups[0]["lr"] *= 2
            return self._aim()
        if self._steps % 3 == 0:
            return self._aim()
        return self._clips_step(progress)

    def _aim(self) -> dict[str, torch.Tensor]:
        """Train offsets from prompts and places, on tokens without content."""
        count, device = 2 * self._batch, self._generator.device
        often = torch.tensor([2.0 if "zoom" in move else 1.0 for move in MOVES], device=device)
        moves = often.multinomial(count, replacement=True, generator=self._generator)
        text = self._prompts.sample(moves, self._generator)
        frames, height, width = _SMALL[self._steps % len(_SMALL)]
        shape = (count, 36, frames, height, width)
        state = torch.randn(shape, generator=self._generator, device=device)
        state[:, 16:20] = 0
        state[:, 16:20, :1] = 1
        wanted = aim.targets(moves, frames, height, width)
        self.optimizer.zero_grad(set_to_none=True)
        losses = {}
        with half_precision(device):
            states = text_states(self.text_encoder, *text)
            total = torch.zeros((), device=device)
            for index, (expert, part) in enumerate(zip(self.experts, AIMS, strict=True)):
                sigma = sigmas()[2 * index + self._steps // len(_SMALL) % 2]
                loss = part.loss(part.hidden(expert, state, sigma, states), wanted)
                losses[("high_aim", "low_aim")[index]] = loss.detach()
                total = total + loss
            total.backward()
        for parameter in self._beside_the_aim:
            parameter.grad = None
        self._descend()
        return losses

    def _descend(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()

    def _clips_step(self, progress: float) -> dict[str, torch.Tensor]:
        """Train four sampler steps of one batch, each with its own gradient."""
        shapes = _SHAPES if progress >= _FIRST_LARGE else _SMALL_SHAPES
        shape = shapes[self._steps % len(shapes)]
        fresh = self._batch if self._steps % _STEPS_A_BATCH == 0 else 0
        moves, clean, condition = self._clips.sample(shape, self._batch, fresh)
        length = self._length(progress)
        clean, condition = clean[:, :, :length].float(), condition[:, :, :length].float()
        tokens, mask = self._prompts.sample(moves, self._generator)
        self.optimizer.zero_grad(set_to_none=True)
        with half_precision(clean.device):
            text = text_states(self.text_encoder, tokens, mask)
            losses = self._sample(clean, condition, text, moves, progress)
        self._descend()
        return losses

    def _length(self, progress: float) -> int:
        """Return the latent frames of this step."""
        return (21, 11, 21, 6)[self._steps % 4] if progress < 0.9 else 21

    def _sample(
        self,
        clean: torch.Tensor,
        condition: torch.Tensor,
        text: torch.Tensor,
        moves: torch.Tensor,
        progress: float,
    ) -> dict[str, torch.Tensor]:
        offsets = aim.targets(moves, *clean.shape[2:])
        noise = torch.randn(clean.shape, generator=self._generator, device=clean.device)
        chance = min(0.75, 1.5 * progress)  # of continuing from the state that the networks reached
        own = torch.rand(len(clean), generator=self._generator, device=clean.device) < chance
        schedule = sigmas()
        state, losses = noise, {}
        total = clean.new_zeros(())
        for index, (sigma, following) in enumerate(pairwise(schedule)):
            straight = (1 - sigma) * clean + sigma * noise
            state = torch.where(own[:, None, None, None, None], state, straight).detach()
            low = sigma < BOUNDARY
            velocity = self.experts[low](
                hidden_states=torch.cat([state, condition], dim=1),
                timestep=torch.full((len(clean),), 1000 * sigma, device=clean.device),
                encoder_hidden_states=text,
                return_dict=False,
            )[0].float()
            end = state - sigma * velocity
            squared = (end - clean).square().mean((1, 2, 3, 4))
            # The root of the loss gives weight to clips that can be exact, beside those that can
            # only be guessed.
            loss = (squared + 1e-3).sqrt().mean()
            total = total + loss * ((1.0, 1.0, 1.0, 2.0)[index] / sigma)
            total = total + _AIM_WEIGHT * AIMS[low].loss(self._hidden[low], offsets)
            losses[f"step{index + 1}"] = squared.detach().mean()
            state = state + (following - sigma) * velocity
        total.backward()
        losses[f"{clean.shape[2]}_latents_loss"] = total.detach()
        losses["last_frame"] = F.mse_loss(end[:, :, -1], clean[:, :, -1]).detach()
        losses["first_frame"] = F.mse_loss(end[:, :, 0], clean[:, :, 0]).detach()
        return losses
