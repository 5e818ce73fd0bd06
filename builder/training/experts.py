"""Fits the two experts and the text encoder: flow matching on the states that four steps visit.

A move over a picture is known in full from the picture and the prompt, so there is one right end
for every noise. Each batch is sampled as the pipeline samples it, with a loss at every step that
points from where the networks came to at that end.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from builder.training.moves import warp
from builder.training.pictures import Pictures
from builder.training.prompts import MOVES, prompt
from builder.training.vae import encode, normalise

LEARNING_RATE = 1.2e-3
SHIFT = 5.0
BOUNDARY = 0.9
STEPS = 4
TEXT_LENGTH = 512  # to which the pipeline pads the prompt's states with zeros
_LONGEST_PROMPT = 160

_SHAPES = ((144, 256), (144, 256), (192, 192), (144, 256), (256, 144), (144, 256), (160, 224))
_STEPS_A_BATCH = 8
"""New clips come a batch at a time: making one costs a GPU as long as making many."""
_KNOWN_FRAMES = (1, 1, 1, 5)  # 5: a later segment, which is given what it has in common


def sigmas(steps: int = STEPS, shift: float = SHIFT) -> list[float]:
    """1 and on: what the four-step sampler visits (timesteps 1000, 937.5, 833.3, 625), then 0."""
    plain = [1 - step / steps for step in range(steps)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in plain] + [0.0]


def initialise(expert: Any) -> None:
    """Start with a network that lets the noise through, subtracts the condition, looks near, and
    sees the words among the padding."""
    _let_through(expert)
    _look_near(expert)
    _see_words(expert)


def _let_through(expert: Any) -> None:
    """Each input has a place of its own in the width, from which the output is read."""
    width, channels = expert.patch_embedding.weight.shape[:2]
    patch = expert.patch_embedding.weight[0, 0].numel()
    inputs, out = channels * patch, expert.config.out_channels
    assert inputs <= width
    with torch.no_grad():
        flat = torch.eye(inputs, width).T  # input c, patch place p is at width c * patch + p
        expert.patch_embedding.weight.copy_(flat.view_as(expert.patch_embedding.weight))
        expert.patch_embedding.bias.zero_()
        # The output is in the order patch place, channel.
        noisy = torch.arange(out * patch).view(out, patch).T.flatten()
        expert.proj_out.weight.mul_(0.1)
        expert.proj_out.bias.zero_()
        rows = torch.arange(out * patch)
        expert.proj_out.weight[rows, noisy] += 1.0
        expert.proj_out.weight[rows, noisy + (out + 4) * patch] -= 1.0


def _look_near(expert: Any) -> None:
    """Start with heads that look at one place and its neighbours, in every frame.

    Queries and keys are normalised, so attention that is sharp in place needs large gains, which
    take thousands of steps to grow. Constant queries and keys with gains on the two fastest
    rotations of height and width give it from the first step.
    """
    offsets = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    side = 2 * (expert.config.attention_head_dim // 6)
    time = expert.config.attention_head_dim - 2 * side
    with torch.no_grad():
        for block in expert.blocks:
            attention = block.attn1
            heads = attention.heads
            for layer in (attention.to_q, attention.to_k):
                layer.weight.mul_(0.5)
                layer.bias.zero_()
            parts = [
                tensor.view(heads, -1)
                for tensor in (
                    attention.to_q.bias,
                    attention.to_k.bias,
                    attention.norm_q.weight,
                    attention.norm_k.weight,
                )
            ]
            for head in range(heads):
                for axis, offset in enumerate(offsets[head % len(offsets)]):
                    for turn in range(2):
                        frequency = 10000.0 ** (-2 * turn / side)
                        real = time + axis * side + 2 * turn
                        query, key, query_gain, key_gain = (part[head] for part in parts)
                        query[real] = math.cos(frequency * offset)
                        query[real + 1] = math.sin(frequency * offset)
                        key[real] = 1.0
                        query_gain[real : real + 2] = key_gain[real : real + 2] = 2.0


def _see_words(expert: Any) -> None:
    """Start with cross-attention to which padding is nothing.

    A prompt is some twenty states among 512 that are zero, so attention that is even gives its
    words a thirtieth of the whole. Without biases a zero state has the score 0, and gains make the
    scores of words large, either way.
    """
    text = expert.condition_embedder.text_embedder
    with torch.no_grad():
        for layer in (text.linear_1, text.linear_2, *(b.attn2.to_k for b in expert.blocks)):
            layer.bias.zero_()
        for block in expert.blocks:
            block.attn2.norm_q.weight.fill_(2.0)
            block.attn2.norm_k.weight.fill_(2.0)


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
    """[n, 512, width], zeros behind each prompt, as the pipeline gives them to the transformer."""
    states = text_encoder(tokens, attention_mask=mask).last_hidden_state
    states = states * mask[..., None]
    return F.pad(states, (0, 0, 0, TEXT_LENGTH - states.shape[1]))


@torch.no_grad()
def condition_of(vae: Any, clip: torch.Tensor, known: int) -> torch.Tensor:
    """4 mask and c condition channels: the first `known` frames of `clip`, mid-grey behind them."""
    given = clip.clone()
    given[:, :, known:] = 0
    latents = normalise(vae, encode(vae, given).float())
    mask = torch.zeros_like(latents[:, :4])
    mask[:, :, : (known - 1) // 4 + 1] = 1
    return torch.cat([mask, latents], dim=1)


class Clips:
    """A store of encoded clips per picture shape; some are replaced before each step."""

    def __init__(
        self, vae: Any, pictures: Pictures, generator: torch.Generator, *, size: int, chunk: int
    ) -> None:
        self._vae, self._pictures, self._generator = vae, pictures, generator
        self._size, self._chunk = size, chunk
        self._stores: dict[tuple[int, int], list[tuple[torch.Tensor, ...]]] = {}

    def sample(self, shape: tuple[int, int], count: int, fresh: int) -> tuple[torch.Tensor, ...]:
        """Moves [n], clean latents and conditions [n, c, 21, h, w]. `fresh` new ones go in."""
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
        moves = torch.randint(len(MOVES), (count,), generator=generator, device=device)
        frames = torch.arange(81, device=device).float().expand(count, 81)
        known = _KNOWN_FRAMES[int(torch.randint(4, (1,), generator=generator, device=device))]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            clip = warp(pictures, moves, frames)
            clean = normalise(self._vae, encode(self._vae, clip).float())
            condition = condition_of(self._vae, clip, known)
        return moves, clean.half(), condition.half()


class ExpertsStage:
    """Implements `Stage`: both experts and the text encoder, with one optimizer."""

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

    def step(self, progress: float) -> dict[str, torch.Tensor]:
        """Four sampler steps of one batch, a gradient from each."""
        self._steps += 1
        shape = _SHAPES[self._steps % len(_SHAPES)]
        fresh = self._batch if self._steps % _STEPS_A_BATCH == 0 else 0
        moves, clean, condition = self._clips.sample(shape, self._batch, fresh)
        length = self._length(progress)
        clean, condition = clean[:, :, :length].float(), condition[:, :, :length].float()
        tokens, mask = self._prompts.sample(moves, self._generator)
        device = clean.device.type
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            text = text_states(self.text_encoder, tokens, mask)
            losses = self._sample(clean, condition, text, progress)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self.optimizer.step()
        return losses

    def _length(self, progress: float) -> int:
        """Latent frames of this step: short clips at first, for they are cheap."""
        if progress < 0.3:
            return (6, 6, 11)[self._steps % 3]
        return (21, 11, 21, 6)[self._steps % 4] if progress < 0.8 else 21

    def _sample(
        self, clean: torch.Tensor, condition: torch.Tensor, text: torch.Tensor, progress: float
    ) -> dict[str, torch.Tensor]:
        noise = torch.randn(clean.shape, generator=self._generator, device=clean.device)
        chance = min(0.75, 1.5 * progress)  # of going on from where the networks came to
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
            loss = F.mse_loss(end, clean)
            total = total + loss * ((1.0, 1.0, 1.0, 2.0)[index] / sigma**2)
            losses[f"step{index + 1}"] = loss.detach()
            state = state + (following - sigma) * velocity
        total.backward()
        losses[f"{clean.shape[2]}_latents_loss"] = total.detach()
        losses["last_frame"] = F.mse_loss(end[:, :, -1], clean[:, :, -1]).detach()
        losses["first_frame"] = F.mse_loss(end[:, :, 0], clean[:, :, 0]).detach()
        return losses

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self._modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._steps = state["steps"]


@torch.no_grad()
def sample(
    experts: tuple[Any, Any],
    condition: torch.Tensor,
    text: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Clean latents [n, c, t, h, w], as the pipeline samples them."""
    state = torch.randn(condition[:, 4:].shape, generator=generator, device=condition.device)
    schedule = sigmas()
    for sigma, following in pairwise(schedule):
        velocity = experts[sigma < BOUNDARY](
            hidden_states=torch.cat([state, condition], dim=1),
            timestep=torch.full((len(state),), 1000 * sigma, device=state.device),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        state = state + (following - sigma) * velocity
    return state
