"""Loads a pipeline network by network: read one, fuse its LoRA files, convert it, place it, and
continue with the next. An expert is loaded block by block.

So host memory contains what the recipe keeps there and a few blocks; at first, it contains the text
encoder. diffusers gets the loaded networks, and loads the small parts (tokenizer, scheduler)
itself.
"""

from __future__ import annotations

import importlib
import logging
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin

from wan_engine.errors import ConfigurationError
from wan_engine.families import float8, tensors
from wan_engine.families.continuation import ContinuingPipeline
from wan_engine.families.lora import fuse_into
from wan_engine.families.placement import finish, settle, settle_block
from wan_engine.families.tokens import faithful
from wan_engine.runtime import memory
from wan_engine.runtime.faults import chain
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import OnBytes
from wan_engine.weights import LocatedLora
from wan_engine.weights.files import read_json
from wan_engine.weights.lora_keys import shown
from wan_engine.weights.lora_plan import COMPONENTS, LoraPlan, plans_for, tell_fused

log = logging.getLogger(__name__)

BlockRead = Callable[[str, Any], None]
"""Called with the name of a block and the block, when it is completely read."""

_LIBRARIES = ("diffusers", "transformers")
_WIDE = ("vae", "audio_encoder", "audio_vae", "vocoder")
"""In float32, because their errors stay in the clip."""
_TOLD_EVERY_BYTES = 64 * 1024 * 1024


def load_pipeline(
    folder: Path,
    recipe: Recipe,
    loras: Sequence[LocatedLora] = (),
    on_bytes: OnBytes = lambda _done, _all: None,
    pipeline_class: Any = ContinuingPipeline,
) -> Any:
    """Load the pipeline in `folder` (diffusers layout) as a `pipeline_class`, placed by `recipe`,
    which `able` has checked.

    LoRA files are checked first, so that a wrong one fails before minutes of loading. Raises what
    `load_networks` raises.
    """

    def assembled(networks: Mapping[str, Any]) -> Any:
        pipeline = pipeline_class.from_pretrained(str(folder), local_files_only=True, **networks)
        pipeline.tokenizer = faithful(pipeline.tokenizer, folder / "tokenizer")
        return pipeline

    plans = plans_for(folder, loras)
    return load_networks(folder, recipe, assembled, pipeline_class, plans, on_bytes)


def load_networks(
    folder: Path,
    recipe: Recipe,
    assembled: Callable[[Mapping[str, Any]], Any],
    pipeline_class: Any = None,
    plans: Sequence[LoraPlan] = (),
    on_bytes: OnBytes = lambda _done, _all: None,
) -> Any:
    """Load the networks that `pipeline_class` or `model_index.json` names, convert and place each
    by `recipe`, and return the pipeline that `assembled` makes of them.

    Encoders of pictures and sound are in float32, because their errors stay in the clip. `on_bytes`
    is called before each network, within large ones, and at the end; an error that it raises stops
    the load and frees its memory. Raises `ConfigurationError` for files that do not fit.
    """
    classes = _networks(folder, pipeline_class)
    parts = [_Part(name, folder / name, network) for name, network in classes.items()]
    parts.sort(key=lambda part: part.name in COMPONENTS)
    try:
        return _load(recipe, parts, assembled, plans, on_bytes)
    except BaseException as error:
        for one in chain(error):
            traceback.clear_frames(one.__traceback__)  # the frames hold networks
        memory.free_accelerator()
        raise


def _load(
    recipe: Recipe,
    parts: Sequence[_Part],
    assembled: Callable[[Mapping[str, Any]], Any],
    plans: Sequence[LoraPlan],
    on_bytes: OnBytes,
) -> Any:
    progress = _Progress(sum(part.size_bytes for part in parts), on_bytes)
    networks: dict[str, Any] = {}
    for part in parts:
        progress.tell()
        networks[part.name] = _one_network(part, recipe, plans, progress)
    tell_fused(plans)
    pipeline = assembled(networks)
    finish(pipeline, recipe)
    progress.tell()
    return pipeline


def _one_network(
    part: _Part, recipe: Recipe, plans: Sequence[LoraPlan], progress: _Progress
) -> Any:
    expert = COMPONENTS.get(part.name)

    def fuse(parameters: Mapping[str, Any]) -> None:
        if expert is not None and plans:
            fuse_into(parameters, expert, plans)

    def block_read(name: str, block: Any) -> None:
        fuse({f"{name}.{inner}": one for inner, one in block.named_parameters()})
        settle_block(block, recipe)

    dtype = torch.float32 if part.name in _WIDE else getattr(torch, recipe.dtype)
    network = part.read(dtype, progress, block_read, keep_float8=recipe.float8)
    fuse({name: one for name, one in network.named_parameters() if not _block_of(name)})
    settle(part.name, network, recipe)
    return network


class _Progress:
    """Reports loaded bytes, but not too often."""

    def __init__(self, in_all: int, on_bytes: OnBytes) -> None:
        self._in_all, self._on_bytes = in_all, on_bytes
        self._loaded = self._told = 0

    def add(self, count: int) -> None:
        """Add `count` loaded bytes."""
        self._loaded += count
        if self._loaded - self._told >= _TOLD_EVERY_BYTES:
            self.tell()

    def tell(self) -> None:
        self._told = self._loaded
        self._on_bytes(self._loaded, self._in_all)


