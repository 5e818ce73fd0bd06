"""Renders on a Runpod endpoint: submit, follow, cancel. Any server with Runpod's API will do.

A busy or broken API is retried for as long as the job lives, less and less often. An answer may be
lost after the endpoint took the job, and this process may end before it stored the job's id. Then
the job is submitted again with the same name of its render. A worker of this project recognises the
name and answers with the id of the first job (`wan_engine.storage.claims`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import httpx

from wan_engine.control import Preview, Progress
from wan_engine.errors import (
    CODES,
    ConfigurationError,
    ContentPolicy,
    DeadlineExceeded,
    EngineError,
    InvalidMedia,
    InvalidRequest,
    TimeLimitTooShort,
)
from wan_engine.gateway.backends.base import Done, Work, WorkerLost, WorkFailed
from wan_engine.gateway.job import CALLERS_FAULTS
from wan_engine.gateway.uncancelled import uncancelled
from wan_engine.schema import Input, Task, parse_request
from wan_engine.schema.pricing import cost
from wan_engine.settings import Settings
from wan_engine.storage import claims

log = logging.getLogger(__name__)

_SLOTS = 500
_HTTP_SECONDS = 30.0
_FIRST_POLL_SECONDS = 1.0
_LONGEST_POLL_SECONDS = 5.0
_LONGEST_BACKOFF_SECONDS = 60.0
_HEALTH_SECONDS = 30.0
_CANCEL_TRIES = 4
_LONGEST_SENTENCE = 500
_REFUSALS = (400, 413, 422)
_PREVIEW = re.compile(r"data:image/(?:webp|jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")
_SENTENCES = (
    (re.compile("executionTimeout exceeded"), DeadlineExceeded),  # Runpod's own, with FAILED
    (re.compile('field "'), InvalidRequest),
    (re.compile(r"Invalid \S+ (URL|format)"), InvalidMedia),
    (re.compile("Content policy"), ContentPolicy),
    (re.compile("The clip should take about "), TimeLimitTooShort),
)
"""How the sentences of errors begin at an endpoint that sends no code: a hosted model of Runpod
("Invalid image URL", "Invalid audio format", as on its page), or another gateway of this
project."""


class _Away(Exception):
    """The API did not answer, or is busy. `status` is None if there was no answer."""

    def __init__(self, status: int | None, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Strict(Exception):
    """The endpoint runs another worker, which refuses the name of a render."""


class EndpointBackend:
    def __init__(
        self,
        settings: Settings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        poll_seconds: float = _FIRST_POLL_SECONDS,
    ) -> None:
        if not settings.runpod_endpoint or not settings.runpod_key:
            raise ConfigurationError(
                "A Runpod endpoint as backend needs WAN_RUNPOD_ENDPOINT and WAN_RUNPOD_KEY: set "
                "both, or WAN_BACKEND to local"
            )
        self.slots = _SLOTS
        self.outlives = True
        self.models: Mapping[Task, str] | None = None  # the API does not tell them
        self.takes: Mapping[Task, Collection[Input]] | None = None
        self.loras: Mapping[Task, Collection[str]] | None = None
        self._settings = settings
        self._claims = settings.runpod_claims
        self._poll_seconds = poll_seconds
        self._why: str | None = "the endpoint has not answered yet"
        self._looker: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(
            base_url=f"{settings.runpod_url.rstrip('/')}/{settings.runpod_endpoint}",
            headers={"Authorization": f"Bearer {settings.runpod_key.get_secret_value()}"},
            timeout=_HTTP_SECONDS,
            limits=httpx.Limits(max_connections=50),
            transport=transport,
        )

    async def start(self) -> None:
        self._looker = asyncio.create_task(self._look(), name="endpoint")

    def waiting_for(self) -> str | None:
        return self._why

    async def close(self) -> None:
        if self._looker is not None:
            self._looker.cancel()
            await asyncio.wait([self._looker])
        await self._http.aclose()

    def abandon(self) -> None:
        """Do nothing: the next owner of the jobs follows them by their remote ids."""

    async def run(self, work: Work) -> Done:
        remote = _Remote(work.remote_id)
        try:
            return await self._handed_over(work, remote)
        except asyncio.CancelledError:
            if remote.id is not None and not work.leaving():
                await self._cancel(remote.id)
            raise

    async def _handed_over(self, work: Work, remote: _Remote) -> Done:
        while True:
            if remote.id is None:
                await uncancelled(self._submit(work, remote), remote.stop)
            assert remote.id is not None, "only a run that is cancelled submits nothing"
            try:
                return await self._follow(work, remote)
            except _Strict:
                self._without_claims()
                remote.id = None
                await work.remote(None)

    def _without_claims(self) -> None:
        if self._claims:
            log.warning(
                "the endpoint's worker refuses the field %s, so it is no longer sent. If an "
                "answer is lost, its job may be rendered twice",
                claims.FIELD,
            )
        self._claims = False

    async def _submit(self, work: Work, remote: _Remote) -> None:
        """Submit until the endpoint has taken the job and its id is stored. The answer to a request
        is awaited in any case, because nobody could find the job again without its id."""
        fields = dict(await work.request())
        body: dict[str, Any] = {"input": fields}
        if work.seconds is not None:
            body["policy"] = {"executionTimeout": max(5_000, round(work.seconds * 1000))}
        waits = _Waits(self._poll_seconds, _LONGEST_BACKOFF_SECONDS)
        while not remote.stopped.is_set():
            fields.pop(claims.FIELD, None)  # a caller's own name would lead to another's clip
            if self._claims:
                fields[claims.FIELD] = work.render
            remote.named = claims.FIELD in fields
            try:
                answer = await self._ask("POST", "/run", body)
            except _Away as away:
                if remote.named and away.status in _REFUSALS and claims.FIELD in str(away):
                    self._without_claims()
                    continue
                if away.status in _REFUSALS:
                    raise WorkFailed("invalid_request", str(away)) from away
                log.warning("the endpoint did not accept job %s: %s", work.job_id, away)
                self._why = f"the endpoint does not take jobs: {away}"
                await waits.next(remote.stopped)
            else:
                self._why = None
                remote.id = str(answer["id"])
                await work.remote(remote.id)
                return

    async def _follow(self, work: Work, remote: _Remote) -> Done:
        """Follow the job to its end, or the job that renders it already."""
        begun = False
        waits = _Waits(self._poll_seconds, _LONGEST_POLL_SECONDS)
        while True:
            try:
                told = await self._ask("GET", f"/status/{remote.id}")
            except _Away as away:
                if away.status == 404:
                    log.error("the endpoint no longer knows job %s", work.job_id)
                    raise await _lost(work) from away
                log.warning("the state of job %s is unknown: %s", work.job_id, away)
                await waits.next()
                continue
            status, output = told.get("status"), told.get("output")
            if status == "COMPLETED" and (other := claims.duplicate_of(output)) is not None:
                await _become(work, remote, other)
                continue
            if not begun and status not in ("IN_QUEUE", "CANCELLED"):
                worker = told.get("workerId")
                await work.begin(worker if isinstance(worker, str) else None)
                begun = True
            if status == "COMPLETED":
                return Done(self._output(output, await work.request()))
            if status in ("CANCELLED", "FAILED", "TIMED_OUT"):
                raise await _ended(work, remote, told)
            if (progress := _progress(output)) is not None:
                work.progress(progress)
                _pass_preview(work, output, progress)
            await waits.next()

    async def _cancel(self, remote_id: str) -> None:
        waits = _Waits(self._poll_seconds, _LONGEST_POLL_SECONDS)
        for _ in range(_CANCEL_TRIES):
            try:
                await self._ask("POST", f"/cancel/{remote_id}")
            except _Away as away:
                if away.status == 404:
                    return
                log.warning("a job at the endpoint is not cancelled yet: %s", away)
                await waits.next()
            else:
                return

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request and return the answer, an object. Raises `_Away`."""
        try:
            response = await self._http.request(method, path, json=body)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise _Away(None, type(error).__name__) from error
        if response.status_code >= 400 or not isinstance(answer, dict):
            said = answer.get("error") if isinstance(answer, dict) else None
            why = said if isinstance(said, str) else f"it answered {response.status_code}"
            raise _Away(response.status_code, why[:_LONGEST_SENTENCE])
        return answer

    async def _look(self) -> None:
        """Check now and then whether the endpoint answers."""
        while True:
            try:
                await self._ask("GET", "/health")
            except _Away as away:
                self._why = f"the endpoint does not answer: {away}"
            else:
                self._why = None
            await asyncio.sleep(_HEALTH_SECONDS)

    def _output(self, output: object, request: Mapping[str, Any]) -> dict[str, Any]:
        """The output of a worker, which may be another project's, in the form of
        `VideoResult.output()`."""
        url = None
        if isinstance(output, dict):
            url = output.get("video_url") or output.get("result")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            log.error("the endpoint's output has no URL of a video")
            raise WorkFailed("internal_error", "The endpoint returned no video")
        assert isinstance(output, dict)
        asked = parse_request(request).order()
        price = float(cost(asked.size, asked.duration, self._settings.prices, asked.task))
        return {"cost": price, "seed": asked.seed, **output, "video_url": url, "result": url}


