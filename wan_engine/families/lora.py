"""Fuses LoRA files into the weights of a network, so that they cost no time per job.

Every tensor of a file is used, or named in an error. The formulas are those of the files' authors:

low-rank     `W += scale * alpha / rank * up @ down`, alpha being the rank where none is given
difference   `W += scale * diff`, `b += scale * diff_b`; norms, modulation and convolutions too
LoHa, LoKr   the product of two low-rank products, by elements or of Kronecker (LyCORIS)
DoRA         `W += scale * (m * V / |V| - W)`, `V = W + alpha / rank * up @ down`, the norm of each
             output, or of each input where the magnitudes lie along it (arXiv 2402.09353)

All changes are computed in float32 from the present weights of the layer, file by file, and rounded
once to the parameter's own dtype. Only one layer at a time is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from wan_engine.catalog import Expert
from wan_engine.errors import LoraRefused, Warned
from wan_engine.weights import LocatedLora
from wan_engine.weights.lora_file import read_header
from wan_engine.weights.lora_keys import Change, axis_of, original
from wan_engine.weights.lora_plan import LoraPlan, plans_for

_CPU = torch.device("cpu")
_OF_BIAS = {"bias", "up_bias"}
_NORM_FLOOR = 1e-12  # for a row of zeros


def describe(folder: Path, lora: LocatedLora) -> str:
    """A line about the changes of a LoRA file to the checkpoint in `folder`, `Warned` if parts of
    the file match nothing. Checks every number of the file. Raises `LoraRefused` as `plans_for`
    does."""
    (planned,) = plans_for(folder, [lora])
    changes = (change for each in planned.changes.values() for change in each)
    keys = dict.fromkeys(key for change in changes for key in change.keys.values())
    with _open(lora.path) as file:
        for key in keys:
            _read(file, key, lora.path.name)
    return Warned(planned.describe()) if planned.unused else planned.describe()


def fuse(network: Any, expert: Expert, plans: Sequence[LoraPlan]) -> None:
    """Apply the plans to a network. Raises `LoraRefused` for a file with a number that is not
    finite. The network is then unusable."""
    fuse_into(dict(network.named_parameters()), expert, plans)


def fuse_into(parameters: Mapping[str, Any], expert: Expert, plans: Sequence[LoraPlan]) -> None:
    """`fuse` for a part of a network's parameters that contains whole layers."""
    with Fusing(plans, expert) as fusing:
        for layer in fusing.layers:
            if fusing.is_in(layer, parameters):
                for name, value in fusing.changed(layer, parameters).items():
                    parameters[name].data = value


