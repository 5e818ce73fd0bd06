"""Lists, as data, the models, safety classifiers and prompt writers that the engine knows.

A new checkpoint is a new row in `models.py` and nothing else.
"""

from wan_engine.catalog.classifiers import (
    CLASSIFIERS,
    GUARD_CATEGORIES,
    GUARD_FLAGGED,
    GUARD_THRESHOLD,
    GUARD_VERDICTS,
    POLITICAL,
    SEXUAL,
    WELL_KNOWN_UNSAFE,
    ClassifierKind,
    ClassifierSpec,
)
from wan_engine.catalog.model_spec import (
    Continuation,
    Expert,
    HubLora,
    ModelSpec,
    Networks,
    Part,
    Sampler,
)
from wan_engine.catalog.models import CATALOG, FALLBACK, infer, known_models
from wan_engine.catalog.writers import WRITERS, WriterSpec

__all__ = [
    "CATALOG",
    "CLASSIFIERS",
    "FALLBACK",
    "GUARD_CATEGORIES",
    "GUARD_FLAGGED",
    "GUARD_THRESHOLD",
    "GUARD_VERDICTS",
    "POLITICAL",
    "SEXUAL",
    "WELL_KNOWN_UNSAFE",
    "WRITERS",
    "ClassifierKind",
    "ClassifierSpec",
    "Continuation",
    "Expert",
    "HubLora",
    "ModelSpec",
    "Networks",
    "Part",
    "Sampler",
    "WriterSpec",
    "infer",
    "known_models",
]
