"""Checks prompts with a guard model, and images and one frame per second of the clip with a
classifier.

It works with text and pictures, not with requests or models. The catalogue defines which verdicts
count as unsafe, and `weights` finds the files. Both classifiers are transformers' own classes; no
code from a repository is ever run.
"""

from __future__ import annotations

import copy
import html
import logging
import threading
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from wan_engine.catalog import (
    GUARD_CATEGORIES,
    GUARD_FLAGGED,
    GUARD_THRESHOLD,
    GUARD_VERDICTS,
    ClassifierKind,
)
from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, ContentPolicy, ModelMissing
from wan_engine.runtime.finite import require_finite
from wan_engine.runtime.logs import quiet_libraries
from wan_engine.schema import Frames
from wan_engine.settings import Settings
from wan_engine.weights import (
    LocatedClassifier,
    configured_classifiers,
    resolve_classifier,
)

log = logging.getLogger(__name__)

_WHAT: Mapping[ClassifierKind, str] = {"prompt": "prompts", "image": "images and frames"}
_HITS = 2  # frames that must agree: image classifiers flicker on a moving picture
_IMAGE_SIDE = 1024  # pixels; a larger picture is shrunk before it is copied (200 MB)
_PIECE_CHARACTERS = 2000  # longer than the longest prompt of a request
_OVERLAP_CHARACTERS = 200
_MARK = "PROMPTGOESHERE"


def open_safety(settings: Settings, *, required: bool, device: str = "cpu") -> Safety:
    """The checker for these settings. `required` is the meaning of an unset WAN_SAFETY.

    It only checks that files exist. Raises `ConfigurationError` if a required classifier is
    missing, or if a classifier lacks a configured label.
    """
    mode = settings.safety or ("required" if required else "auto")
    found: dict[ClassifierKind, LocatedClassifier] = {}
    missing: dict[ClassifierKind, str] = {}
    if mode == "off":
        return Safety(found, missing, device)
    for kind, name in configured_classifiers(settings).items():
        try:
            found[kind] = resolve_classifier(name, kind, settings)
        except ModelMissing as error:
            missing[kind] = str(error)
    if missing and mode == "required":
        raise ConfigurationError(
            f"The safety checker is required. {' '.join(missing.values())} With "
            "WAN_SAFETY=auto, jobs run without the missing checks, and each result says so."
        )
    return Safety(found, missing, device)


