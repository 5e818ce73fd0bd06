"""Prepares a set of weights from a row of the catalogue: LoRA files fused, networks in their final
precision, a manifest with hashes.

A worker that starts from such a set reads a third to a half of the published bytes and fuses
nothing. Networks are loaded, fused and saved one after the other, so the host needs memory for one.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from safetensors import safe_open

from wan_engine import weights
from wan_engine.catalog import ModelSpec
from wan_engine.errors import ConfigurationError, EngineError
from wan_engine.runtime.scratch import NO_LOCKS
from wan_engine.settings import VERSION, Settings
from wan_engine.weights import LocatedLora, manifest
from wan_engine.weights.files import read_json, sha256
from wan_engine.weights.lora_plan import COMPONENTS, LoraPlan, plans_for
from wan_engine.weights.manifest import Fused, Manifest

Precision = Literal["bfloat16", "float32"]
Tell = Callable[[str], None]

_LOADED = ("text_encoder", *COMPONENTS)  # the others are small, or stay in float32 like the VAE
_BYTES: dict[Precision, int] = {"bfloat16": 2, "float32": 4}
_SHARD = "5GB"  # several files are read in parallel
_PACKAGES = ("torch", "diffusers", "transformers", "safetensors")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def prepare(
    name: str,
    target: Path,
    settings: Settings,
    tell: Tell,
    *,
    precision: Precision = "bfloat16",
    fp8: bool = False,
) -> Path:
    """Make the set of the row `name` in `target`, which appears complete or not at all. Returns
    `target`.

    `fp8` stores the matrices of the experts' blocks as float8_e4m3fn with one scale per row, bit
    for bit what a worker in float8 computes, in half of the bytes. A worker in bfloat16 widens them
    and keeps the precision of three bits of mantissa.

    Raises `ConfigurationError` if the target exists, another process makes it or the disk is too
    small, and `ModelMissing` if the row's files are not here.
    """
    # The files of WAN_LORA are the operator's, and not part of a row.
    located = weights.resolve(name, settings.model_copy(update={"lora": ()}))
    spec, source = located.spec, located.folder
    if any(entry[0] == "wan_engine" for entry in _networks(source)):
        raise ConfigurationError(
            f"{spec.name} is used as it is published, which is in bfloat16 already. There is no "
            "ready set of it"
        )
    if target.exists():
        raise ConfigurationError(f"{target} exists already; name another folder, or remove it")
    plans = plans_for(source, located.loras)
    for one in plans:
        tell(one.describe())
    needed = _size(source, 1 if fp8 else _BYTES[precision], _BYTES[precision])
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    tell(
        f"{spec.title}; licence: {spec.licence}; about {_gb(needed)}, {_gb(free)} free in {target}"
    )
    if needed > free:
        raise ConfigurationError(f"{target} needs {_gb(needed)} and its disk has {_gb(free)} free")
    with _alone(target, tell) as partial:
        shutil.copy(source / "model_index.json", partial)
        for component, entry in read_json(source / "model_index.json").items():
            if not isinstance(entry, list) or entry[0] is None:
                continue
            if component not in _LOADED:
                tell(f"{component}: copied")
                shutil.copytree(source / component, partial / component)
                continue
            loras = sum(COMPONENTS.get(component) in one.changes for one in plans)
            tell(f"{component}: {precision}{f', {loras} LoRA files' if loras else ''}")
            network = _load(source / component, entry, precision)
            if component in COMPONENTS:
                _fuse(network, component, plans)
                if fp8:
                    _to_float8(network)
            network.save_pretrained(partial / component, max_shard_size=_SHARD)
            del network
            gc.collect()
        tell("hashing")
        _describe(spec, source, partial, located.loras, "float8_e4m3fn" if fp8 else precision)
        partial.rename(target)
    return target


def _networks(source: Path) -> list[list[Any]]:
    """The entries of the index, [library, class] each."""
    entries = read_json(source / "model_index.json").values()
    return [entry for entry in entries if isinstance(entry, list) and entry[0] is not None]


def _load(folder: Path, entry: Sequence[str], precision: Precision) -> Any:
    """Load the network in `folder`, with the library and class in the pipeline's index."""
    import torch

    library, kind = entry
    loader = getattr(importlib.import_module(library), kind)
    dtype = getattr(torch, precision)
    return loader.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)


def _fuse(network: Any, component: str, plans: Sequence[LoraPlan]) -> None:
    from wan_engine.families.lora import fuse

    fuse(network, COMPONENTS[component], plans)


def _to_float8(network: Any) -> None:
    """Convert the matrices of a transformer's blocks in place. Norms, biases, embeddings and the
    head stay: they are small, and their errors are not."""
    import torch

    from wan_engine.families.float8 import convert_blocks

    convert_blocks(network, torch.device("cpu"))


def _describe(
    spec: ModelSpec,
    source: Path,
    partial: Path,
    loras: Sequence[LocatedLora],
    precision: str,
) -> None:
    before = manifest.read(source)
    added = [Fused(one.path.name, sha256(one.path), one.scale, one.expert) for one in loras]
    Manifest(
        spec.name,
        spec.repo,
        spec.revision,
        manifest.list_files(partial),
        fused=((*before.fused,) if before else ()) + tuple(added),
        precision=precision,
        made_with={
            "wan_engine": VERSION,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    ).write(partial)


@contextmanager
def _alone(target: Path, tell: Tell) -> Iterator[Path]:
    """A folder next to `target` to fill, which this process alone uses. Leftovers of a killed
    process are removed."""
    partial = target.with_name(f".{target.name}.partial")
    lock = target.with_name(f".{target.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that ended in between has deleted the file that is locked here.
            alone = os.path.samestat(lock.stat(), os.fstat(file.fileno()))
        except OSError as error:
            alone = error.errno in NO_LOCKS
            if alone:  # another process uses another folder, and the first one to finish wins
                partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=lock.parent))
                tell(f"{target.parent} has no locks: if this is killed, remove {partial}")
        if not alone:
            raise ConfigurationError(f"Another process is preparing {target}; try again later")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _size(source: Path, block_bytes: int, other_bytes: int) -> int:
    """The bytes of the set, to within one percent: the cast of norms and biases is not counted."""
    total = 0
    for path in source.rglob("*.safetensors"):
        component = path.parent.name
        if component not in _LOADED:
            total += path.stat().st_size
            continue
        each = block_bytes if component in COMPONENTS else other_bytes
        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                count = 1
                for side in file.get_slice(key).get_shape():
                    count *= side
                total += count * each
    return total


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


@app.command(
    epilog="Example: `python -m builder.prepare wan2.2-i2v-a14b-4step "
    "--out /runpod-volume/models/wan2.2-i2v-a14b-4step --fp8`"
)
def main(
    model: Annotated[str, typer.Argument(help="A catalogue name whose files are here.")],
    out: Annotated[Path, typer.Option(help="The folder to make; found under WAN_MODELS_DIR/NAME.")],
    fp8: Annotated[
        bool, typer.Option("--fp8", help="Experts as float8_e4m3fn: half their bytes on disk.")
    ] = False,
) -> None:
    """Fuse a model's LoRA files, store it in bfloat16 or fp8, and write its manifest."""

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    try:
        print(prepare(model, out.expanduser(), Settings.load(), tell, fp8=fp8))
    except EngineError as error:
        tell(str(error))
        raise typer.Exit(1) from None
    except OSError as error:
        tell(f"{out} was not made: {error.strerror or error}")
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
