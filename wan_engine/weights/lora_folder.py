"""Finds the LoRA files that a request names in the operator's folder, and matches them with a
model. A caller's name is looked up in the list of the folder, and never becomes a path."""

from __future__ import annotations

import os
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from wan_engine.catalog import Expert
from wan_engine.errors import ConfigurationError, InvalidRequest, LoraRefused, NotServed
from wan_engine.schema import Lora, Task
from wan_engine.schema.fields import described
from wan_engine.schema.lora import is_lora_name
from wan_engine.settings import Settings
from wan_engine.weights.lora_plan import LoraPlan, Parameters, parameters_in, plan
from wan_engine.weights.video_models import Located, LocatedLora

_ENDING = ".safetensors"
_DEPTH = 3  # levels of subfolders, so that a volume full of models is not searched for long
_SHOWN = 10  # names in an error
_KEPT = 16  # plans; that of a large model is 1 MB

_HALF = re.compile(
    r"(?:^|[ ._-])(?P<expert>high|low)(?:[ ._-]?noise)?(?:[ ._-]?model)?(?=$|[ ._-])", re.IGNORECASE
)
"""The names that publishers give to the halves of a pair: lightx2v (`x_high_noise`,
`high_noise_model`), Kijai (`Wan22_HIGH_x`), and trainers (`x_high`)."""


