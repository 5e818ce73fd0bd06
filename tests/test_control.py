"""Control of a job: it stops when it must, and only then, and it counts correctly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from wan_engine.control import Control, Progress, Watch
from wan_engine.errors import Cancelled, DeadlineExceeded

PROMPT_SECONDS = 0.3  # the longest time that a stop may take
EARLY_SECONDS = 0.05  # a timer starts before the work that it stops, and so also ends earlier


class Blocked:
    """Work that cannot check the control: it waits until something stops it."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self._stopped = threading.Event()

    def stop(self) -> None:
        self.stops.append(threading.current_thread().name)
        self._stopped.set()

    def wait(self, seconds: float = 5.0) -> float:
        """Seconds until it was stopped, or `seconds` if it was not."""
        started = time.monotonic()
        self._stopped.wait(seconds)
        return time.monotonic() - started


@contextmanager
def after(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, call)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watch"]


# --- job id --------------------------------------------------------------------------------------


def test_a_job_keeps_its_id() -> None:
    assert Control("job-1").job_id == "job-1"


@pytest.mark.parametrize("nameless", [None, ""])
def test_a_job_without_an_id_gets_a_new_one(nameless: str | None) -> None:
    assert len({Control(nameless).job_id for _ in range(100)} - {""}) == 100


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_job_continues_if_nothing_stops_it() -> None:
    control = Control(deadline_seconds=60)
    control.checkpoint()
    assert not control.cancelled


def test_a_cancelled_job_stops_at_the_next_checkpoint() -> None:
    control = Control()
    control.cancel()
    assert control.cancelled
    with pytest.raises(Cancelled, match=r"^The job was cancelled$"):
        control.checkpoint()


def test_cancelling_twice_is_the_same_as_once() -> None:
    control = Control()
    control.cancel()
    control.cancel()
    with pytest.raises(Cancelled):
        control.checkpoint()


def test_a_job_stays_cancelled() -> None:
    control = Control()
    control.cancel()
    for _ in range(3):
        with pytest.raises(Cancelled):
            control.checkpoint()


def test_a_job_can_be_cancelled_from_another_thread() -> None:
    control = Control()
    thread = threading.Thread(target=control.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Cancelled):
        control.checkpoint()


def test_a_checkpoint_stops_the_thread_that_calls_it() -> None:
    control, raised = Control(), []

    def work() -> None:
        try:
            while True:
                control.checkpoint()
                time.sleep(0.001)
        except Cancelled as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    control.cancel()
    thread.join(1)
    assert len(raised) == 1


def test_the_deadline_ends_a_job_and_says_how_long_it_was() -> None:
    control = Control(deadline_seconds=0.05)
    control.checkpoint()
    time.sleep(0.06)
    with pytest.raises(DeadlineExceeded, match=r"exceeded its time limit of 0\.05 seconds$"):
        control.checkpoint()


def test_a_cancelled_job_that_is_also_late_counts_as_cancelled() -> None:
    control = Control(deadline_seconds=0)
    control.cancel()
    with pytest.raises(Cancelled):
        control.checkpoint()


def test_without_a_deadline_there_is_no_time_left_to_tell() -> None:
    assert Control().seconds_left is None


def test_the_time_left_runs_down_and_past_zero() -> None:
    control = Control(deadline_seconds=0.04)
    first = control.seconds_left
    time.sleep(0.05)
    last = control.seconds_left
    assert first is not None and last is not None
    assert 0.04 >= first > 0 > last


# --- progress ------------------------------------------------------------------------------------


def test_progress_arrives_in_order_and_unchanged() -> None:
    seen: list[Progress] = []
    control = Control(on_progress=seen.append)
    steps = [("prepare", 0, 1), ("denoise", 1, 2), ("denoise", 2, 2), ("encode", 0, 1)]
    for step in steps:
        control.progress(*step)
    assert seen == [Progress(*step) for step in steps]


def test_progress_is_reported_on_the_thread_that_works() -> None:
    seen: list[str] = []
    control = Control(on_progress=lambda _: seen.append(threading.current_thread().name))
    thread = threading.Thread(target=control.progress, args=("denoise", 1, 4), name="gpu")
    thread.start()
    thread.join()
    assert seen == ["gpu"]


def test_progress_of_a_cancelled_job_is_reported_before_it_stops() -> None:
    seen: list[Progress] = []
    control = Control(on_progress=seen.append)
    control.cancel()
    with pytest.raises(Cancelled):
        control.progress("denoise", 3, 4)
    assert seen == [Progress("denoise", 3, 4)]


def test_progress_stops_a_late_job() -> None:
    with pytest.raises(DeadlineExceeded):
        Control(deadline_seconds=0).progress("denoise", 3, 4)


def test_a_listener_that_cancels_stops_the_job_at_once() -> None:
    control = Control(on_progress=lambda _: control.cancel())
    with pytest.raises(Cancelled):
        control.progress("denoise", 1, 4)


# --- seconds per stage ---------------------------------------------------------------------------


def test_time_counts_for_the_stage_that_was_entered_last() -> None:
    control = Control()
    control.enter("load")
    time.sleep(0.05)
    control.enter("denoise")
    control.enter(None)
    assert 0.05 <= control.stage_seconds["load"] < 0.05 + PROMPT_SECONDS
    assert control.stage_seconds["denoise"] < 0.05


