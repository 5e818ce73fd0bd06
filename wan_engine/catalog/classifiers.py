"""Lists the safety classifiers, and which of their verdicts count as unsafe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ClassifierKind = Literal["prompt", "image"]

GUARD_VERDICTS = ("Safe", "Unsafe", "Controversial")
"""What a guard of the Qwen3Guard-Gen kind writes after `Safety: ` (its model card)."""

POLITICAL = "Politically Sensitive Topics"
SEXUAL = "Sexual Content or Sexual Acts"
GUARD_CATEGORIES = (
    "None",
    "Violent",
    "Non-violent Illegal Acts",
    SEXUAL,
    "PII",
    "Suicide & Self-Harm",
    "Unethical Acts",
    POLITICAL,
    "Copyright Violation",
    "Jailbreak",
)
"""What it writes after `Categories: `, for prompts (the same card)."""

GUARD_FLAGGED: Mapping[str, frozenset[str]] = {
    "Safe": frozenset(),
    "Unsafe": frozenset(GUARD_CATEGORIES) - {POLITICAL},
    "Controversial": frozenset({SEXUAL}),
}
"""Verdict and category that flag a prompt. Politics is no reason to refuse a clip; what is merely
controversial is one where it is sexual, as a picture of a person is what it would be done to."""

GUARD_THRESHOLD = 0.5
"""Together, the flagged pairs are more probable than all others."""

WELL_KNOWN_UNSAFE = ("nsfw", "unsafe", "porn", "pornography", "hentai", "explicit", "nude", "gore")
"""Labels that mean the same in every classifier which has them; flagged from 0.5 on in somebody's
own classifier when no setting says otherwise."""


@dataclass(frozen=True)
class ClassifierSpec:
    """One classifier of the safety checker, in transformers layout.

    `flagged`, of an image classifier: labels in lower case, each from which probability on it is a
    hit. A prompt guard has none: what it flags is GUARD_FLAGGED.
    """

    name: str
    title: str
    kind: ClassifierKind
    flagged: Mapping[str, float] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None
    built: bool = False
    licence: str = "Apache-2.0"
    download_gb: float = 0.0


_CLASSIFIERS = (
    ClassifierSpec(
        name="qwen3guard-gen-0.6b",
        title="Qwen3Guard-Gen 0.6B: prompts in 119 languages",
        kind="prompt",
        repo="Qwen/Qwen3Guard-Gen-0.6B",
        revision="fada3b2f655b89601929198343c94cd2f64d93cc",
        download_gb=1.5,
    ),
    ClassifierSpec(
        name="nsfw-image-detection",
        title="Falconsai NSFW detection, ViT-B/16 at 224 px: nudity and sexual acts in pictures",
        kind="image",
        # Published advice is 0.5 to 0.7. It misses much (docs/safety.md), which speaks for less; at
        # 0.5 beach and dance pictures are hits, and an input image has no second frame to agree.
        flagged={"nsfw": 0.6},
        repo="Falconsai/nsfw_image_detection",
        revision="96cb0d0342c7afb80cab76ecc58b265fa44da256",
        download_gb=0.35,
    ),
)

CLASSIFIERS: Mapping[str, ClassifierSpec] = {row.name: row for row in _CLASSIFIERS}
"""By name. Which are used: WAN_SAFETY_PROMPT_MODEL and WAN_SAFETY_IMAGE_MODEL."""
