"""Initializes the experts so that each token finds the place in the picture that it shows.

A camera move is an offset of every token from where its content lies in the first frame. Gradient
descent does not find this method in the minutes that a toy is worth, so the networks begin with it,
as far as possible:

- the first block compares attention to the known frame with attention to the token itself, which
  measures how long ago the picture was and where in it the token is;
- a loss at `Aim.block` turns the prompt and these measures into the offset (`Aim.loss`);
- the block after it copies the condition from that place. Without an offset it repeats the frame.

Rotations of queries and keys are the only positions in this network. Attention with weights
exp(rising) against a constant is a logistic function of the distance, and so measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from builder.train_toy.moves import directions, offsets_px

_NOISE, _MASK, _CONDITION = slice(0, 64), slice(64, 80), slice(80, 144)
_CONSTANTS = (144, 145)
MEASURES = range(146, 151)
_MOVE = slice(151, 154)
_ZOOM, _RIGHT, _DOWN = 151, (154, 155, 156), (157, 158, 159)
"""Channels of the residual stream: inputs in the order of the patch embedding, then our own."""

_LOUD = 24.0
"""Two constants of opposite sign. They are so large that the other channels hardly change the norms
of layers."""
_SPREAD = math.sqrt((2 * _LOUD**2 + 140) / 160)  # of a token's channels
_TOKEN_PX = 16  # two latents of eight pixels


@dataclass(frozen=True)
class Aim:
    """The block whose output contains the move in `_MOVE` and the offsets after it."""

    block: int

    def loss(self, hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the loss of the `hidden` states after the block, against `targets`."""
        return F.mse_loss(hidden[..., _MOVE.start :].float(), wanted)

    def hidden(
        self, expert: Any, state: torch.Tensor, sigma: float, text: torch.Tensor
    ) -> torch.Tensor:
        """Return the states after the block for the transformer's inputs. Later blocks do not
        run."""
        timestep = torch.full((len(state),), 1000 * sigma, device=state.device)
        _, modulation, text, _ = expert.condition_embedder(timestep, text)
        hidden = expert.patch_embedding(state).flatten(2).transpose(1, 2)
        for block in expert.blocks[: self.block + 1]:
            hidden = block(hidden, text, modulation.unflatten(1, (6, -1)), expert.rope(state))
        return hidden


