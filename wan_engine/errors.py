"""Defines every error of the engine, as one tree. `str(error)` is always the sentence for the
caller: no path, host or traceback.

EngineError               something failed that is nobody's input
|- InvalidRequest         a field of the request is wrong; the caller can mend it
|  |- InvalidMedia        an image, video or sound that cannot be fetched or used
|  '- NotServed           no model that is configured here takes what the request has
|- TimeLimitTooShort      the job would surely run longer than it may, and was not begun
|- ContentPolicy          the safety checker flagged the prompt, the image or the clip
|- Cancelled              the caller asked for the job to stop
|- DeadlineExceeded       the job ran longer than it may
|- NotFinite              a network gave numbers that are no picture
|- CompileFailed          blocks that had to be compiled could not be
|- OutOfMemory            the accelerator's memory does not hold this job, not even with offload
|- DiskFull               there is no room for the job's files
|- EncodeFailed           ffmpeg did not finish the clip
|- StorageFailed          the finished clip could not be stored
|- JobRefused             the job ended its worker before and is not tried again
'- ConfigurationError     the operator has to change something; raised at start, never by a request
   '- ModelMissing        the model's files are absent or incomplete

What is done about them, apart from telling the caller: connections that break and servers that are
busy are asked again where they are asked (`media/fetch.py`, `storage/patience.py`, `runpod_loop.py`
for results); `OutOfMemory` is tried once more with a leaner recipe, `CompileFailed` with blocks as
they are, unless WAN_COMPILE is `required` (`engine.py`); a clip that cannot be stored waits in the
spool (`storage/spool.py`), where a job that killed its worker twice is remembered as well; a full
disk is looked for before a job and its folder is gone after it (`scratch.py`). Anything else is a
bug: the caller gets a reference, the log the rest. After one, the device is looked at
(`faults.py`): a process whose device is broken, or whose job hangs (`watchdog.py`), ends
(`handler.py`, `gateway/backends/engine_process.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal


class EngineError(Exception):
    """Base of all errors of this package. `code` is stable for programs; `begins` is how sentences
    begin by which the code can be told where only the sentence arrives."""

    code: ClassVar[str] = "internal_error"
    begins: ClassVar[tuple[str, ...]] = ()


class InvalidRequest(EngineError):
    code = "invalid_request"
    begins: ClassVar[tuple[str, ...]] = ('field "',)


class InvalidMedia(InvalidRequest):
    """`field` is "image", "last_image", "references[0]", "audio" or "webhook"; the sentence becomes
    `Invalid image URL: <why>`."""

    code = "invalid_media"
    begins = (
        "Invalid image URL",
        "Invalid last_image URL",
        "Invalid references[",
        "Invalid audio URL",
    )

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"Invalid {field} URL: {why}")
        self.field = field
        self.why = why


class NotServed(InvalidRequest):
    """The sentence names the field, and what the model takes that is here."""


class ContentPolicy(EngineError):
    """`flagged` is what was flagged. The sentence has no label: it would teach how to get around
    the checker; the log has label and probability."""

    code = "content_policy"
    begins = ("Content policy",)

    def __init__(self, flagged: Literal["prompt", "image", "video"]) -> None:
        super().__init__(f"Content policy: {flagged} was flagged")
        self.flagged = flagged


class Cancelled(EngineError):
    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("The job was cancelled")


class DeadlineExceeded(EngineError):
    code = "deadline_exceeded"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The job ran longer than the {seconds:g} seconds that it may take")


class TimeLimitTooShort(EngineError):
    """`seconds` is the estimate, `left` what is left of the job's time; `less` names what would
    take less."""

    code = "time_limit_too_short"
    begins = ("The clip should take about ",)

    def __init__(self, seconds: float, left: float, less: Sequence[str] = ()) -> None:
        advice = f"{' or '.join(less)} takes less" if less else "it needs a longer time limit"
        super().__init__(
            f"The clip should take about {seconds:.0f} s here, and the job has {left:.0f} s: "
            f"{advice}"
        )


class NotFinite(EngineError):
    """`where` names the network, and the step where it has steps; for the log."""

    code = "not_finite"

    def __init__(self, where: str) -> None:
        super().__init__("The model gave numbers that are not finite: no clip was made")
        self.where = where


class CompileFailed(EngineError):
    """`why` is for the log and the operator."""

    code = "compile_failed"

    def __init__(self, why: str) -> None:
        super().__init__("The worker could not compile the model")
        self.why = why


class OutOfMemory(EngineError):
    code = "out_of_memory"


class DiskFull(EngineError):
    code = "disk_full"

    def __init__(self) -> None:
        super().__init__("The worker's disk has no room for the job")


class EncodeFailed(EngineError):
    code = "encode_failed"


class StorageFailed(EngineError):
    code = "storage_failed"


class JobRefused(EngineError):
    code = "job_refused"

    def __init__(self, starts: int) -> None:
        super().__init__(f"The job ended its worker {starts} times and is not tried again")


class ConfigurationError(EngineError):
    """The sentence is for the operator: what is wrong and what to do about it."""

    code = "configuration_error"


class ModelMissing(ConfigurationError):
    code = "model_missing"


def _kinds(kind: type[EngineError] = EngineError) -> Iterator[type[EngineError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


CODES = frozenset(kind.code for kind in _kinds())
_BEGINS = tuple((kind.begins, kind.code) for kind in _kinds() if kind.begins)


def code_of(sentence: str) -> str:
    """The code of the error whose sentences begin so; `internal_error` where none does."""
    return next((code for begins, code in _BEGINS if sentence.startswith(begins)), EngineError.code)


class Warned(str):
    """What a check found that will work, but not as promised. Not an error: it is returned."""

    __slots__ = ()