@dataclass(frozen=True)
class FoundLora:
    """The files of a name in the folder: one file, or the two of a pair. `expert` is set for a file
    whose other half is beside it."""

    files: Mapping[Expert, Path]

    @property
    def is_pair(self) -> bool:
        return len(self.files) > 1


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA of a request with its changes to one model. Two are equal if they were chosen in the
    same way from unchanged files."""

    lora: Lora
    stamp: tuple[object, ...]
    plans: tuple[LoraPlan, ...] = field(compare=False)

    def __str__(self) -> str:
        return str(self.lora)


class LoraFolder:
    """The folder of WAN_LORA_DIR. Raises `ConfigurationError` if there is no such folder.

    Plans of the latest files are cached, without their weights. Thread-safe.
    """

    def __init__(self, settings: Settings) -> None:
        self._root = settings.lora_dir and settings.lora_dir.expanduser()
        self._unused = settings.lora_unused
        if self._root is not None and not self._root.is_dir():
            raise ConfigurationError(f"WAN_LORA_DIR names {self._root}, which is not a folder")
        self._lock = Lock()
        self._parameters: dict[Path, Mapping[Expert, Parameters]] = {}
        self._plans: OrderedDict[tuple[object, ...], LoraPlan] = OrderedDict()

    def found(self) -> dict[str, FoundLora]:
        """Every LoRA of the folder by name, sorted: single files, and pairs under the name that
        both halves share."""
        files = {} if self._root is None else dict(_files(self._root))
        pairs = {name: pair for name, pair in _pairs(files).items() if name not in files}
        sides = {path: side for pair in pairs.values() for side, path in pair.items()}
        alone = {name: {sides.get(path, "both"): path} for name, path in files.items()}
        return {name: FoundLora(of) for name, of in sorted({**alone, **pairs}.items())}

    def stamps(self) -> frozenset[tuple[object, ...]]:
        """What changes when a file of the folder comes, goes or is replaced."""
        found = [path for one in self.found().values() for path in one.files.values()]
        stamps = set[tuple[object, ...]]()
        for path in found:
            with suppress(FileNotFoundError):  # it went meanwhile
                stamps.add(_stamp(path))
        return frozenset(stamps)

    def fitting(self, models: Mapping[Task, Located]) -> dict[Task, list[str]]:
        """The names that each model takes, sorted. A model that takes no LoRA at all is left
        out."""
        taking = {task: located for task, located in models.items() if located.spec.wan_blocks}
        known = self.found()
        return {
            task: [name for name in known if self._fits(name, located, known)]
            for task, located in taking.items()
        }

    def _fits(self, name: str, located: Located, known: Mapping[str, FoundLora]) -> bool:
        try:
            return bool(self.chosen([Lora(name)], located, known))
        except InvalidRequest:
            return False

    def chosen(
        self,
        loras: Sequence[Lora],
        located: Located,
        known: Mapping[str, FoundLora] | None = None,
    ) -> tuple[ChosenLora, ...]:
        """The LoRA files that a request names, for the model `located`. Only headers are read.
        `known` is what `found` returned a moment ago.

        Raises `NotServed` and `InvalidRequest` with one sentence for the caller, without a path.
        """
        if not loras:
            return ()
        if self._root is None:
            raise NotServed('field "loras" cannot be used: this worker has no folder of LoRA files')
        known = self.found() if known is None else known
        parameters = self._parameters_of(located)
        found: list[ChosenLora] = []
        for index, lora in enumerate(loras):
            files = _files_of(index, lora, known, located.spec.name, two="low" in parameters)
            one = self._chosen(index, lora, files, located)
            _refuse_twice(one, found)
            found.append(one)
        return tuple(found)

    def _chosen(
        self, index: int, lora: Lora, files: Mapping[Expert, Path], located: Located
    ) -> ChosenLora:
        try:
            asked = [
                LocatedLora(path, lora.scale, expert, self._unused)
                for expert, path in files.items()
            ]
            plans = [self._plan(one, located) for one in asked]
            stamps = tuple((expert, *_stamp(path)) for expert, path in files.items())
        except (LoraRefused, OSError) as error:
            why = error.why if isinstance(error, LoraRefused) else "its file cannot be read"
            raise InvalidRequest(
                f'field "loras[{index}].name" cannot be used with {located.spec.name}, '
                f"got {described(lora.name)}: {why}"
            ) from error
        return ChosenLora(lora, stamps, tuple(plans))

    def _plan(self, lora: LocatedLora, located: Located) -> LoraPlan:
        key = (lora, _stamp(lora.path), located.folder)
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        made = plan(lora, self._parameters_of(located))
        with self._lock:
            self._plans[key] = made
            while len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        return made

    def _parameters_of(self, located: Located) -> Mapping[Expert, Parameters]:
        with self._lock:
            if located.folder not in self._parameters:
                self._parameters[located.folder] = parameters_in(located.folder)
            return self._parameters[located.folder]


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """The files in and below `root` by name, without hidden files, links that lead out, and names
    that no request can have, such as those that are not UTF-8."""
    inside = root.resolve()
    for folder, below, names in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        below[:] = [one for one in below if not one.startswith(".") and depth < _DEPTH - 1]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix != _ENDING:
                continue
            if path.is_file() and path.resolve().is_relative_to(inside):
                found = path.relative_to(root).as_posix().removesuffix(_ENDING)
                if is_lora_name(found):
                    yield found, path


def _pairs(files: Mapping[str, Path]) -> dict[str, dict[Expert, Path]]:
    """The pairs among files, by their name without the part that differs between the halves. A pair
    in its own folder may have the folder's name."""
    halves: dict[str, dict[Expert, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name, path in files.items():
        folder, _, stem = name.rpartition("/")
        for match in _HALF.finditer(stem):
            rest = (stem[: match.start()] + stem[match.end() :]).strip(" ._-")
            shared = "/".join(part for part in (folder, rest) if part)
            side: Expert = "high" if match["expert"].lower() == "high" else "low"
            halves[shared][side].append(path)
    return {
        shared: {"high": of["high"][0], "low": of["low"][0]}
        for shared, of in halves.items()
        if shared and len(of["high"]) == len(of["low"]) == 1
    }


def _files_of(
    index: int, lora: Lora, known: Mapping[str, FoundLora], model: str, *, two: bool
) -> Mapping[Expert, Path]:
    """The files of a LoRA, by the expert that each goes into. `two`: the model has two experts.
    Raises `InvalidRequest`."""
    name, got = f'field "loras[{index}].name"', f"got {described(lora.name)}"
    if lora.name not in known:
        if not known:
            raise InvalidRequest(f"{name} cannot be used: this worker has no LoRA files")
        raise InvalidRequest(f"{name} must be {_names(known)}, {got}")
    files = known[lora.name].files
    if not two:
        if known[lora.name].is_pair:
            raise InvalidRequest(
                f"{name} must be one file for {model}, which has one transformer, {got}: a pair"
            )
        if lora.expert in ("high", "low"):
            raise InvalidRequest(
                f'field "loras[{index}].expert" must be "both" for {model}, which has one '
                f"transformer, got {described(lora.expert)}"
            )
        return {"both": _only(files)}
    if known[lora.name].is_pair:
        return {side: path for side, path in files.items() if lora.expert in (None, "both", side)}
    return files if lora.expert is None else {lora.expert: _only(files)}


def _only(files: Mapping[Expert, Path]) -> Path:
    (path,) = files.values()
    return path


def _names(known: Mapping[str, FoundLora]) -> str:
    listed = ", ".join(f'"{name}"' for name in list(known)[:_SHOWN])
    return f"one of [{listed}{', ...' if len(known) > _SHOWN else ''}]"


def _refuse_twice(new: ChosenLora, before: Sequence[ChosenLora]) -> None:
    """Raise `InvalidRequest` for a file that an expert already gets under another name."""
    for place, other in enumerate(before):
        for one in new.plans:
            for two in other.plans:
                same = one.lora.path.resolve() == two.lora.path.resolve()
                if same and one.changes.keys() & two.changes.keys():
                    raise InvalidRequest(
                        f'field "loras[{len(before)}].name" must be another file than that of '
                        f'"loras[{place}]", got {described(new.lora.name)}'
                    )


def _stamp(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size
