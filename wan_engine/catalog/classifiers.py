"""Lists the safety classifiers, and which of their verdicts count as unsafe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ClassifierKind = Literal["prompt", "image"]

GUARD_VERDICTS = ("Safe", "Unsafe", "Controversial")
"""The verdicts that a Qwen3Guard-Gen model writes after `Safety: ` (its model card)."""

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
"""The categories that it writes after `Categories: ` for prompts (the same card)."""

GUARD_FLAGGED: Mapping[str, frozenset[str]] = {
    "Safe": frozenset(),
    "Unsafe": frozenset(GUARD_CATEGORIES) - {POLITICAL},
    "Controversial": frozenset({SEXUAL}),
}
"""The pairs of verdict and category that are unsafe. Political content is allowed. Controversial
content is unsafe if it is sexual, because clips show real people."""

GUARD_THRESHOLD = 0.5
"""A prompt is unsafe if the flagged pairs together are more probable than all others."""

WELL_KNOWN_UNSAFE = ("nsfw", "unsafe", "porn", "pornography", "hentai", "explicit", "nude", "gore")
"""Labels with the same meaning in every classifier. They count as unsafe from 0.5 on in your own
classifier if you set no labels."""


@dataclass(frozen=True)
class ClassifierSpec:
    """One classifier of the safety checker, in transformers layout.

    `flagged` has the labels of an image classifier in lower case, each with its lowest unsafe
    probability. A prompt guard has none: it uses GUARD_FLAGGED. `is_toy`: it is written on this
    machine instead of downloaded.
    """

    name: str
    title: str
    kind: ClassifierKind
    flagged: Mapping[str, float] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None
    is_toy: bool = False
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
        # Published advice is 0.5 to 0.7. The model misses much (docs/safety.md), so a lower value
        # would help, but 0.5 flags beach and dance pictures, and an input image has no second
        # frame.
        flagged={"nsfw": 0.6},
        repo="Falconsai/nsfw_image_detection",
        revision="96cb0d0342c7afb80cab76ecc58b265fa44da256",
        download_gb=0.35,
    ),
)

CLASSIFIERS: Mapping[str, ClassifierSpec] = {row.name: row for row in _CLASSIFIERS}
"""The classifiers by name. WAN_SAFETY_PROMPT_MODEL and WAN_SAFETY_IMAGE_MODEL choose one each."""
