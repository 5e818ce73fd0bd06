"""Defines every error of the engine, as one tree. `str(error)` is always the sentence for the
caller: no path, host or traceback. `ConfigurationError` is for the operator, and may name paths.

EngineError               an internal failure, not caused by the input
|- InvalidRequest         a field of the request is wrong; the caller can correct it
|  |- InvalidMedia        an image, video or sound cannot be fetched or used
|  '- NotServed           no configured model accepts a field of the request
|- TimeLimitTooShort      the job would exceed its time limit, and was not started
|- ContentPolicy          the safety checker flagged the prompt, the image or the clip
|- Cancelled              the caller cancelled the job
|- DeadlineExceeded       the job ran longer than its time limit
|- NotFinite              a network returned NaN or infinity
|- CompileFailed          blocks could not be compiled although compilation is required
|- OutOfMemory            the accelerator has too little memory for this job, even with offload
|- DiskFull               there is no room for the job's files
|- EncodeFailed           ffmpeg did not finish the clip
|- StorageFailed          the finished clip could not be stored
|- JobRefused             the job crashed its worker before and is not tried again
'- ConfigurationError     the operator has to change something; raised at start, never by a request
   |- ModelMissing        the model's files are absent or incomplete
   '- LoraRefused         a LoRA file cannot be fused; a caller who named it gets `InvalidRequest`

The caller gets every error. Besides that:

- Broken connections and busy servers are retried by the code that calls them (`media/fetch.py`,
  `storage/retries.py`, and `worker/runpod_loop.py` for results).
- `OutOfMemory` is retried with a leaner recipe, and `CompileFailed` without compilation unless
  WAN_COMPILE is `required` (`pool.py`).
- A clip that cannot be stored waits in the spool, which also remembers jobs that crashed their
  worker twice (`storage/spool.py`).
- Free disk space is checked before a job, and its folder is removed after it
  (`runtime/scratch.py`).
- Any other exception is a bug: the caller gets a reference, the log gets the traceback. The device
  is checked after it (`runtime/faults.py`). A process with a broken device or a hung job
  (`runtime/watchdog.py`) ends (`handler.py`, `gateway/backends/engine_process.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal


class EngineError(Exception):
    """Base of all errors of this package. `code` is stable for programs."""

    code: ClassVar[str] = "internal_error"


class InvalidRequest(EngineError):
    code = "invalid_request"


class InvalidMedia(InvalidRequest):
    """`field` is "image", "last_image", "first_clip", "references[0]", "audio" or "webhook"; the
    sentence becomes `Invalid image URL: <why>`."""

    code = "invalid_media"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"Invalid {field} URL: {why}")
        self.field = field
        self.why = why


class NotServed(InvalidRequest):
    """The sentence names the field, and what the configured model accepts."""


class ContentPolicy(EngineError):
    """`flagged` is the flagged input. The sentence has no label, because that would teach how to
    evade the checker. The log has label and probability."""

    code = "content_policy"

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
        super().__init__(f"The job exceeded its time limit of {seconds:g} seconds")


class TimeLimitTooShort(EngineError):
    """`seconds` is the estimate, `left` the rest of the job's time; `less` names options that would
    take less."""

    code = "time_limit_too_short"

    def __init__(self, seconds: float, left: float, less: Sequence[str] = ()) -> None:
        advice = f"{' or '.join(less)} takes less" if less else "it needs a longer time limit"
        super().__init__(
            f"The clip should take about {seconds:.0f} s here, and the job has {left:.0f} s: "
            f"{advice}"
        )


class NotFinite(EngineError):
    """`where` names the network and its step, for the log."""

    code = "not_finite"

    def __init__(self, where: str) -> None:
        super().__init__("The model returned numbers that are not finite, so no clip was made")
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
        super().__init__(f"The job crashed its worker {starts} times and is not tried again")


class ConfigurationError(EngineError):
    """The sentence is for the operator: what is wrong, and what to do."""

    code = "configuration_error"


class ModelMissing(ConfigurationError):
    code = "model_missing"


class LoraRefused(ConfigurationError):
    """`why` names the file without its folder; `advice` is for the operator alone."""

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(f"{why}. {advice}" if advice else why)
        self.why = why


def _kinds(kind: type[EngineError] = EngineError) -> Iterator[type[EngineError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


CODES = frozenset(kind.code for kind in _kinds())


class Warned(str):
    """The finding of a check: jobs work, but not as promised. It is returned, not raised."""

    __slots__ = ()
