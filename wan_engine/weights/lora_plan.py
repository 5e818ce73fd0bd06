"""Matches LoRA files with a checkpoint by their headers: which layers of which expert each changes,
and why a file cannot be used. It does not import torch, so errors appear before minutes of
loading."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wan_engine.catalog import Expert
from wan_engine.errors import LoraRefused
from wan_engine.weights.lora_file import Adapter, Tensor, read_header, shapes
from wan_engine.weights.lora_keys import Change, is_weight, read_keys, shown
from wan_engine.weights.video_models import LocatedLora

log = logging.getLogger(__name__)

COMPONENTS: Mapping[str, Expert] = {"transformer": "high", "transformer_2": "low"}
"""The experts of a pipeline, by the names of its parts."""

Parameters = Mapping[str, Tensor]

_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_LISTED = 3  # number of keys and reasons in a message


@dataclass(frozen=True)
class LoraPlan:
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


def tell_fused(plans: Sequence[LoraPlan]) -> None:
    """Log one line per fused file."""
    for one in plans:
        log.log(logging.WARNING if one.unused else logging.INFO, "fused %s", one.describe())


def plans_for(folder: Path, loras: Sequence[LocatedLora]) -> list[LoraPlan]:
    """Plan the changes of LoRA files to the checkpoint in `folder`. Only headers are read. Raises
    `LoraRefused`."""
    if not loras:
        return []
    parameters = parameters_in(folder)
    return [plan(lora, parameters) for lora in loras]


def parameters_in(folder: Path) -> dict[Expert, Parameters]:
    """The parameters of the experts of the checkpoint in `folder`, from the headers of its
    files."""
    return {
        expert: shapes(folder / component)
        for component, expert in COMPONENTS.items()
        if (folder / component).is_dir()
    }


def plan(lora: LocatedLora, parameters: Mapping[Expert, Parameters]) -> LoraPlan:
    """Match a file with the experts' parameters. Raises `LoraRefused` if it is not a LoRA file,
    matches nothing, or exceeds the allowed share of unused weights."""
    targets: tuple[Expert, ...] = ("high", "low") if lora.expert == "both" else (lora.expert,)
    experts = [expert for expert in targets if expert in parameters]
    if not experts:
        raise LoraRefused(
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
        raise _refusal(lora, counted, unused, why)
    return LoraPlan(lora, changes, header.adapter, len(counted), unused)


def _refuse_float8(lora: LocatedLora, parameters: Parameters) -> None:
    if any(one.dtype in _FLOAT8 for one in parameters.values()):
        raise LoraRefused(
            f"{lora.path.name} is not fused: this checkpoint is stored in float8, which is too "
            "coarse to add to",
            "Name one in bfloat16 in WAN_MODEL, or leave the file out",
        )


def _refusal(
    lora: LocatedLora, counted: Sequence[str], unused: Sequence[str], why: Mapping[str, str]
) -> LoraRefused:
    """The error for keys that match nothing, with the reasons and advice for the operator."""
    name, reasons = lora.path.name, _reasons(unused, why)
    if not counted:
        return LoraRefused(f"{name} is not a LoRA: it has no weights, only {shown(why)}")
    if len(unused) == len(counted):
        return LoraRefused(
            f"{name} has nothing for this model, which is another than it was made for: {reasons}"
        )
    share = math.ceil(100 * len(unused) / len(counted)) / 100
    return LoraRefused(
        f"{name} is not fused, for {len(unused)} of its {len(counted)} weights have no use here: "
        f"{reasons}",
        f"WAN_LORA_UNUSED={share:g} fuses the rest of them",
    )


def _reasons(unused: Iterable[str], why: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for key in unused:
        by_reason.setdefault(why.get(key, "it is not used"), []).append(key)
    listed = [f"{shown(keys, _LISTED)}: {reason}" for reason, keys in by_reason.items()]
    return "; ".join(listed[:_LISTED]) + (" ..." if len(listed) > _LISTED else "")
