"""Fuses LoRA files into the weights of a network, so that they cost no time per job.

Every tensor of a file is used or named. What is done is what the files' makers define:

low-rank     `W += scale * alpha / rank * up @ down`, alpha being the rank where none is given
difference   `W += scale * diff`, `b += scale * diff_b`; norms, modulation and convolutions too
LoHa, LoKr   the product of two low-rank products, by elements or of Kronecker (LyCORIS)
DoRA         `W += scale * (m * V / |V| - W)`, `V = W + alpha / rank * up @ down`, the norm of each
             output, or of each input where the magnitudes lie along it (arXiv 2402.09353)

All is computed in float32 from what the layer is at the time, file by file, and rounded once to the
parameter's own type. One layer at a time is widened.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wan_engine.catalog import Expert
from wan_engine.errors import ConfigurationError, Warned
from wan_engine.weights import LocatedLora
from wan_engine.weights.lora_file import Adapter, Tensor, read_header, shapes
from wan_engine.weights.lora_keys import (
    Change,
    axis_of,
    is_weight,
    original,
    read_keys,
    shown,
)

log = logging.getLogger(__name__)

COMPONENTS: Mapping[str, Expert] = {"transformer": "high", "transformer_2": "low"}
"""The experts of a pipeline, by the names of its parts."""

Parameters = Mapping[str, Tensor]

_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_OF_BIAS = {"bias", "up_bias"}
_LISTED = 3  # number of keys and reasons in a message
_NORM_FLOOR = 1e-12  # of a row of zeros


@dataclass(frozen=True)
class Plan:
    """The changes that a file makes to each expert, and the keys that match nothing."""

    lora: LocatedLora
    changes: Mapping[Expert, Sequence[Change]]
    adapter: Adapter
    weights: int
    unused: Sequence[str]

    def describe(self) -> str:
        """A line for the log and `doctor`."""
        all_changes = [change for changes in self.changes.values() for change in changes]
        kinds = ", ".join(sorted({change.kind for change in all_changes}))
        layers = " + ".join(str(len(changes)) for changes in self.changes.values())
        used = self.weights - len(self.unused)
        left = f"; not used: {shown(self.unused)}" if self.unused else ""
        return (
            f"{self.lora.path.name} at {self.lora.scale:g} into {' and '.join(self.changes)}: "
            f"{kinds}, {used} of {self.weights} weights, {layers} layers{left}"
        )


def tell_fused(plans: Sequence[Plan]) -> None:
    """Log one line per fused file."""
    for one in plans:
        log.log(logging.WARNING if one.unused else logging.INFO, "fused %s", one.describe())


def plans_for(folder: Path, loras: Sequence[LocatedLora]) -> list[Plan]:
    """Plan the changes of LoRA files to the checkpoint in `folder`. Only headers are read, so that
    an error shows before minutes of loading."""
    if not loras:
        return []
    parameters = {
        expert: shapes(folder / component)
        for component, expert in COMPONENTS.items()
        if (folder / component).is_dir()
    }
    return [plan(lora, parameters) for lora in loras]


def describe(folder: Path, lora: LocatedLora) -> str:
    """A line about the changes of a LoRA file to the checkpoint in `folder`, `Warned` if a part of
    it matches nothing. Checks every number of the file. Raises `ConfigurationError` as `plans_for`
    does."""
    (planned,) = plans_for(folder, [lora])
    changes = (change for each in planned.changes.values() for change in each)
    keys = dict.fromkeys(key for change in changes for key in change.keys.values())
    with _open(lora.path) as file:
        for key in keys:
            _read(file, key, lora.path.name)
    return Warned(planned.describe()) if planned.unused else planned.describe()


def plan(lora: LocatedLora, parameters: Mapping[Expert, Parameters]) -> Plan:
    """Match a file with the experts' parameters. Raises `ConfigurationError` if it is no LoRA file,
    matches nothing, or exceeds the allowed share of unused weights."""
    targets: tuple[Expert, ...] = ("high", "low") if lora.expert == "both" else (lora.expert,)
    experts = [expert for expert in targets if expert in parameters]
    if not experts:
        raise ConfigurationError(
            f"{lora.path.name} is for the {lora.expert} expert, which this model does not have"
        )
    for expert in experts:
        _refuse_float8(lora, parameters[expert])
    header = read_header(lora.path)
    readings = {e: read_keys(header, parameters[e], low=e == "low") for e in experts}
    used = {
        key for one in readings.values() for change in one.changes for key in change.keys.values()
    }
    counted = [key for key in header.tensors if is_weight(key)]
    unused = [key for key in counted if key not in used]
    why = {key: words for one in readings.values() for key, words in one.refused.items()}
    changes = {expert: one.changes for expert, one in readings.items() if one.changes}
    if not changes or len(unused) > lora.unused * len(counted):
        raise ConfigurationError(_refusal(lora, counted, unused, why))
    return Plan(lora, changes, header.adapter, len(counted), unused)


def fuse(network: Any, expert: Expert, plans: Sequence[Plan]) -> None:
    """Apply the plans to a network. Raises `ConfigurationError` for a file with a number that is
    not finite; the network is unusable then."""
    fuse_into(dict(network.named_parameters()), expert, plans)


def fuse_into(parameters: Mapping[str, Any], expert: Expert, plans: Sequence[Plan]) -> None:
    """`fuse`, for a part of a network's parameters that consists of whole layers."""
    with ExitStack() as stack, torch.no_grad():
        files = [
            (_Factors(stack.enter_context(_open(one.lora.path)), one), one.changes.get(expert, ()))
            for one in plans
        ]
        by_layer: dict[str, list[tuple[_Factors, Change]]] = {}
        for factors, changes in files:
            for change in (one for one in changes if one.weight in parameters):
                by_layer.setdefault(change.layer, []).append((factors, change))
        for work in by_layer.values():
            _change_layer(parameters, work)


