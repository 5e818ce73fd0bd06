"""A pipeline from its files, one network at a time: read, LoRA files fused, converted, placed.

So host memory holds one network and what the recipe keeps there, whatever the model is. The experts
come first: they are the largest, and the host is empty then. Small parts (tokenizer, scheduler) and
their rules are diffusers' own: it is given the networks.
"""

from __future__ import annotations

import importlib
import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin

from wan_engine.errors import ConfigurationError
from wan_engine.families import tensors
from wan_engine.families.continuation import ContinuingPipeline
from wan_engine.families.lora import COMPONENTS, Plan, fuse, plans_for, tell_fused
from wan_engine.families.placement import finish, settle
from wan_engine.runtime import memory
from wan_engine.runtime.faults import chain
from wan_engine.runtime.recipes import Recipe
from wan_engine.weights import LoraWeights
from wan_engine.weights.files import read_json
from wan_engine.weights.lora_keys import shown

log = logging.getLogger(__name__)

OnBytes = Callable[[int, int], None]
"""Called with the bytes that are loaded and those in all. What it raises ends the load."""

_LIBRARIES = ("diffusers", "transformers")
_TOLD_EVERY_BYTES = 64 * 1024 * 1024


def load_pipeline(
    folder: Path,
    recipe: Recipe,
    loras: Sequence[LoraWeights] = (),
    on_bytes: OnBytes = lambda _done, _all: None,
) -> Any:
    """The pipeline in `folder` (diffusers layout), as `recipe` has it.

    The VAE is float32, for what is encoded stays in the picture for good. `on_bytes` is called
    before each network, within the large ones, and at the end; what it raises ends the load and
    nothing is left of it. LoRA files are looked at first: what is wrong with one is told before
    minutes of loading. Raises `ConfigurationError` for files that do not fit.
    """
    plans = plans_for(folder, loras)
    index = read_json(folder / "model_index.json")
    parts = [
        _Part(name, folder / name, kind)
        for name, entry in index.items()
        if (kind := _network_class(entry)) is not None
    ]
    parts.sort(key=lambda part: part.name not in COMPONENTS)
    try:
        return _load(folder, recipe, parts, plans, on_bytes)
    except BaseException as error:
        for one in chain(error):
            traceback.clear_frames(one.__traceback__)  # they hold networks
        memory.free_accelerator()
        raise


def _load(
    folder: Path,
    recipe: Recipe,
    parts: Sequence[_Part],
    plans: Sequence[Plan],
    on_bytes: OnBytes,
) -> Any:
    progress = _Progress(sum(part.size_bytes for part in parts), on_bytes)
    networks: dict[str, Any] = {}
    for part in parts:
        progress.tell()
        networks[part.name] = _one_network(part, recipe, plans, progress)
    tell_fused(plans)
    pipeline = ContinuingPipeline.from_pretrained(str(folder), local_files_only=True, **networks)
    finish(pipeline, recipe)
    progress.tell()
    return pipeline


def _one_network(part: _Part, recipe: Recipe, plans: Sequence[Plan], progress: _Progress) -> Any:
    dtype = torch.float32 if part.name == "vae" else getattr(torch, recipe.dtype)
    network = part.read(dtype, progress)
    if part.name in COMPONENTS:
        fuse(network, COMPONENTS[part.name], plans)
    settle(part.name, network, recipe)
    return network


class _Progress:
    """Tells of bytes, not too often."""

    def __init__(self, in_all: int, on_bytes: OnBytes) -> None:
        self._in_all, self._on_bytes = in_all, on_bytes
        self._loaded = self._told = 0

    def add(self, count: int) -> None:
        """So many bytes more are loaded."""
        self._loaded += count
        if self._loaded - self._told >= _TOLD_EVERY_BYTES:
            self.tell()

    def tell(self) -> None:
        self._told = self._loaded
        self._on_bytes(self._loaded, self._in_all)


class _Part:
    """The folder of one network, of which the headers are read at once."""

    def __init__(self, name: str, folder: Path, kind: Any) -> None:
        self.name = name
        self._folder, self._kind = folder, kind
        self._entries = tensors.entries(folder)
        self.size_bytes = sum(entry.size_bytes for entry in self._entries.values())

    def read(self, dtype: torch.dtype, progress: _Progress) -> Any:
        """The network in host memory. Raises `ConfigurationError` for weights that do not fit."""
        if issubclass(self._kind, ModelMixin):
            return self._of_diffusers(dtype, progress)
        return self._of_transformers(dtype, progress)

    def _of_diffusers(self, dtype: torch.dtype, progress: _Progress) -> Any:
        wide = tuple(self._kind._keep_in_fp32_modules or ())

        def dtype_of(name: str) -> torch.dtype:
            return torch.float32 if any(one in name.split(".") for one in wide) else dtype

        with init_empty_weights():
            network = self._kind.from_config(self._kind.load_config(self._folder))
        state = self._state(dtype_of, progress)
        self._require_fitting(network.state_dict(), state)
        network.load_state_dict(state, strict=False, assign=True)
        return network.eval()

    def _of_transformers(self, dtype: torch.dtype, progress: _Progress) -> Any:
        # It is given the tensors, as it ties some and renames others between its versions.
        return self._kind.from_pretrained(
            None,
            config=self._kind.config_class.from_pretrained(self._folder, local_files_only=True),
            state_dict=self._state(lambda _name: dtype, progress),
            dtype=dtype,
        )

    def _state(
        self, dtype_of: Callable[[str], torch.dtype], progress: _Progress
    ) -> dict[str, torch.Tensor]:
        state = {}
        with closing(tensors.read(self._entries, _floats(dtype_of))) as found:
            for name, tensor in found:
                state[name] = tensor
                progress.add(self._entries[name].size_bytes)
        return state

    def _require_fitting(
        self, wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
    ) -> None:
        wrong = [name for name in wanted if name not in state] + [
            name
            for name, one in state.items()
            if name in wanted and wanted[name].shape != one.shape
        ]
        if wrong:
            raise ConfigurationError(
                f"The weights in {self.name} do not fit its config.json: {shown(wrong)} is missing "
                "or of another shape. Fetch or prepare the model again"
            )
        known = self._kind._keys_to_ignore_on_load_unexpected or ()
        unused = [
            name
            for name in state
            if name not in wanted and not any(re.search(one, name) for one in known)
        ]
        if unused:
            log.warning("%s has weights without use: %s", self.name, shown(unused))


def _floats(
    dtype_of: Callable[[str], torch.dtype],
) -> Callable[[str, torch.dtype], torch.dtype]:
    """Whole numbers stay what they are."""
    return lambda name, dtype: dtype_of(name) if dtype.is_floating_point else dtype


def _network_class(entry: Any) -> Any:
    """The class that an entry of the pipeline's index names; None where that is no network."""
    if not isinstance(entry, list) or entry[0] not in _LIBRARIES:
        return None
    kind = getattr(importlib.import_module(entry[0]), entry[1], None)
    is_network = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    return kind if is_network else None