class Safety:
    """The checks. They raise `ContentPolicy`, and `NotFinite` for a verdict that is not a number.
    If one classifier is missing, its checks are skipped. Thread-safe; one check runs at a time."""

    def __init__(
        self,
        found: Mapping[ClassifierKind, LocatedClassifier],
        missing: Mapping[ClassifierKind, str],
        device: str,
    ) -> None:
        self._found = found
        self._missing = missing
        self._device = device
        self._lock = threading.Lock()
        self._guard: PromptGuard | None = None
        self._classifier: ImageClassifier | None = None

    def load(self) -> None:
        """Load the weights once. Raises `ModelMissing` if they cannot be used."""
        with self._lock:
            self._load()

    def check_prompt(self, text: str, control: Control) -> None:
        """Raise `ContentPolicy` if the guard flags `text`. The log never contains the text."""
        if "prompt" not in self._found:
            return
        with self._turn(control):
            assert self._guard is not None
            verdict = self._guard.verdict(text, control.checkpoint)
        log.info("job %s: the prompt is %s", control.job_id, verdict)
        if verdict.flagged:
            raise ContentPolicy("prompt")

    def check_image(self, image: Image.Image, control: Control) -> None:
        """Raise `ContentPolicy` if the picture is flagged."""
        if "image" not in self._found:
            return
        verdict = self._look(image, control)
        log.info("job %s: the image is %s", control.job_id, verdict)
        if verdict.flagged:
            raise ContentPolicy("image")

    def check_frames(self, frames: Frames, control: Control) -> None:
        """Raise `ContentPolicy` if frames of a video, one per second, are flagged by the rule of
        `watch`."""
        for _ in self.watch((one[None] for one in frames), 1, control):
            pass

    def watch(
        self, frames: Generator[Frames, None, None], fps: int, control: Control
    ) -> Generator[Frames, None, None]:
        """Pass chunks of uint8 [n, h, w, 3] through unchanged, and check the first frame of each
        second.

        Raises `ContentPolicy` at the second hit, or at the end of a clip that is so short that all
        checked frames are hits. Closes `frames`; keeps none.
        """
        with closing(frames):
            if "image" not in self._found:
                yield from frames
                return
            seen = checked = hits = 0
            for chunk in frames:
                while checked * fps < seen + len(chunk):
                    frame = Image.fromarray(chunk[checked * fps - seen])
                    verdict = self._look(frame, control)
                    checked += 1
                    if verdict.flagged:
                        hits += 1
                        log.info("job %s: second %d is %s", control.job_id, checked - 1, verdict)
                    if hits == _HITS:
                        raise ContentPolicy("video")
                seen += len(chunk)
                yield chunk
                del chunk  # drop it, so that it is not held while the next one is decoded
        if hits and hits == checked:
            raise ContentPolicy("video")

    def passes(self, pictures: Iterable[Image.Image], control: Control) -> bool:
        """Whether none of the pictures is flagged. One hit is enough, because a preview that is not
        shown costs nothing."""
        if "image" not in self._found:
            return True
        return not any(self._look(one, control).flagged for one in pictures)

    def warnings(self) -> list[str]:
        """The warnings about missing checks, for a result."""
        missing = [
            f"No safety classifier for {_WHAT[kind]} is installed: they were not checked"
            for kind in self._missing
        ]
        return missing + [
            f"{located.spec.name} is a safety classifier for tests: {_WHAT[kind]} were not "
            "really checked"
            for kind, located in self._found.items()
            if located.spec.is_toy
        ]

    def describe(self) -> str:
        """One line for the log: the classifier of each check, and the checks that are off."""
        if not self._found and not self._missing:
            return "off: nothing is checked (WAN_SAFETY)"
        parts = []
        for kind, located in self._found.items():
            labels = ", ".join(f"{label} from {p:g}" for label, p in located.spec.flagged.items())
            shown = f" ({labels})" if labels else ""
            parts.append(f"{_WHAT[kind]} are checked with {located.spec.name}{shown}")
        parts += [
            f"{_WHAT[kind]} are not checked: {why.rstrip('.')}"
            for kind, why in self._missing.items()
        ]
        return "; ".join(parts)

    def _look(self, image: Image.Image, control: Control) -> Verdict:
        with self._turn(control):
            assert self._classifier is not None
            return self._classifier.verdict(image)

    @contextmanager
    def _turn(self, control: Control) -> Iterator[None]:
        """Run one check at a time and account its time to "safety". Stops if the job must end."""
        control.checkpoint()
        with control.within("safety"), self._lock:
            self._load()
            yield
        control.checkpoint()

    def _load(self) -> None:
        if self._guard is None and (found := self._found.get("prompt")):
            self._guard = _loaded(PromptGuard, found, self._device)
        if self._classifier is None and (found := self._found.get("image")):
            self._classifier = _loaded(ImageClassifier, found, self._device)


@dataclass(frozen=True)
class Verdict:
    """`probability` of a hit, and the most probable label, such as "nsfw" or "Unsafe, Violent"."""

    flagged: bool
    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.label} (hit: {self.probability:.3f})"


# --- prompts -------------------------------------------------------------------------------------


