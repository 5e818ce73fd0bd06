"""Fuses the LoRA files of a request into a loaded pipeline, and restores the original weights to
the bit.

    plain ── put in: each changed weight is set aside first ──> with the LoRA files
      ^                                                              │
      └───────────── taken out: what was set aside is put back ──────┘

Weights are changed in place, where the recipe keeps them, so that streamed and compiled blocks see
the new numbers. The original weights are kept in host memory. If there is no room, they are read
from the checkpoint again, as at a load. Matrices in 8 bits are too coarse to add to: their exact
numbers come from the checkpoint, and the sum is converted as at a load.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from wan_engine.catalog import Expert
from wan_engine.families import tensors
from wan_engine.families.float8 import Float8Linear, to_float8
from wan_engine.families.lora import Fusing
from wan_engine.runtime import memory
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import OnBytes
from wan_engine.weights import LocatedLora
from wan_engine.weights.lora_folder import ChosenLora
from wan_engine.weights.lora_plan import COMPONENTS, LoraPlan, plans_for, tell_fused

log = logging.getLogger(__name__)

_LEFT_FREE_BYTES = 6 * 10**9
"""Host memory that is not used for original weights, because decoded frames and ffmpeg need it."""

Layers = Mapping[str, Sequence[str]]
"""Names of parameters by layer, as in the checkpoint."""


class LoraSwap:
    """The LoRA files of requests in a loaded pipeline. `at_load` are the files that were fused when
    the checkpoint in `folder` was loaded. They stay in the weights. One thread at a time uses
    it."""

    def __init__(
        self,
        pipeline: Any,
        folder: Path,
        recipe: Recipe,
        at_load: Sequence[LocatedLora] = (),
    ) -> None:
        self.present: tuple[ChosenLora, ...] = ()
        self._experts = [
            _Weights(network, expert, folder / component, recipe, at_load)
            for component, expert in COMPONENTS.items()
            if (network := getattr(pipeline, component, None)) is not None
        ]

    @property
    def is_sound(self) -> bool:
        """Whether the weights are those of `present`. False after a change that failed halfway."""
        return bool(self.present) or not any(one.aside for one in self._experts)

    def set(self, wanted: Sequence[ChosenLora], on_bytes: OnBytes) -> None:
        """Make the pipeline have exactly the files `wanted`. Does nothing if it has them.

        `on_bytes` gets the bytes changed so far and the total. An error that it raises ends the
        change. After any error, the pipeline has no files, or `is_sound` is False. Raises
        `LoraRefused` for numbers that are not finite.
        """
        if tuple(wanted) == self.present:
            return
        began = time.monotonic()
        for one in self._experts:
            one.bring_home()
        plans = [each for lora in wanted for each in lora.plans]
        layers = [one.layers_of(plans) for one in self._experts]
        sizes = [one.size_bytes(of) for one, of in zip(self._experts, layers, strict=True)]
        out = [one.size_bytes(one.aside) for one in self._experts]
        told = _Told(sum(sizes) + sum(out), on_bytes)
        try:
            self._take_out(told.add)
            keep = sum(sizes) + _LEFT_FREE_BYTES <= memory.available_bytes()
            for one, of in zip(self._experts, layers, strict=True):
                one.put_in(plans, of, keep=keep, on_layer=told.add)
        except BaseException:
            self._take_out(lambda _bytes: None)
            raise
        self.present = tuple(wanted)
        tell_fused(plans)
        log.info(
            "LoRA files of requests in the model: %s; %.0f MB changed in %.1f s, plain in %s",
            ", ".join(map(str, wanted)) or "none",
            told.in_all / 1e6,
            time.monotonic() - began,
            "host memory" if wanted and keep else "the checkpoint" if wanted else "the model",
        )

    def _take_out(self, on_layer: Callable[[int], None]) -> None:
        self.present = ()
        for one in self._experts:
            one.take_out(on_layer)


class _Told:
    """Reports the number of changed bytes."""

    def __init__(self, in_all: int, on_bytes: OnBytes) -> None:
        self.in_all, self._on_bytes = in_all, on_bytes
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        self._on_bytes(self._done, self.in_all)


class _Weights:
    """The weights of one expert. `aside` has the original numbers of changed weights, by layer and
    name. It has no entry for numbers that are read from the checkpoint."""

    def __init__(
        self,
        network: Any,
        expert: Expert,
        folder: Path,
        recipe: Recipe,
        at_load: Sequence[LocatedLora],
    ) -> None:
        self.aside: dict[str, dict[str, list[torch.Tensor]]] = {}
        self._network, self._expert, self._folder = network, expert, folder
        self._device = torch.device(recipe.device)
        self._dtype: torch.dtype = getattr(torch, recipe.dtype)
        self._at_load = at_load
        self._native: Callable[[str], str] = getattr(type(network), "native_name", str)

    def layers_of(self, plans: Sequence[LoraPlan]) -> Layers:
        """The parameters that the plans change."""
        fusing = Fusing(plans, self._expert)
        return {layer: fusing.names(layer) for layer in fusing.layers}

    def size_bytes(self, layers: Layers | Mapping[str, Mapping[str, Any]]) -> int:
        """The bytes of these parameters in their present dtypes."""
        return sum(one.nbytes for of in layers.values() for name in of for one in self._held(name))

    def bring_home(self) -> None:
        """Move streamed blocks back to host memory, if a failed pass has left them on the device.
        Changes to them there would be lost."""
        for module in self._network.modules():
            registry = getattr(module, "_diffusers_hook", None)
            hook = registry.get_hook("group_offloading") if registry is not None else None
            if hook is not None:
                hook.group.offload_()

    def put_in(
        self,
        plans: Sequence[LoraPlan],
        layers: Layers,
        *,
        keep: bool,
        on_layer: Callable[[int], None],
    ) -> None:
        """Change the original weights. With `keep`, they are copied to host memory before."""
        coarse = {layer: of for layer, of in layers.items() if any(map(self._is_float8, of))}
        with Fusing(plans, self._expert) as fusing, closing(self._as_loaded(coarse)) as exact:
            for layer, names in layers.items():
                if layer in coarse:
                    plain: Mapping[str, torch.Tensor] = next(exact)
                else:
                    plain = {name: self._held(name)[0].detach() for name in names}
                changed = fusing.changed(layer, plain, self._device)
                self.aside[layer] = {
                    name: [_copy(one) for one in self._held(name)] if keep else [] for name in names
                }
                for name, value in changed.items():
                    self._write(name, value)
                on_layer(self.size_bytes({layer: names}))

    def take_out(self, on_layer: Callable[[int], None]) -> None:
        """Restore all original weights. If it is interrupted, the rest stays set aside."""
        absent = {layer: list(of) for layer, of in self.aside.items() if not all(of.values())}
        with closing(self._as_loaded(absent)) as exact:
            for layer, of in list(self.aside.items()):
                for name, value in (next(exact) if layer in absent else {}).items():
                    self._write(name, value)
                for name, values in of.items():
                    for one, value in zip(self._held(name), values, strict=False):
                        one.data.copy_(value)
                del self.aside[layer]
                on_layer(self.size_bytes({layer: list(of)}))

    def _as_loaded(self, layers: Layers) -> Generator[dict[str, torch.Tensor], None, None]:
        """The parameters of each layer as they are before a load converts them to 8 bits: read from
        the checkpoint, with the files of the load fused."""
        if not layers:
            return
        plans = plans_for(self._folder.parent, self._at_load)
        with Fusing(plans, self._expert) as fusing:
            names = {
                layer: list(dict.fromkeys((*of, *fusing.names(layer))))
                for layer, of in layers.items()
            }
            with closing(self._read(names)) as found:
                for layer, of in layers.items():
                    read = {name: next(found) for name in names[layer]}
                    if layer in fusing.layers:
                        read |= fusing.changed(layer, read)
                    yield {name: read[name] for name in of}

    def _read(self, layers: Layers) -> Generator[torch.Tensor, None, None]:
        entries = tensors.entries(self._folder)
        wanted = {name: entries[name] for of in layers.values() for name in of}

        def dtype_of(name: str, _own: torch.dtype) -> torch.dtype:
            held: torch.dtype = self._held(name)[0].dtype
            return self._dtype if self._is_float8(name) else held

        with closing(tensors.read(wanted, dtype_of)) as found:
            for _, tensor in found:
                yield tensor

    def _write(self, name: str, value: torch.Tensor) -> None:
        """Set a parameter in place, in 8 bits if it is stored so."""
        for one, part in zip(self._held(name), self._converted(name, value), strict=True):
            one.data.copy_(part.reshape(one.shape))

    def _converted(self, name: str, value: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from to_float8(value.to(self._device)) if self._is_float8(name) else (value,)

    def _is_float8(self, name: str) -> bool:
        return len(self._held(name)) > 1

    def _held(self, name: str) -> list[Any]:
        """The parameter, or the two of a matrix in 8 bits: its numbers and the scales of its
        rows."""
        path = self._native(name)
        owner, _, last = path.rpartition(".")
        module = self._network.get_submodule(owner)
        if isinstance(module, Float8Linear) and last == "weight":
            return [module.weight, module.scale]
        return [self._network.get_parameter(path)]


def _copy(parameter: Any) -> torch.Tensor:
    copied: torch.Tensor = parameter.detach().to("cpu", copy=True)
    return copied