def targets(moves: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
    """Return the target after the block, [n, tokens, 9], for latents [frames, height, width].

    The channels are the move's zoom, right and down in -1..1, then for the offset in tokens to the
    right and down: its sine, one minus its cosine, and its half.
    """
    index = torch.arange(frames, device=moves.device)
    # Four frames share a latent, which shows about the third of them.
    times = (4.0 * index - 1).clamp_min(0)[None]
    offset = offsets_px(moves, times, 8 * height, 8 * width, _TOKEN_PX) / _TOKEN_PX
    offset = offset.flatten(2).transpose(1, 2)  # [n, tokens, 2]
    values = torch.stack([offset.sin(), 1 - offset.cos(), offset / 2], dim=-1)
    move = directions(moves)[:, None].expand(-1, values.shape[1], -1)
    return torch.cat([move, values.flatten(2)], dim=2)


def initialise(expert: Any, grey: torch.Tensor, aim: Aim) -> None:
    """Initialize an expert. `grey`: the condition's 16 latents without a picture."""
    _let_through(expert)
    for block in expert.blocks:
        _make_quiet(block)
    _measure(expert.blocks[0].attn1)
    _multiply(expert.blocks[: aim.block + 1])
    _copy(expert.blocks[aim.block + 1].attn1, grey)
    _see_words(expert)


def keep_gates(expert: Any) -> None:
    """Exclude the gates of moves and offsets from training on time.

    One projection gates these channels in all blocks. Blocks that do not use the channels would
    otherwise close their gates in the blocks that make them.
    """
    projection = expert.condition_embedder.time_proj
    rows = [part * 160 + channel for part in (2, 5) for channel in range(_MOVE.start, 160)]

    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone()
        kept[rows] = 0
        return kept

    for parameter in (projection.weight, projection.bias):
        parameter.register_hook(keep)


def _let_through(expert: Any) -> None:
    """Give each input its own channel. The output is (noisy - condition) / sigma."""
    width = expert.patch_embedding.weight.shape[0]
    outputs = 64
    with torch.no_grad():
        weight = torch.eye(144, width).T  # input c, patch place p is channel 4 c + p
        expert.patch_embedding.weight.copy_(weight.view_as(expert.patch_embedding.weight))
        expert.patch_embedding.bias.zero_()
        expert.patch_embedding.bias[_CONSTANTS[0]] = _LOUD
        expert.patch_embedding.bias[_CONSTANTS[1]] = -_LOUD
        # The order of the output is patch place, then channel.
        noisy = torch.arange(outputs).view(16, 4).T.flatten()
        expert.proj_out.weight.mul_(0.02)
        expert.proj_out.weight[:, list(_CONSTANTS)] = 0
        expert.proj_out.bias.zero_()
        rows = torch.arange(outputs)
        expert.proj_out.weight[rows, noisy] += _SPREAD
        expert.proj_out.weight[rows, noisy + _CONDITION.start] -= _SPREAD
        expert.scale_shift_table.zero_()


def scale_by_time(expert: Any, sigmas: list[float]) -> None:
    """Begin with 1 / sigma as the gain of the output, at the expert's own `sigmas`.

    The time embedding is both scale and shift of the last norm. Equal values for noisy and
    condition channels cancel the shift in their difference.
    """
    embedder = expert.condition_embedder
    with torch.no_grad():
        steps = embedder.timesteps_proj(torch.tensor([1000 * sigma for sigma in sigmas]))
        hidden = embedder.time_embedder.act(embedder.time_embedder.linear_1(steps))
        wanted = torch.tensor([1 / sigma - 1 for sigma in sigmas])
        row = torch.linalg.lstsq(hidden, wanted[:, None]).solution[:, 0]
        linear = embedder.time_embedder.linear_2
        linear.weight.mul_(0.1)
        linear.bias.zero_()
        for channels in (_NOISE, _CONDITION):
            linear.weight[channels] = row
        embedder.time_proj.weight.mul_(0.05)
        embedder.time_proj.bias.zero_()


def _make_quiet(block: Any) -> None:
    """Make norms return the stream, with the constants as 1 and -1, and make residual branches
    small."""
    gain = torch.full((block.scale_shift_table.shape[-1],), _SPREAD)
    gain[list(_CONSTANTS)] = _SPREAD / _LOUD
    with torch.no_grad():
        block.scale_shift_table.zero_()
        block.scale_shift_table[0, [1, 4]] = gain - 1
        block.scale_shift_table[0, [2, 5]] = 1.0
        block.norm2.weight.copy_(gain)
        block.norm2.bias.zero_()
        for linear in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            linear.weight.mul_(0.1)
            linear.bias.zero_()
        for linear in (block.attn1.to_q, block.attn1.to_k):
            linear.weight.mul_(0.1)


def _see_words(expert: Any) -> None:
    """Start with cross-attention that ignores padding.

    A prompt is about twenty states among 512 that are zero, so uniform attention would give its
    words a thirtieth of the whole. Without biases a zero state has the score 0, and gains make the
    scores of words large in either direction.
    """
    text = expert.condition_embedder.text_embedder
    with torch.no_grad():
        for layer in (text.linear_1, text.linear_2, *(b.attn2.to_k for b in expert.blocks)):
            layer.bias.zero_()
        for block in expert.blocks:
            block.attn2.norm_q.weight.fill_(2.0)
            block.attn2.norm_k.weight.fill_(2.0)


class _Rotations:
    """Queries or keys of one attention, set pair by pair for each head's rotations.

    An entry is a constant, or applies only to tokens of the known frame (`known=1`) or only to all
    others (`known=0`). Scores are products of the entries, divided by the root of the head's size.
    """

    def __init__(self, linear: Any, norm: Any, heads: int, spare_turn: int) -> None:
        self._linear, self._norm, self._spare_turn = linear, norm, spare_turn
        self._size = linear.weight.shape[0] // heads
        side = 2 * (self._size // 6)
        self._start = {"t": 0, "h": self._size - 2 * side, "w": self._size - side}
        self._known, self._others = torch.zeros(2, linear.weight.shape[0])
        self._reads: list[tuple[int, int, float]] = []

    def dim(self, head: int, axis: str, turn: int) -> int:
        return head * self._size + self._start[axis] + 2 * turn

    def add(self, dim: int, score: float, *, angle: float = 0.0, known: int | None = None) -> None:
        """Add the pair at `dim`. Two such entries give `score` if they point in the same
        direction."""
        length = math.sqrt(score * math.sqrt(self._size))
        for part, value in ((dim, math.cos(angle)), (dim + 1, math.sin(angle))):
            if known != 0:
                self._known[part] += length * value
            if known != 1:
                self._others[part] += length * value

    def read(self, dim: int, channel: int, score: float, factor: float) -> None:
        """Add a channel of the stream, times `factor`, to an entry of size `score`."""
        self._reads.append((dim, channel, factor * math.sqrt(score * math.sqrt(self._size))))

    def write(self) -> None:
        # The norm over all heads must get equal sizes, with and without the mask.
        energy = [tensor.square().sum() for tensor in (self._known, self._others)]
        missing = (energy[0] - energy[1]).abs().sqrt()
        smaller = self._others if energy[0] > energy[1] else self._known
        smaller[self.dim(4, "t", self._spare_turn)] += missing
        with torch.no_grad():
            self._linear.bias.copy_(self._others)
            mask = (self._known - self._others)[:, None] / 16
            self._linear.weight[:, _MASK] += mask
            for dim, channel, factor in self._reads:
                self._linear.weight[dim, channel] += factor
            self._norm.weight.fill_(float(max(energy) / len(self._known)) ** 0.5)


def _rotations(attention: Any) -> tuple[_Rotations, _Rotations]:
    return (
        _Rotations(attention.to_q, attention.norm_q, attention.heads, 3),
        _Rotations(attention.to_k, attention.norm_k, attention.heads, 4),
    )


def _measure(attention: Any) -> None:
    """Initialize five heads that measure the time since the known frame, and the place from the
    right, left, bottom and top."""
    query, key = _rotations(attention)
    for linear in (attention.to_q, attention.to_k):
        linear.weight.detach().zero_()
    sharp = 6.0
    for head, (axis, way) in enumerate((("t", 1), ("w", 1), ("w", -1), ("h", 1), ("h", -1))):
        for place in "thw":
            for turn in (0, 1):
                dim = query.dim(head, place, turn)
                query.add(dim, sharp)
                # The known frame is compared in the other axis only. The token itself is compared
                # in all axes.
                same = None if place not in (axis, "t") else 0
                key.add(dim, sharp, known=same)
        bonus, slope = (14.1, 5.0) if axis == "t" else (20.0, 14.0)
        always = query.dim(head, "t", 5)
        query.add(always, bonus)
        key.add(always, bonus, known=1)
        ramp = query.dim(head, axis, 2)
        query.add(ramp, slope, angle=way * math.pi / 2)
        key.add(ramp, slope, known=1)
    query.write()
    key.write()
    with torch.no_grad():
        for head, channel in enumerate(MEASURES):
            dim = query.dim(head, "t", 0)
            attention.to_v.weight[dim] = 0
            attention.to_v.weight[dim, _MASK] = 1 / 16
            attention.to_v.bias[dim] = 0
            attention.to_out[0].weight[channel] = 0
            attention.to_out[0].weight[:, dim] = 0
            attention.to_out[0].weight[channel, dim] = 2.0
            attention.to_out[0].bias[channel] = -1.0


def _multiply(blocks: Any) -> None:
    """Begin with zoom times place times time in `blocks`, the last of which is the aim's.

    A zoom is such a product. If it is missing, no gradient reaches its factors. If there is a block
    before, it adds the time: the place's two measures fall with time.
    """
    clock, right, left, bottom, top = list(MEASURES)
    places = ({left: 1.0, right: -1.0}, {top: 1.0, bottom: -1.0})
    for index, (place, (sine, _, half)) in enumerate(zip(places, (_RIGHT, _DOWN), strict=True)):
        if len(blocks) > 1:
            # The clock goes from 0.5 to -0.8 in 5 s. The output is place * (0.5 - clock) / 1.3,
            # minus place.
            outputs = {channel: way / 2 for channel, way in place.items()}
            units = range(6 * index, 6 * index + 6)
            _add_product(blocks[-2].ffn, units[:4], {clock: 1.0}, place, -0.77, outputs)
            _add_line(blocks[-2].ffn, units[4:], place, -0.615, outputs)
        units = range(4 * index, 4 * index + 4)
        _add_product(blocks[-1].ffn, units, {_ZOOM: 1.0}, place, -0.6, {sine: 1.3, half: 1.0})


def _add_product(
    ffn: Any,
    units: Sequence[int],
    one: dict[int, float],
    other: dict[int, float],
    size: float,
    outputs: dict[int, float],
) -> None:
    """Write `size` times the product of two sums of channels into `outputs`, with four `units`.

    GELU(z) + GELU(-z) is about 0.8 z^2 below 1. The difference of the squares of a sum and a
    difference is four times the product.
    """
    given = iter(units)
    for sign in (1.0, -1.0):
        for way in (1.0, -1.0):
            reads = {channel: way * factor for channel, factor in one.items()}
            reads |= {channel: way * sign * factor for channel, factor in other.items()}
            writes = {channel: size * sign * factor / 3.2 for channel, factor in outputs.items()}
            _set_unit(ffn, next(given), reads, writes)


def _add_line(
    ffn: Any, units: Sequence[int], read: dict[int, float], size: float, outputs: dict[int, float]
) -> None:
    """Write `size` times a sum of channels into `outputs`: GELU(z) - GELU(-z) is z."""
    for unit, way in zip(units, (1.0, -1.0), strict=True):
        reads = {channel: way * factor for channel, factor in read.items()}
        writes = {channel: way * size * factor for channel, factor in outputs.items()}
        _set_unit(ffn, unit, reads, writes)


def _set_unit(ffn: Any, unit: int, reads: dict[int, float], writes: dict[int, float]) -> None:
    first, second = ffn.net[0].proj, ffn.net[2]
    with torch.no_grad():
        first.weight[unit] = 0
        first.bias[unit] = 0
        second.weight[:, unit] = 0
        for channel, factor in reads.items():
            first.weight[unit, channel] = factor
        for channel, factor in writes.items():
            second.weight[channel, unit] = factor


def _copy(attention: Any, grey: torch.Tensor) -> None:
    """Initialize heads that attend to the known frame where the offset points. Two of them copy its
    condition."""
    query, key = _rotations(attention)
    aside = {2: ("w", 0.5), 3: ("w", -0.5), 4: ("h", 0.5)}  # half a token beside it
    for head in range(attention.heads):
        for axis, (sine, cosine, half) in (("w", _RIGHT), ("h", _DOWN)):
            extra = aside[head][1] if head in aside and aside[head][0] == axis else 0.0
            for turn, score in ((0, 10.0), (1, 10.0)):
                frequency = 10000.0 ** (-turn / 5)
                dim = query.dim(head, axis, turn)
                query.add(dim, score, angle=extra * frequency)
                key.add(dim, score, known=1)
                if turn == 0:
                    query.read(dim, cosine, score, -math.cos(extra))
                    query.read(dim, sine, score, -math.sin(extra))
                    query.read(dim + 1, sine, score, math.cos(extra))
                    query.read(dim + 1, cosine, score, -math.sin(extra))
                else:
                    query.read(dim + 1, half, score, 2 * frequency)
        away = query.dim(head, "t", 5)  # the known frame needs no copy
        query.add(away, 60.0, known=1)
        key.add(away, 60.0, known=0)
    query.write()
    key.write()
    size = attention.to_v.weight.shape[0] // attention.heads
    with torch.no_grad():
        for index in range(2 * size):
            attention.to_v.weight[index] = 0
            attention.to_v.weight[index, _CONDITION.start + index] = 1
            attention.to_out[0].weight[:, index] = 0
            attention.to_out[0].weight[_CONDITION.start + index, index] = 1
        attention.to_v.bias[: 2 * size] = -grey.repeat_interleave(4)
