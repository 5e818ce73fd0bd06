"""Tells the gateway which LoRA files of WAN_LORA_DIR each model takes, by name and without a path,
again whenever the folder changes.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from wan_engine.schema import Task
from wan_engine.settings import Settings
from wan_engine.weights import Located
from wan_engine.weights.lora_folder import LoraFolder

log = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0
_FIRST_SECONDS = 5.0
_MOST_BYTES = 100_000  # of a model's names as JSON: those of all models have to fit into a line
_UNREADABLE: frozenset[tuple[object, ...]] = frozenset({("unreadable",)})
Tell = Callable[[dict[str, Any]], None]


class LoraNames:
    """Looks at the folder. It has plans of its own, so that those of jobs are not pushed out."""

    def __init__(self, settings: Settings, models: Mapping[Task, Located], tell: Tell) -> None:
        self._settings = settings
        self._models = models
        self._tell = tell
        self._seen: frozenset[tuple[object, ...]] | None = None
        self._looked = threading.Event()

    def look(self) -> None:
        """Tell the names if the folder is another than at the last look. Headers are read."""
        try:
            folder = LoraFolder(self._settings)
            if (now := folder.stamps()) == self._seen:
                return
            fitting = folder.fitting(self._models)
        except Exception:  # jobs do without this list, whatever the folder has become
            if self._seen == _UNREADABLE:
                return
            log.exception("the LoRA files cannot be listed")
            fitting, now = {}, _UNREADABLE
        self._seen = now
        names = {task: _first_names(found) for task, found in fitting.items()}
        self._tell({"told": "loras", "loras": names})

    def watch(self) -> None:
        """Look now and then, in a thread of its own. Returns after the first look, which may take
        a while for hundreds of files, or after some seconds."""
        threading.Thread(target=self._watch, name="LoRA names", daemon=True).start()
        self._looked.wait(_FIRST_SECONDS)

    def _watch(self) -> None:
        while True:
            self.look()
            self._looked.set()
            time.sleep(_LOOK_SECONDS)


def _first_names(names: Sequence[str]) -> list[str]:
    ends = accumulate(len(json.dumps(name)) + 2 for name in names)
    return [name for name, end in zip(names, ends, strict=True) if end <= _MOST_BYTES]