class Fusing:
    """The changes that plans make to an expert, by layer. Their files are open inside the `with`
    block."""

    def __init__(self, plans: Sequence[LoraPlan], expert: Expert) -> None:
        self.layers: dict[str, list[tuple[LoraPlan, Change]]] = {}
        for one in plans:
            for change in one.changes.get(expert, ()):
                self.layers.setdefault(change.layer, []).append((one, change))
        self._plans = plans
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._files = {
            one.lora.path: self._stack.enter_context(_open(one.lora.path)) for one in self._plans
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def is_in(self, layer: str, parameters: Mapping[str, Any]) -> bool:
        """Whether the layer has these parameters."""
        return self.layers[layer][0][1].weight in parameters

    def names(self, layer: str) -> list[str]:
        """The parameters of the layer that change. Empty for a layer without changes."""
        found = []
        for _, change in self.layers.get(layer, ()):
            if set(change.keys) - _OF_BIAS:
                found.append(change.weight)
            if change.bias and set(change.keys) & _OF_BIAS:
                found.append(change.bias)
        return list(dict.fromkeys(found))

    @torch.no_grad()
    def changed(
        self, layer: str, parameters: Mapping[str, Any], device: torch.device = _CPU
    ) -> dict[str, torch.Tensor]:
        """The new values of the layer's `names`, in the dtypes of `parameters`, which are not
        changed. Computed on `device`. Raises `LoraRefused` for numbers that are not finite."""
        wide = {
            name: parameters[name]
            .detach()
            .to(
                device=device,
                dtype=torch.float32,
                copy=True,
                memory_format=torch.contiguous_format,
            )
            for name in self.names(layer)
        }
        for planned, change in self.layers[layer]:
            factors = _Factors(self._files[planned.lora.path], planned, device)
            if change.weight in wide and set(change.keys) - _OF_BIAS:
                factors.change_weight(change, wide[change.weight])
            if change.bias in wide and set(change.keys) & _OF_BIAS:
                factors.change_bias(change, wide[change.bias])
        new = {name: value.to(parameters[name].dtype) for name, value in wide.items()}
        for name, value in new.items():
            if not _is_finite(value):
                raise LoraRefused(f"The LoRA files make {name} infinite: lower their scales")
        return new


class _Factors:
    """The tensors of an open file, multiplied by the formula of its kind, in float32 and in
    place."""

    def __init__(self, file: Any, planned: LoraPlan, device: torch.device) -> None:
        self._file, self._plan, self._device = file, planned, device
        self._scale = planned.lora.scale

    def change_weight(self, change: Change, weight: torch.Tensor) -> None:
        """Apply the file's change to `weight`."""
        keys = change.keys
        if "magnitude" in keys:
            whole = weight.clone()
            self._add_pair(change, whole, 1)
            weight.lerp_(self._decomposed(change, whole), self._scale)
            return
        if "down" in keys:
            self._add_pair(change, weight, self._scale)
        for delta in self._products(change):
            weight.add_(delta.reshape(weight.shape), alpha=self._scale)

    def change_bias(self, change: Change, bias: torch.Tensor) -> None:
        """Apply the file's change to `bias`."""
        if "bias" in change.keys:
            bias.add_(self._get(change, "bias").reshape(bias.shape), alpha=self._scale)
        if "up_bias" in change.keys:
            factor = self._factor(change, self._get(change, "down").shape[0])
            added = self._get(change, "up_bias").reshape(bias.shape)
            bias.add_(added, alpha=self._scale * factor)

    def _add_pair(self, change: Change, weight: torch.Tensor, scale: float) -> None:
        up, down = self._matrix(change, "up"), self._matrix(change, "down")
        scale *= self._factor(change, down.shape[0])
        if "mid" in change.keys:  # a third convolution between the two (LoCon)
            mid = self._get(change, "mid")
            product = torch.einsum("ij...,pi,jr->pr...", mid, up, down)
            weight.add_(product.reshape(weight.shape), alpha=scale)
        else:
            weight.view(weight.shape[0], -1).addmm_(up, down, alpha=scale)

    def _products(self, change: Change) -> Iterator[torch.Tensor]:
        if "hada_w1_a" in change.keys:
            yield self._hadamard(change)
        if any(role.startswith("lokr") for role in change.keys):
            yield self._kronecker(change)
        if "weight" in change.keys:
            yield self._get(change, "weight")

    def _hadamard(self, change: Change) -> torch.Tensor:
        first, second = (
            self._matrix(change, f"hada_w{one}_a") @ self._matrix(change, f"hada_w{one}_b")
            for one in "12"
        )
        return self._factor(change, self._get(change, "hada_w1_b").shape[0]) * first * second

    def _kronecker(self, change: Change) -> torch.Tensor:
        first, second = (self._kronecker_part(change, one) for one in "12")
        halves = [key for key in ("lokr_w1_b", "lokr_w2_b") if key in change.keys]
        if not halves and "alpha" in change.keys:
            return torch.kron(first, second)  # LyCORIS ignores alpha for full matrices
        rank = self._get(change, halves[-1]).shape[0] if halves else None
        return self._factor(change, rank) * torch.kron(first, second)

    def _kronecker_part(self, change: Change, one: str) -> torch.Tensor:
        if f"lokr_w{one}" in change.keys:
            return self._matrix(change, f"lokr_w{one}")
        left, right = (self._matrix(change, f"lokr_w{one}_{half}") for half in "ab")
        return left @ right

    def _decomposed(self, change: Change, whole: torch.Tensor) -> torch.Tensor:
        magnitude = self._get(change, "magnitude")
        if axis_of(tuple(magnitude.shape), tuple(whole.shape)) == 1:
            return whole * (magnitude / _norm(whole, 0))
        rows = whole.flatten(1)
        return (rows * (magnitude.reshape(-1, 1) / _norm(rows, 1))).reshape(whole.shape)

    def _factor(self, change: Change, rank: int | None) -> float:
        if "alpha" in change.keys and rank:
            return self._get(change, "alpha").item() / rank
        return self._plan.adapter.factor((change.layer, original(change.layer)), rank)

    def _matrix(self, change: Change, role: str) -> torch.Tensor:
        """The weight as a matrix: rows, and all other axes as columns, in the order of a
        convolution's weight."""
        tensor = self._get(change, role)
        return tensor.reshape(tensor.shape[0], -1)

    def _get(self, change: Change, role: str) -> torch.Tensor:
        return _read(self._file, change.keys[role], self._plan.lora.path.name, self._device)


def _norm(matrix: torch.Tensor, axis: int) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(matrix, dim=axis, keepdim=True)
    return norm.clamp(min=_NORM_FLOOR)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError):
        read_header(path)  # raises the reason
        raise


def _read(file: Any, key: str, name: str, device: torch.device = _CPU) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(key).to(device)
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.float()  # float8 supports no arithmetic
    if not _is_finite(tensor):
        raise LoraRefused(
            f"{name} cannot be fused: {key} has numbers that are not finite (NaN or infinite)"
        )
    return tensor.float()


def _is_finite(tensor: torch.Tensor) -> bool:
    # The minimum or maximum is not finite if any number is not. This takes a tenth of the time of
    # `isfinite`.
    return all(math.isfinite(end.item()) for end in tensor.aminmax())
