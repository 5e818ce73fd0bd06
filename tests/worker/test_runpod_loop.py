"""The parts of the mended worker loop outside the loop itself: waits, lines in the log, ids."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from wan_engine.worker import runpod_loop
from wan_engine.worker.runpod_loop import Outage, Patient, Recent


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("https://secret.example/job-take/pod?key=1")
        self.status = status


class Api:
    """Returns the items of `answers` one by one. `waits` are the pauses after them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.answers = list(answers)
        self.waits: list[float] = []
        monkeypatch.setattr(Patient, "_pause", self._pause)

    async def ask(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _pause(self, seconds: float) -> None:
        self.waits.append(seconds)

    def polled(self, outage: Outage | None = None) -> list[Any]:
        async def line() -> list[Any]:
            poll = Patient("jobs", self.ask, outage or Outage(), asyncio.Event())
            return [await poll() for _ in range(len(self.answers))]

        return asyncio.run(line())


def test_waits_grow_to_half_a_minute_and_reset_after_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(monkeypatch, *[OSError()] * 8, [{"id": "a"}], OSError())
    assert api.polled() == [[]] * 8 + [[{"id": "a"}], []]
    most = [1, 2, 4, 8, 16, 30, 30, 30, 1]
    assert all(0.75 * top <= wait <= top for wait, top in zip(api.waits, most, strict=True))


def test_a_busy_api_is_left_alone_for_as_long_as_the_sdk_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(monkeypatch, Refused(429), Refused(503))
    api.polled()
    assert api.waits[0] == 5 and api.waits[1] <= 2


def test_an_immediate_empty_answer_is_followed_by_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(monkeypatch, None, [], [{"id": "a"}])
    api.polled()
    assert api.waits == [0.5, 0.5]


def test_an_outage_is_one_line_at_each_end_without_a_url(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = Api(monkeypatch, *[Refused(503)] * 20, None)
    api.polled()
    first, last = caplog.messages
    assert first == "Runpod does not answer (jobs: Refused, 503): retrying"
    assert last.startswith("Runpod answers again, after ") and "secret" not in caplog.text


def test_two_failed_polls_are_one_outage(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for what in ("jobs", "stops", "jobs"):
        outage.begun(what, OSError())
    outage.over("jobs")
    outage.over("stops")
    outage.over("stops")
    assert len(caplog.messages) == 2


def test_an_id_is_kept_for_minutes_and_returned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = Recent()
    recent.add("a")
    assert "a" in recent and "b" not in recent
    assert recent.take("a") and not recent.take("a")
    recent.add("b")
    later = time.monotonic() + 301
    monkeypatch.setattr(runpod_loop.time, "monotonic", lambda: later)
    assert "b" not in recent


def test_ids_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod_loop, "_MOST_KEPT", 10)
    recent = Recent()
    for number in range(50):
        recent.add(str(number))
    assert len(recent._ids) == 10 and "49" in recent and "39" not in recent