class _Part:
    """The folder of one network. The constructor reads the headers of its files."""

    def __init__(self, name: str, folder: Path, kind: Any) -> None:
        self.name = name
        self._folder, self._kind = folder, kind
        native = getattr(kind, "native_name", str)
        self._entries = {native(name): one for name, one in tensors.entries(folder).items()}
        self._scaled = {
            name
            for name, entry in self._entries.items()
            if entry.dtype == torch.float8_e4m3fn and float8.scale_of(name) in self._entries
        }
        self.size_bytes = sum(entry.size_bytes for entry in self._entries.values())

    def read(
        self, dtype: torch.dtype, progress: _Progress, block_read: BlockRead, *, keep_float8: bool
    ) -> Any:
        """Read the network into host memory. `block_read` may move its blocks elsewhere. With
        `keep_float8`, matrices that are stored in float8 with one scale per row stay in float8;
        otherwise they become `dtype`. Raises `ConfigurationError` for weights that do not fit."""
        if not issubclass(self._kind, ModelMixin):
            return self._of_transformers(dtype, progress)
        return self._of_diffusers(dtype, progress, block_read, keep_float8=keep_float8)

    def _of_diffusers(
        self, dtype: torch.dtype, progress: _Progress, block_read: BlockRead, *, keep_float8: bool
    ) -> Any:
        wide = tuple(self._kind._keep_in_fp32_modules or ())
        scales = {float8.scale_of(name) for name in self._scaled}

        def dtype_of(name: str) -> torch.dtype:
            if name in self._scaled:
                return torch.float8_e4m3fn
            in_float32 = name in scales or any(one in name.split(".") for one in wide)
            return torch.float32 if in_float32 else dtype

        with init_empty_weights():
            network = self._kind.from_config(self._kind.load_config(self._folder))
        self._require_fitting(network.state_dict())
        left = Counter(map(_block_of, self._entries))
        read: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        with closing(self._tensors(dtype_of, progress)) as given:
            for name, tensor in given:
                block = _block_of(name)
                read[block][name.removeprefix(f"{block}.")] = tensor
                if block and len(read[block]) == left[block]:
                    module, state = network.get_submodule(block), read.pop(block)
                    if not keep_float8:
                        float8.widen(state, dtype)
                    elif any(one.startswith(f"{block}.") for one in self._scaled):
                        float8.replace_linears(module)
                    module.load_state_dict(state, assign=True)
                    block_read(block, module)
        network.load_state_dict(read.pop("", {}), strict=False, assign=True)  # the rest
        return network.eval()

    def _of_transformers(self, dtype: torch.dtype, progress: _Progress) -> Any:
        # transformers gets the tensors, because it ties some and renames others.
        return self._kind.from_pretrained(
            None,
            config=self._kind.config_class.from_pretrained(self._folder, local_files_only=True),
            state_dict=dict(self._tensors(lambda _name: dtype, progress)),
            dtype=dtype,
        )

    def _tensors(
        self, dtype_of: Callable[[str], torch.dtype], progress: _Progress
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        with closing(tensors.read(self._entries, _floats(dtype_of))) as found:
            for name, tensor in found:
                yield name, tensor
                progress.add(self._entries[name].size_bytes)

    def _require_fitting(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Check names and shapes before minutes of reading. Unused weights are dropped."""
        shapes = {name: entry.shape for name, entry in self._entries.items()}
        wrong = [name for name, one in wanted.items() if shapes.get(name) != one.shape]
        if wrong:
            raise ConfigurationError(
                f"The weights in {self.name} do not fit its config.json: {shown(wrong)} is missing "
                "or of another shape. Fetch or prepare the model again"
            )
        scales = {float8.scale_of(name) for name in self._scaled}
        unused = [name for name in shapes if name not in wanted and name not in scales]
        known = self._kind._keys_to_ignore_on_load_unexpected or ()
        told = [name for name in unused if not any(re.search(one, name) for one in known)]
        if told:
            log.warning("%s has unused weights: %s", self.name, shown(told))
        for name in unused:
            del self._entries[name]


def _block_of(name: str) -> str:
    """`blocks.3` of `blocks.3.attn1.to_q.weight`, likewise `vace_blocks.3`; empty for a weight
    outside the blocks."""
    found = re.match(r"(?:vace_)?blocks\.\d+(?=\.)", name)
    return found[0] if found else ""


def _floats(
    dtype_of: Callable[[str], torch.dtype],
) -> Callable[[str, torch.dtype], torch.dtype]:
    """`dtype_of` for floating-point tensors. Integers keep their dtype."""
    return lambda name, dtype: dtype_of(name) if dtype.is_floating_point else dtype


def _networks(folder: Path, pipeline_class: Any) -> Mapping[str, Any]:
    """The classes of the pipeline's networks by name: its own, otherwise those of the index."""
    own: Mapping[str, Any] | None = getattr(pipeline_class, "network_classes", None)
    if own is not None:
        return own
    index = read_json(folder / "model_index.json").items()
    found = {name: _network_class(entry) for name, entry in index}
    return {name: network for name, network in found.items() if network is not None}


def _network_class(entry: Any) -> Any:
    """The class that an entry of the index names. None if it is not a network."""
    if not isinstance(entry, list) or entry[0] not in _LIBRARIES:
        return None
    kind = getattr(importlib.import_module(entry[0]), entry[1], None)
    is_network = isinstance(kind, type) and issubclass(kind, torch.nn.Module)
    return kind if is_network else None
