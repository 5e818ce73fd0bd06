"""Parses a model's raw answer into usable shots, or says why it cannot be used. Pure functions; the
answer is untrusted text."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from wan_engine.prompts.task import MIN_SHOT_SECONDS, Task, WriterFailed
from wan_engine.schema import PROMPT_MAX_CHARACTERS, Framing, ScriptShot

_REPLY_MAX_CHARACTERS = 20_000
_CAMERA_MAX_CHARACTERS = 200
_SOUND_MAX_CHARACTERS = 400
_SHARE_THAT_COUNTS = 0.2  # of the letters; a script with less is not a language of the prompt
_ECHO_CHARACTERS = 50  # a longer quote of our instructions is no accident
_LATER_FRAMINGS: tuple[Framing, ...] = ("closer", "detail")

_THOUGHT = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_MARKER = re.compile(
    r"<\|[^<>]{0,40}\|>|</?s>|<(?:start|end)_of_turn>|</?think>|\[/?INST\]|<pad>|<unk>", re.I
)
# Only at the start: "She says: I can't stay" is a prompt.
_REFUSAL = re.compile(
    r"\W*(?:"
    r"(?:i'm |im |i am |we are |we're )?(?:very |so |really )?sorry[,.!]? (?:but|i|we)\b"
    r"|(?:i|we) (?:cannot|can't|can not|won't|will not|am not able|am unable|must decline)\b"
    r"|i'm (?:unable|not able)\b|unable to (?:comply|assist|help)|as an ai\b"
    r"|抱歉|对不起|很抱歉|我无法|我不能|作为(?:一个|一名)?(?:ai|人工智能)|無法|我無法"
    r"|申し訳|죄송|lo siento|je suis désolé|es tut mir leid|извините|к сожалению"
    r")",
    re.I,
)


def shots_of(reply: str, task: Task) -> tuple[ScriptShot, ...]:
    """The shots in a writer's answer, repaired if that changes no meaning. Each has text in the
    prompt's language, and the whole seconds add up to the duration. Raises `WriterFailed` with the
    reason."""
    found = _object(reply)
    entries = found.get("shots") if task.multi else [found]
    if not isinstance(entries, list) or not entries:
        raise WriterFailed("the answer has no shots")
    shots = [_entry(entry, task) for entry in entries]
    for shot in shots:
        _check(f"{shot.prompt} {shot.camera}".strip(), task)
    if not task.multi:
        return (ScriptShot(shots[0].prompt, task.seconds, sound=shots[0].sound),)
    while len(shots) > task.shots_at_most:
        shots = _merged(shots)
    lengths = whole_seconds([shot.weight for shot in shots], task.seconds)
    return tuple(
        ScriptShot(shot.prompt, seconds, shot.camera, framing(number), shot.sound)
        for number, (shot, seconds) in enumerate(zip(shots, lengths, strict=True))
    )


class _Shot(NamedTuple):
    """One shot of an answer. `weight` is its requested length."""

    prompt: str
    camera: str
    weight: float
    sound: str


def framing(number: int) -> Framing:
    """How much of the image a shot shows, by its number: the whole image first, then two crops that
    alternate."""
    return _LATER_FRAMINGS[(number - 1) % len(_LATER_FRAMINGS)] if number else "whole"


def whole_seconds(weights: list[float], total: int) -> list[int]:
    """Whole seconds in proportion to `weights`, each at least `MIN_SHOT_SECONDS`, that add up to
    `total`. The largest remainders are rounded up. `total` must have room for all."""
    spare = total - MIN_SHOT_SECONDS * len(weights)
    assert spare >= 0, "more shots than the clip has room for"
    wanted = [max(0.0, total * weight / sum(weights) - MIN_SHOT_SECONDS) for weight in weights]
    scale = spare / sum(wanted) if sum(wanted) else 0.0
    shares = [want * scale for want in wanted] if scale else [spare / len(weights)] * len(weights)
    extra = [int(share + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda at: (extra[at] - shares[at], at))
    for at in by_remainder[: spare - sum(extra)]:
        extra[at] += 1
    return [MIN_SHOT_SECONDS + more for more in extra]


def cut_at_sentence(text: str, max_characters: int) -> str:
    """`text` cut after the last whole sentence that fits, or after a word if not even one sentence
    fits."""
    if len(text) <= max_characters:
        return text
    text = text[:max_characters]
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|[。！？]", text)]  # noqa: RUF001
    if ends:
        return text[: ends[-1]]
    return text.rpartition(" ")[0] or text


def languages(text: str) -> dict[str, float]:
    """The scripts of the letters in `text` with their shares, under their common names.

    Han next to kana counts as Japanese. A Han or Hangul character counts as two letters, because it
    carries about that much more.
    """
    counts: Counter[str] = Counter()
    for letter in filter(str.isalpha, text):
        name = unicodedata.name(letter, "OTHER").split(maxsplit=1)[0]
        name = {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA", "HIRAGANA": "KATAKANA"}.get(
            name, name
        )
        counts[name] += 2 if name in ("CJK", "HANGUL") else 1
    if counts["KATAKANA"] and counts["KATAKANA"] * 5 >= counts["CJK"]:
        counts["KATAKANA"] += counts.pop("CJK", 0)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items() if count}


def _object(reply: str) -> dict[str, Any]:
    """The JSON object in an answer: alone, in a code fence, after reasoning or within other
    text."""
    text = _THOUGHT.sub("", reply).strip()
    if not text:
        raise WriterFailed("the answer is empty")
    if len(text) > _REPLY_MAX_CHARACTERS:
        raise WriterFailed("the answer is too long")
    for start in [match.start() for match in re.finditer(r"\{", text)][:20]:
        for found in _readings(text[start:]):
            if isinstance(found, dict) and ("prompt" in found or "shots" in found):
                return found
    if _refuses(text):
        raise WriterFailed("the model refused")
    raise WriterFailed("the answer is not the JSON that was asked for")


def _readings(text: str) -> Iterator[Any]:
    """Possible readings of the object at the start of `text`: as it is, without trailing commas,
    and as a Python literal with single quotes."""
    decoder = json.JSONDecoder(strict=False)  # models write raw line breaks into strings
    for candidate in (text, _TRAILING_COMMA.sub(r"\1", text)):
        try:
            yield decoder.raw_decode(candidate)[0]
        except (ValueError, RecursionError):
            continue
    end = text.rfind("}") + 1
    if "\\" not in text:  # Python's escapes are not JSON's
        try:
            yield ast.literal_eval(text[:end])
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return


def _entry(entry: Any, task: Task) -> _Shot:
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise WriterFailed("the answer has a shot without a prompt")
    camera = entry.get("camera")
    camera = _spaced(camera) if isinstance(camera, str) else ""
    if len(camera) > _CAMERA_MAX_CHARACTERS:
        camera = cut_at_sentence(camera, _CAMERA_MAX_CHARACTERS)
    return _Shot(
        _sentence(_spaced(entry["prompt"])),
        _sentence(camera),
        _weight(entry.get("seconds")),
        _sound(entry.get("sound"), task),
    )


def _sound(value: Any, task: Task) -> str:
    """The description of the sound. Empty if it is unusable, because the clip does not need it."""
    if not task.heard or not isinstance(value, str):
        return ""
    sound = cut_at_sentence(_spaced(value), _SOUND_MAX_CHARACTERS)
    try:
        _check(sound, replace(task, prompt=""))  # sounds may be described in any language
    except WriterFailed:
        return ""
    return sound


def _spaced(text: str) -> str:
    """The text as one line, without control characters and lone surrogates, which some tokenizers
    refuse."""
    text = text.encode("utf-8", "ignore").decode("utf-8")
    kept = (" " if unicodedata.category(sign) == "Cc" else sign for sign in text)
    return " ".join("".join(kept).split())


def _sentence(text: str) -> str:
    """The sentence with a full stop in its own script, so that another sentence can follow."""
    if not text or not text[-1].isalnum():
        return text
    return text + ("。" if unicodedata.name(text[-1], "").startswith("CJK") else ".")


def _weight(seconds: object) -> float:
    """The requested length as a positive number, or 3 if the answer has none."""
    if isinstance(seconds, str):
        number = re.search(r"\d{1,4}(?:\.\d{1,4})?", seconds)
        seconds = float(number.group()) if number else 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return 3.0
    if isinstance(seconds, float) and not math.isfinite(seconds):
        return 3.0
    return float(min(seconds, 1000)) if seconds > 0 else 3.0


def _check(text: str, task: Task) -> None:
    """Raise `WriterFailed` for text that must not become a prompt."""
    if not any(map(str.isalnum, text)):
        raise WriterFailed("the answer is empty")
    if len(text) > PROMPT_MAX_CHARACTERS:
        raise WriterFailed(f"the answer is longer than {PROMPT_MAX_CHARACTERS} characters")
    if _refuses(text) and not _refuses(task.prompt):
        raise WriterFailed("the model refused")
    if _MARKER.search(text):
        raise WriterFailed("the answer has a model's control tokens in it")
    if _echoes(text, task.instructions) or '{"' in text or text.startswith("<at most"):
        raise WriterFailed("the answer repeats the instructions")
    asked, got = languages(task.prompt), languages(text)
    if asked and got:
        most = max(got, key=lambda name: got[name])
        if asked.get(most, 0) < _SHARE_THAT_COUNTS:
            raise WriterFailed("the answer is in another language")


def _refuses(text: str) -> bool:
    return _REFUSAL.match(text.replace("\u2019", "'")) is not None


def _echoes(text: str, instructions: str) -> bool:
    instructions = " ".join(instructions.split())
    ends = range(_ECHO_CHARACTERS, len(text) + 1, 10)
    return any(text[end - _ECHO_CHARACTERS : end] in instructions for end in ends)


def _merged(shots: list[_Shot]) -> list[_Shot]:
    """The shots with the two shortest neighbours merged."""
    pairs = range(len(shots) - 1)
    at = min(pairs, key=lambda index: shots[index].weight + shots[index + 1].weight)
    first, second = shots[at], shots[at + 1]
    room = PROMPT_MAX_CHARACTERS - len(first.camera) - 1
    prompt = cut_at_sentence(f"{first.prompt} {second.prompt}", room)
    sound = cut_at_sentence(f"{first.sound} {second.sound}".strip(), _SOUND_MAX_CHARACTERS)
    joined = _Shot(prompt, first.camera, first.weight + second.weight, sound)
    return [*shots[:at], joined, *shots[at + 2 :]]
