"""Expands prompts without a model: the caller's words first, then fixed phrases for image-to-video
models. The same request always gives the same words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wan_engine.prompts.replies import framing, languages, whole_seconds
from wan_engine.prompts.task import Task
from wan_engine.schema import PROMPT_MAX_CHARACTERS, ScriptShot


@dataclass(frozen=True)
class _Words:
    """The phrases of one language, and the words that show that a prompt already covers a
    phrase."""

    motion: str
    camera: str
    light: str
    spoke_of_motion: str
    spoke_of_camera: str
    spoke_of_light: str
    stop: str
    shots: tuple[tuple[str, str], ...]
    """A phrase and a camera move for each shot: establishing, closer, detail."""


_ENGLISH = _Words(
    motion="The motion is natural, continuous and physically plausible.",
    camera="The camera moves in slowly and steadily.",
    light="The light stays soft and constant, and the subject keeps its look.",
    spoke_of_motion=r"slow|fast|quick|smooth|gentl|sudden|motion|movement",
    spoke_of_camera=r"camera|zoom|\bpan|doll(?:y|ies)|tilt|crane|orbit|tracking|handheld|close-?up|"
    r"(?:wide|long|static|aerial|drone) ?(?:shot|view)|timelapse|time-lapse",
    spoke_of_light=r"light|\blit\b|sun|glow|shadow|dark|neon|dusk|dawn|night",
    stop=".",
    shots=(
        ("An establishing view of the whole scene.", "The camera drifts forward slowly."),
        ("A closer view of the subject, the action goes on.", "The camera holds, almost still."),
        ("A close view of the most telling detail.", "The camera pushes in gently."),
    ),
)
_CHINESE = _Words(
    motion="动作自然连贯，符合物理规律。",  # noqa: RUF001
    camera="镜头缓慢平稳地推进。",
    light="光线柔和稳定，主体外观保持一致。",  # noqa: RUF001
    spoke_of_motion=r"缓慢|慢慢|快速|迅速|突然|轻轻|动作",
    spoke_of_camera=r"镜头|特写|推进|拉远|平移|环绕|跟拍|航拍|摇摄|俯拍|仰拍|变焦|延时",
    spoke_of_light=r"光|阳|影|夜|霓虹|黄昏|黎明",
    stop="。",
    shots=(
        ("全景，交代整个场景。", "镜头缓缓向前。"),  # noqa: RUF001
        ("近景，主体的动作在继续。", "镜头几乎静止。"),  # noqa: RUF001
        ("特写，最能说明问题的细节。", "镜头轻轻推近。"),  # noqa: RUF001
    ),
)
_TWO_SHOTS, _THREE_SHOTS = 4, 9  # seconds; 2 to 5 s each, because every shot is a separate run


def expand(task: Task) -> tuple[ScriptShot, ...]:
    """The shots of a task. A prompt in a language without phrases here is not changed."""
    shares = languages(task.prompt)
    main = max(shares, key=lambda name: shares[name], default="LATIN")
    words = {"LATIN": _ENGLISH, "CJK": _CHINESE}.get(main)
    if not task.multi:
        return (ScriptShot(_single(task.prompt, words), task.seconds),)
    count = 1 + (task.seconds >= _TWO_SHOTS) + (task.seconds >= _THREE_SHOTS)
    shots = []
    for number, seconds in enumerate(whole_seconds([1.0] * count, task.seconds)):
        phrase, camera = words.shots[number] if words else ("", "")
        if words and _spoke_of(words.spoke_of_camera, task.prompt):
            camera = ""
        prompt = _added(task.prompt, [phrase], words, PROMPT_MAX_CHARACTERS)
        if len(prompt) + 1 + len(camera) > PROMPT_MAX_CHARACTERS:
            camera = ""
        shots.append(ScriptShot(prompt, seconds, camera, framing(number)))
    return tuple(shots)


def _single(prompt: str, words: _Words | None) -> str:
    if words is None:
        return prompt
    topics = (
        (words.motion, words.spoke_of_motion),
        (words.camera, words.spoke_of_camera),
        (words.light, words.spoke_of_light),
    )
    phrases = [phrase for phrase, spoke_of in topics if not _spoke_of(spoke_of, prompt)]
    return _added(prompt, phrases, words, PROMPT_MAX_CHARACTERS)


def _spoke_of(pattern: str, prompt: str) -> bool:
    return re.search(pattern, prompt, re.I) is not None


def _added(prompt: str, phrases: list[str], words: _Words | None, max_characters: int) -> str:
    """The prompt with the phrases that still fit. The caller's own words are never cut for a
    phrase."""
    if words is None:
        return prompt
    text = prompt.rstrip()
    for phrase in phrases:
        stop = words.stop if text[-1].isalnum() else ""
        longer = f"{text}{stop} {phrase}" if words.stop == "." else f"{text}{stop}{phrase}"
        if len(longer) <= max_characters:
            text = longer
    return text
