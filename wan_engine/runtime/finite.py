"""Stops NaN and infinity before they become a picture or a verdict: as uint8, NaN is black, and
every comparison with NaN is false.

The caller imports torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from wan_engine.errors import NotFinite

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def require_finite(values: torch.Tensor | Iterable[float], where: str) -> None:
    """Raise `NotFinite` and log `where` unless all `values` are finite. Waits for the GPU."""
    if not _all_finite(values):
        raise not_finite(where)


def not_finite(where: str) -> NotFinite:
    """Log `where` and return the error to raise."""
    log.error("%s returned numbers that are not finite", where)
    return NotFinite(where)


def _all_finite(values: torch.Tensor | Iterable[float]) -> bool:
    isfinite = getattr(values, "isfinite", None)
    if isfinite is not None:
        return bool(isfinite().all())
    return all(math.isfinite(value) for value in values)
