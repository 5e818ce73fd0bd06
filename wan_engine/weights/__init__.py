"""Finds, checks and downloads the files of models. It does not load weights into memory."""

from wan_engine.weights.download import (
    download,
    download_classifier,
    download_writer,
    verify,
)
from wan_engine.weights.small_models import (
    LocatedClassifier,
    LocatedWriter,
    configured_classifiers,
    has_classifier,
    locate_writer,
    missing_classifier_files,
    resolve_classifier,
    resolve_writer,
)
from wan_engine.weights.upscaler import choose_upscaling
from wan_engine.weights.video_models import (
    TASK_SETTINGS,
    Located,
    LocatedLora,
    configured,
    locate,
    missing_files,
    own_loras,
    resolve,
    select,
)

__all__ = [
    "TASK_SETTINGS",
    "Located",
    "LocatedClassifier",
    "LocatedLora",
    "LocatedWriter",
    "choose_upscaling",
    "configured",
    "configured_classifiers",
    "download",
    "download_classifier",
    "download_writer",
    "has_classifier",
    "locate",
    "locate_writer",
    "missing_classifier_files",
    "missing_files",
    "own_loras",
    "resolve",
    "resolve_classifier",
    "resolve_writer",
    "select",
    "verify",
]
