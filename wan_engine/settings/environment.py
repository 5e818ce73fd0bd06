"""Variables that are not settings: those of Runpod, of libraries and of tools, and misspelt
ones."""

from __future__ import annotations

import difflib
import os

from wan_engine.settings import Settings, env_name

_OURS = ("WAN_", "BUCKET_")


def in_runpod_loop() -> bool:
    """Whether this is a serverless worker: Runpod sets the URL that it gets jobs from."""
    return bool(os.environ.get("RUNPOD_WEBHOOK_GET_JOB"))


def unknown_variables() -> dict[str, str | None]:
    """The set variables with one of our prefixes that no setting has, each with the known name
    closest to it."""
    known = [env_name(field) for field in Settings.model_fields]
    names = [name for name, value in sorted(os.environ.items()) if value]
    # Case does not matter, as in pydantic-settings.
    unknown = [
        name for name in names if name.upper().startswith(_OURS) and name.upper() not in known
    ]
    nearest = {name: difflib.get_close_matches(name.upper(), known, 1, 0.8) for name in unknown}
    return {name: found[0] if found else None for name, found in nearest.items()}


_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_BEFORE = "PYTORCH_CUDA_ALLOC_CONF"
"""Its name before torch 2.9. torch ignores it if the new one is set."""
_ALLOCATORS_OPTIONS = {
    # torch rounds pinned memory up to a power of two, 86 GB for 56, except above this size in MB.
    "pinned_max_round_threshold_mb": "1",
    # Clips have many sizes, so freed blocks of one would rarely fit the next.
    "expandable_segments": "True",
}


def tell_libraries() -> None:
    """Set the options of torch's allocator, which torch reads when it is imported. Options that
    you have set yourself keep their values."""
    given = os.environ.get(_ALLOCATOR) or os.environ.get(_ALLOCATOR_BEFORE) or ""
    added = [f"{name}:{how}" for name, how in _ALLOCATORS_OPTIONS.items() if name not in given]
    os.environ[_ALLOCATOR] = ",".join([given] * bool(given) + added)


def of_tools(name: str) -> str | None:
    """The value of a variable that another program defines, such as a compiler."""
    return os.environ.get(name) or None