class _Remote:
    """The job at the endpoint: its id, if it is known, and whether it is still wanted."""

    def __init__(self, known: str | None) -> None:
        self.id = known
        self.named = True  # its render has a name
        self.adopted = False  # the id of an earlier start, whose fate is unknown
        self.stopped = asyncio.Event()

    def stop(self) -> None:
        self.stopped.set()


class _Waits:
    """Waits longer each time, with a random part so that callers do not retry together."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._seconds = first_seconds
        self._longest = max(first_seconds, longest_seconds)

    async def next(self, stopped: asyncio.Event | None = None) -> None:
        """Wait until the time is over or `stopped` is set."""
        seconds = self._seconds * random.uniform(0.8, 1.2)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (stopped or asyncio.Event()).wait()
        self._seconds = min(self._seconds * 1.4, self._longest)


async def _lost(work: Work) -> WorkerLost:
    """The error for a job at the endpoint that can give no clip any more."""
    await work.remote(None)
    return WorkerLost()


async def _become(work: Work, remote: _Remote, other: str) -> None:
    """Follow the other job from now on. Raises `WorkerLost` if there is none."""
    if remote.adopted or other == remote.id:
        log.error("the endpoint's workers send job %s from one to another", work.job_id)
        raise await _lost(work)
    log.info("job %s is job %s of the endpoint, which has it already", work.job_id, other)
    remote.id, remote.adopted = other, True  # before it is stored: a cancellation must reach it
    await work.remote(other)


async def _ended(work: Work, remote: _Remote, told: Mapping[str, Any]) -> Exception:
    """The error for a job at the endpoint that ended without a clip."""
    if told.get("status") == "CANCELLED":
        return WorkFailed("cancelled", "The job was cancelled at the endpoint")
    failure = _failure(told)
    if remote.named and failure.code == "internal_error" and claims.FIELD in str(told.get("error")):
        return _Strict()
    if remote.adopted and failure.code not in CALLERS_FAULTS:
        # It may have ended long ago, before anybody saw it: the name of its render is used up.
        return await _lost(work)
    return failure


def _failure(told: Mapping[str, Any]) -> WorkFailed:
    """The failure with the worker's sentence, unless that is a traceback, which the SDK makes of an
    exception."""
    said = told.get("error")
    if told.get("status") == "TIMED_OUT":
        return WorkFailed(DeadlineExceeded.code, "The job exceeded its time limit")
    if not isinstance(said, str) or not said or said.startswith("{") or "Traceback" in said:
        log.error("the endpoint's worker failed: %.2000s", said)
        return WorkFailed("internal_error", "The endpoint's worker failed")
    return WorkFailed(_code(said, told.get("output")), said[:_LONGEST_SENTENCE])


def _code(said: str, output: object) -> str:
    """The error code. A worker of this project puts it next to `error`, and the API returns it as
    the `output` of the failed job. Other workers send a sentence only."""
    code = output.get(claims.ERROR_CODE) if isinstance(output, dict) else None
    if isinstance(code, str) and code in CODES:
        return code
    found = (kind for begins, kind in _SENTENCES if begins.match(said))
    return next(found, EngineError).code


def _progress(output: object) -> Progress | None:
    if not isinstance(output, dict):
        return None
    with suppress(KeyError, TypeError, ValueError):
        return Progress(str(output["stage"]), int(output["step"]), int(output["steps"]))
    return None


def _pass_preview(work: Work, output: Any, progress: Progress) -> None:
    """Pass on what a worker with WAN_PREVIEWS=on adds to its progress."""
    uri, step = output.get("preview"), output.get("preview_step", progress.step)
    known = isinstance(uri, str) and type(step) is int and _PREVIEW.fullmatch(uri)
    if known and work.wants_preview():
        work.preview(Preview(uri, step))