def test_a_repeated_stage_is_added_up() -> None:
    control = Control()
    for _ in range(2):
        control.enter("denoise")
        time.sleep(0.02)
        control.enter("decode")
    control.enter(None)
    assert 0.04 <= control.stage_seconds["denoise"] < 0.04 + PROMPT_SECONDS


def test_time_outside_all_stages_counts_for_none() -> None:
    control = Control()
    time.sleep(0.05)
    control.enter("load")
    control.enter(None)
    time.sleep(0.05)
    control.enter("publish")
    control.enter(None)
    assert list(control.stage_seconds) == ["load", "publish"]
    assert sum(control.stage_seconds.values()) < 0.05


def test_progress_counts_for_its_stage() -> None:
    control = Control()
    control.progress("prepare", 0, 1)
    control.progress("denoise", 0, 1)
    control.enter(None)
    assert list(control.stage_seconds) == ["prepare", "denoise"]


def test_the_stages_add_up_to_the_whole_job() -> None:
    control, started = Control(), time.monotonic()
    for stage in ("prepare", "load", "denoise", "decode", "denoise", "publish"):
        control.enter(stage)
        time.sleep(0.005)
    control.enter(None)
    whole = time.monotonic() - started
    assert sum(control.stage_seconds.values()) == pytest.approx(whole, abs=0.01)


def test_after_an_inner_stage_time_counts_for_the_outer_one() -> None:
    control = Control()
    control.enter("decode")
    with pytest.raises(OSError, match="broken"), control.within("safety"):
        time.sleep(0.05)
        raise OSError("broken")
    time.sleep(0.02)
    control.enter(None)
    assert 0.05 <= control.stage_seconds["safety"] < 0.05 + PROMPT_SECONDS
    assert control.stage_seconds["decode"] >= 0.02


# --- watchdog ------------------------------------------------------------------------------------


def stopped_after(control: Control, seconds: float | None) -> tuple[float, Watch, Blocked]:
    """How long blocked work waited for the watch to stop it."""
    work = Blocked()
    with control.watch(work.stop, seconds) as watch:
        waited = work.wait()
    return waited, watch, work


def test_a_cancel_stops_blocked_work() -> None:
    control = Control()
    with after(0.1, control.cancel):
        waited, watch, work = stopped_after(control, 60)
    assert 0.1 - EARLY_SECONDS <= waited < 0.1 + PROMPT_SECONDS
    assert (work.stops, watch.expired) == (["watch"], False)


def test_its_own_limit_stops_blocked_work() -> None:
    control = Control(deadline_seconds=60)
    waited, watch, work = stopped_after(control, 0.1)
    assert 0.1 - EARLY_SECONDS <= waited < 0.1 + PROMPT_SECONDS
    assert (work.stops, watch.expired) == (["watch"], True)
    control.checkpoint()


def test_the_deadline_of_the_job_stops_blocked_work() -> None:
    control = Control(deadline_seconds=0.1)
    waited, watch, work = stopped_after(control, None)
    assert waited < 0.1 + PROMPT_SECONDS
    assert (work.stops, watch.expired) == (["watch"], False)
    with pytest.raises(DeadlineExceeded):
        control.checkpoint()


def test_work_of_a_job_that_was_cancelled_before_is_stopped() -> None:
    control = Control()
    control.cancel()
    waited, _, work = stopped_after(control, None)
    assert waited < PROMPT_SECONDS
    assert len(work.stops) == 1


def test_work_is_stopped_once_for_all_reasons_together() -> None:
    control, work = Control(deadline_seconds=0), Blocked()
    control.cancel()
    with control.watch(work.stop, 0):
        time.sleep(0.25)
    assert len(work.stops) == 1


def test_work_without_a_reason_to_stop_is_left_alone() -> None:
    control, work = Control(deadline_seconds=60), Blocked()
    with control.watch(work.stop, 60) as watch:
        assert work.wait(0.25) >= 0.25
    assert (work.stops, watch.expired) == ([], False)


def test_nothing_is_stopped_after_the_work_is_done() -> None:
    control, work = Control(), Blocked()
    with control.watch(work.stop, 0.1):
        pass
    control.cancel()
    assert work.wait(0.25) >= 0.25
    assert work.stops == []


def test_a_watch_ends_at_once_with_its_work() -> None:
    started = time.monotonic()
    with Control().watch(lambda: None, 60):
        assert len(watching_threads()) == 1
    assert watching_threads() == []
    assert time.monotonic() - started < PROMPT_SECONDS


def test_a_watch_ends_with_work_that_fails() -> None:
    with pytest.raises(OSError, match="broken"), Control().watch(lambda: None):
        raise OSError("broken")
    assert watching_threads() == []


def test_a_watch_ends_after_it_stopped_the_work() -> None:
    stopped_after(Control(), 0)
    assert watching_threads() == []


def test_watches_stop_the_work_of_all_threads_of_a_job() -> None:
    control, works = Control(), [Blocked() for _ in range(4)]

    def run(work: Blocked) -> None:
        with control.watch(work.stop):
            work.wait()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    control.cancel()
    for thread in threads:
        thread.join(1)
    assert [len(work.stops) for work in works] == [1, 1, 1, 1]


def test_watches_of_one_job_can_be_nested() -> None:
    control, outer, inner = Control(), Blocked(), Blocked()
    with control.watch(outer.stop) as outer_watch, control.watch(inner.stop, 0.05) as inner_watch:
        inner.wait()
    assert (inner_watch.expired, outer_watch.expired) == (True, False)
    assert outer.stops == []
