"""The environment beside the settings: whether Runpod sends jobs, names that nobody reads, and what
libraries are told."""

from __future__ import annotations

import difflib
import os

from wan_engine.settings import Settings, env_name

_OURS = ("WAN_", "BUCKET_")


def in_runpod_loop() -> bool:
    """Whether this is a serverless worker of Runpod's, which tells it where jobs come from."""
    return bool(os.environ.get("RUNPOD_WEBHOOK_GET_JOB"))


def unknown_variables() -> dict[str, str | None]:
    """Variables that begin as ours do and that nothing reads, each with the known name that is
    nearest to it."""
    known = [env_name(field) for field in Settings.model_fields]
    names = [name for name, value in sorted(os.environ.items()) if value]
    # Names are taken in any case, as pydantic-settings does.
    unknown = [
        name for name in names if name.upper().startswith(_OURS) and name.upper() not in known
    ]
    nearest = {name: difflib.get_close_matches(name.upper(), known, 1, 0.8) for name in unknown}
    return {name: found[0] if found else None for name, found in nearest.items()}


_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_BEFORE = "PYTORCH_CUDA_ALLOC_CONF"
"""Its name before torch 2.9, which the other one hides."""
_ALLOCATORS_OPTIONS = {
    # Pinned memory is rounded up to a power of two, 86 GB for 56, below so many MB alone.
    "pinned_max_round_threshold_mb": "1",
    # Pictures have many sizes, and pieces of one would be of no use for the next.
    "expandable_segments": "True",
}


def tell_libraries() -> None:
    """What torch reads when it is imported: how it gets memory. Options that somebody has set stay
    as they are."""
    given = os.environ.get(_ALLOCATOR) or os.environ.get(_ALLOCATOR_BEFORE) or ""
    added = [f"{name}:{how}" for name, how in _ALLOCATORS_OPTIONS.items() if name not in given]
    os.environ[_ALLOCATOR] = ",".join([given] * bool(given) + added)


def of_tools(name: str) -> str | None:
    """A variable that belongs to another program, such as a compiler."""
    return os.environ.get(name) or None