class PromptGuard:
    """A Qwen3Guard-Gen model. Its verdict comes from the probabilities of its labels, never from
    generated text.

    The chat template puts the prompt into the middle of the user's turn. The part before it is the
    same for every prompt, so its keys and values are computed once.
    """

    def __init__(self, located: LocatedClassifier, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(located.folder, trust_remote_code=False)
        self._model = _model(AutoModelForCausalLM, located.folder, device)
        self._device = device
        self._added = set(self._tokenizer.get_added_vocab().values())
        before, self._lead, self._trail, after = self._frame(located.spec.name)
        self._before = self._ids(before)
        self._after = self._ids(after + "Safety:")
        self._verdicts = [self._ids(f" {label}") for label in GUARD_VERDICTS]
        self._categories = [self._ids(f" {label}") for label in GUARD_CATEGORIES]
        # Another category, or the end, may follow a category.
        self._comma = self._ids(",")[0]
        self._ends = [self._ids("\n")[0], self._tokenizer.eos_token_id]
        with torch.inference_mode():
            self._start = self._model(
                input_ids=self._tensor([self._before]), use_cache=True, logits_to_keep=1
            ).past_key_values

    def verdict(self, text: str, checkpoint: Callable[[], None]) -> Verdict:
        """The worst verdict on any piece of `text`; `checkpoint` is called before each pass."""
        import torch

        with torch.inference_mode():
            verdicts = [self._piece(piece, checkpoint) for piece in _pieces(readable(text))]
        return max(verdicts, key=lambda verdict: verdict.probability)

    def tokens(self, text: str) -> list[int]:
        """The tokens of `text` in the guard's input. Special tokens in it are plain text."""
        ids = self._tokenizer(
            self._lead + text + self._trail, add_special_tokens=False, split_special_tokens=True
        ).input_ids
        # The tokenizer also finds added tokens that are not special, such as <think>.
        return [index for index in ids if index not in self._added]

    def _piece(self, text: str, checkpoint: Callable[[], None]) -> Verdict:
        checkpoint()
        cache = copy.deepcopy(self._start)
        last = self._extend(cache, self.tokens(text) + self._after)
        probabilities, _ = self._choose(cache, last, self._verdicts)
        likely = dict(zip(GUARD_VERDICTS, probabilities, strict=True))
        if likely["Safe"] > 1 - GUARD_THRESHOLD:
            return Verdict(False, "Safe", 1 - likely["Safe"])
        label = max(likely, key=likely.__getitem__)
        hit = 0.0
        for verdict, ids in zip(GUARD_VERDICTS, self._verdicts, strict=True):
            if not GUARD_FLAGGED[verdict]:
                continue
            checkpoint()
            asked = ids + self._ids("\nCategories:")
            last = self._extend(cache, asked)
            probabilities, more = self._choose(cache, last, self._categories)
            cache.crop(-len(asked))
            hit += likely[verdict] * _flagged_share(GUARD_FLAGGED[verdict], probabilities, more)
            if verdict == label:
                label += f", {GUARD_CATEGORIES[int(np.argmax(probabilities))]}"
        return Verdict(hit >= GUARD_THRESHOLD, label, hit)

    def _extend(self, cache: Any, ids: list[int]) -> Any:
        """Add tokens to `cache`, and return the log-probabilities [vocabulary] of the next
        token."""
        output = self._model(
            input_ids=self._tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[0, -1].float().log_softmax(-1)

    def _choose(
        self, cache: Any, last: Any, options: list[list[int]]
    ) -> tuple[list[float], list[float]]:
        """The probability of each option among all of them, and the probability that a comma
        follows it rather than the end. All tokens of an option count (teacher forcing).

        The options are in one sequence, and each attends only to itself and to the text before all
        of them. Ten rows would need ten copies of the cache. `cache` is restored afterwards.
        """
        import torch

        past = cache.get_seq_length()
        owner = torch.tensor([row for row, option in enumerate(options) for _ in option])
        place = torch.tensor([place for option in options for place in range(len(option))])
        visible = torch.ones(len(owner), past + len(owner), dtype=torch.bool)
        visible[:, past:] = (owner[:, None] == owner) & (place[:, None] >= place)
        mask = torch.zeros(visible.shape, dtype=self._model.dtype)
        mask[~visible] = torch.finfo(mask.dtype).min
        output = self._model(
            input_ids=self._tensor([[index for option in options for index in option]]),
            position_ids=(past + place)[None].to(self._device),
            attention_mask=mask[None, None].to(self._device),
            past_key_values=cache,
            use_cache=True,
        )
        cache.crop(-len(owner))
        told = output.logits[0].float().log_softmax(-1)
        sums, more, start = [], [], 0
        for option in options:
            rest = [told[start + at, index] for at, index in enumerate(option[1:])]
            sums.append(last[option[0]] + sum(rest))
            after = told[start + len(option) - 1]
            comma = after[self._comma] - torch.logsumexp(after[[self._comma, *self._ends]], 0)
            more.append(float(comma.exp()))
            start += len(option)
        chosen: list[float] = torch.stack(sums).softmax(0).tolist()
        require_finite([*chosen, *more], "the prompt guard")
        return chosen, more

    def _frame(self, name: str) -> tuple[str, str, str, str]:
        """The text that the chat template puts before and after a prompt. Spaces next to the prompt
        are separate, because a tokenizer joins them with its words."""
        text = ""
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
            )
        before, mark, after = text.partition(_MARK)
        if not mark or _MARK in after:
            raise ConfigurationError(
                f"{name} has no chat template that shows a prompt once, so it is not a "
                "Qwen3Guard-Gen model. Set WAN_SAFETY_PROMPT_MODEL to one."
            )
        lead = before[len(before.rstrip()) :]
        trail = after[: len(after) - len(after.lstrip())]
        return before.rstrip(), lead, trail, after.lstrip()

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _tensor(self, rows: list[list[int]]) -> Any:
        import torch

        return torch.tensor(rows, device=self._device)


def readable(text: str) -> str:
    """`text` as the text encoder of the video model reads it, but on one line and without invisible
    characters.

    A word cannot be hidden behind an entity, an invisible character or another width, and no text
    can imitate a line or a tag of the guard's template.
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))  # as the Wan pipelines clean prompts
    text = unicodedata.normalize("NFKC", text)
    kept = (letter for letter in text if letter.isspace() or unicodedata.category(letter)[0] != "C")
    return " ".join("".join(kept).replace("<", "(").replace(">", ")").split())


def _pieces(text: str) -> Iterator[str]:
    step = _PIECE_CHARACTERS - _OVERLAP_CHARACTERS
    for start in range(0, max(1, len(text) - _OVERLAP_CHARACTERS), step):
        yield text[start : start + _PIECE_CHARACTERS]


def _flagged_share(flagged: frozenset[str], likely: list[float], more: list[float]) -> float:
    """The probability that a list of categories has a flagged one, from its first category and
    whether there are `more`."""
    share = 0.0
    for name, probability, continued in zip(GUARD_CATEGORIES, likely, more, strict=True):
        if name in flagged:
            share += probability
        elif flagged.issuperset(set(GUARD_CATEGORIES) - {name}):  # every other category is safe
            share += probability * continued
    return share


# --- images --------------------------------------------------------------------------------------


class ImageClassifier:
    """Any image classifier of transformers. A hit is a flagged label at or above its threshold."""

    def __init__(self, located: LocatedClassifier, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        # The default backend is torchvision's, which is not installed.
        self._processor = AutoImageProcessor.from_pretrained(
            located.folder, backend="pil", trust_remote_code=False
        )
        self._model = _model(AutoModelForImageClassification, located.folder, device)
        self._device = device
        self._flagged = located.spec.flagged

    def verdict(self, image: Image.Image) -> Verdict:
        """Whether the picture (any size, RGB) is a hit, with the flagged label that is nearest to
        its threshold."""
        likely = self._probabilities(image)
        label = max(self._flagged, key=lambda name: likely[name] / self._flagged[name])
        return Verdict(likely[label] >= self._flagged[label], label, likely[label])

    def _probabilities(self, image: Image.Image) -> dict[str, float]:
        import torch

        if max(image.size) > _IMAGE_SIDE:
            image = ImageOps.contain(image, (_IMAGE_SIDE, _IMAGE_SIDE))
        inputs = self._processor(images=image.convert("RGB"), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._model.dtype)
        with torch.inference_mode():
            logits = self._model(pixel_values=pixels).logits[0].float()
        config = self._model.config
        several = config.problem_type == "multi_label_classification"
        values = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        require_finite(values, "the image classifier")
        return {config.id2label[place].lower(): value for place, value in enumerate(values)}


# --- loading -------------------------------------------------------------------------------------


def _loaded(
    kind: Callable[[LocatedClassifier, str], Any], found: LocatedClassifier, to: str
) -> Any:
    from safetensors import SafetensorError

    quiet_libraries(bars=True)
    log.info("safety classifier %s on %s", found.spec.name, to)
    try:
        return kind(found, to)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelMissing(
            f"The safety classifier {found.spec.name} cannot be loaded "
            f"({type(error).__name__}: its files are damaged or of another kind). Fetch it again "
            "with `python -m wan_engine download safety`."
        ) from error


def _model(auto: Any, folder: Path, device: str) -> Any:
    """The model for inference, in bfloat16 on a GPU and float32 on a CPU."""
    import torch

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model, report = auto.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # transformers fills missing weights with random numbers, and the verdict would be random.
    if report["missing_keys"]:
        raise ValueError(f"no weights for {', '.join(sorted(report['missing_keys'])[:3])}")
    return model.to(device).eval()