def _change_layer(parameters: Mapping[str, Any], work: Sequence[tuple[_Factors, Change]]) -> None:
    wide: dict[str, torch.Tensor] = {}

    def widened(name: str) -> torch.Tensor:
        if name not in wide:
            wide[name] = (
                parameters[name]
                .detach()
                .to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            )
        return wide[name]

    for factors, change in work:
        if set(change.keys) - _OF_BIAS:
            factors.change_weight(change, widened(change.weight))
        if change.bias and set(change.keys) & _OF_BIAS:
            factors.change_bias(change, widened(change.bias))
    for name, value in wide.items():
        rounded = value.to(parameters[name].dtype)
        if not _is_finite(rounded):
            raise ConfigurationError(f"The LoRA files make {name} infinite: lower their scales")
        parameters[name].data = rounded


class _Factors:
    """The tensors of an open file, multiplied by the formula of its kind, in float32 and in
    place."""

    def __init__(self, file: Any, planned: Plan) -> None:
        self._file, self._plan = file, planned
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
        return _read(self._file, change.keys[role], self._plan.lora.path.name)


def _norm(matrix: torch.Tensor, axis: int) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(matrix, dim=axis, keepdim=True)
    return norm.clamp(min=_NORM_FLOOR)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError):
        read_header(path)  # says why
        raise


def _read(file: Any, key: str, name: str) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(key)
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.float()  # float8 has no arithmetic of its own
    if not _is_finite(tensor):
        raise ConfigurationError(
            f"{name} cannot be fused: {key} has numbers that are not finite (NaN or infinite)"
        )
    return tensor.float()


def _is_finite(tensor: torch.Tensor) -> bool:
    # If any number is not finite, the minimum or maximum is not. A tenth of the time of `isfinite`.
    return all(math.isfinite(end.item()) for end in tensor.aminmax())


def _refuse_float8(lora: LocatedLora, parameters: Parameters) -> None:
    if any(one.dtype in _FLOAT8 for one in parameters.values()):
        raise ConfigurationError(
            f"{lora.path.name} is not fused: this checkpoint is stored in float8, which is too "
            "coarse to add to. Name one in bfloat16 in WAN_MODEL, or leave the file out"
        )


def _refusal(
    lora: LocatedLora, counted: Sequence[str], unused: Sequence[str], why: Mapping[str, str]
) -> str:
    """A message about the keys that match nothing, with the reasons and what the operator may
    do."""
    name, reasons = lora.path.name, _reasons(unused, why)
    if not counted:
        return f"{name} is not a LoRA: it has no weights, only {shown(why)}"
    if len(unused) == len(counted):
        return (
            f"{name} has nothing for this model, which is another than it was made for: {reasons}"
        )
    share = math.ceil(100 * len(unused) / len(counted)) / 100
    return (
        f"{name} is not fused, for {len(unused)} of its {len(counted)} weights have no use here: "
        f"{reasons}. WAN_LORA_UNUSED={share:g} fuses the rest of them"
    )


def _reasons(unused: Iterable[str], why: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for key in unused:
        by_reason.setdefault(why.get(key, "it is not used"), []).append(key)
    listed = [f"{shown(keys, _LISTED)}: {reason}" for reason, keys in by_reason.items()]
    return "; ".join(listed[:_LISTED]) + (" ..." if len(listed) > _LISTED else "")
