"""The share of each key in the queue: turns by weight, places, and limits in its entry."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.gateway.conftest import Serve, Served, eventually
from tests.gateway.jobs.test_jobs import ended, new, submitted
from tests.gateway.test_endpoint_backend import Pair, paired
from wan_engine import __main__ as command_line
from wan_engine.errors import ConfigurationError
from wan_engine.gateway.doors.runpod import door as runpod_door
from wan_engine.gateway.jobs.fair_queue import FairQueue
from wan_engine.gateway.keys import Keys, Share, digest, new_entry, shares
from wan_engine.gateway.refusals import Refusal
from wan_engine.settings import Settings

DOORS = (runpod_door.door,)

KEYS = {name: digest(name) for name in ("ann", "bob", "cleo")}


def begun(served: Served) -> list[str]:
    """Ids of jobs in the order in which they began."""
    return list(served.backend.requests)


# --- turns ---------------------------------------------------------------------------------------


def test_a_job_does_not_wait_for_another_keys_thousand(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=2000, api_keys=KEYS) as served:
            served.backend.hold()
            await served.jobs.submit(*(new() for _ in range(1000)))
            await eventually(lambda: begun(served))
            one = await submitted(served, owner="bob")
            served.backend.release()
            assert (await ended(served, one)).state == "completed"
            served.backend.hold()
            assert begun(served).index(one.id) == 1  # after the one that was running

    asyncio.run(line())


def test_nor_does_it_wait_after_a_restart(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=2000, api_keys=KEYS) as served:
            served.backend.hold()
            await served.jobs.submit(*(new() for _ in range(100)))
            await eventually(lambda: begun(served))
            one = await submitted(served, owner="bob")
        async with serve(queue_max=2000, api_keys=KEYS) as served:
            await ended(served, one)
            served.backend.hold()
            assert begun(served).index(one.id) <= 2

    asyncio.run(line())


def test_a_job_does_not_wait_for_another_keys_jobs_at_the_endpoint(tmp_path: Path) -> None:
    """The endpoint's queue is first come, first served, so the gateway cannot reorder the jobs in
    it."""

    async def test(pair: Pair) -> None:
        far = pair.far.backend
        far.hold()
        await pair.near.jobs.submit(*(new() for _ in range(400)))
        await eventually(lambda: len(far.requests) == 5)  # as many as it runs
        one = await submitted(pair.near, owner="bob")
        far.release()
        one = await ended(pair.near, one)
        far.hold()
        # Five run, three for each, and four wait there.
        assert list(far.requests).index(str(one.remote_id)) <= 5 + 3 * 5 + 4

    paired(tmp_path, test, api_keys=KEYS, queue_max=1000)


def test_jobs_that_the_endpoint_refuses_do_not_block_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.jobs.handed_over._ARRIVE_SECONDS", 0.2)

    async def test(pair: Pair) -> None:
        pair.way.fault = lambda request: 500 if b"poison" in request.content else None
        bad = [await submitted(pair.near, "poison") for _ in range(9)]
        good = await ended(pair.near, await submitted(pair.near, owner="bob"))
        assert good.state == "completed"
        assert not any(pair.near.jobs._now(job).final for job in bad)

    paired(tmp_path, test, api_keys=KEYS)


def order(queue: FairQueue, count: int) -> str:
    """The owners of the next `count` jobs, whose ids begin with them."""
    return "".join(queue.take()[0] for _ in range(count))


def filled(shares: dict[str, Share], each: int = 100) -> FairQueue:
    queue = FairQueue(10_000, shares)
    for owner in shares:
        for number in range(each):
            queue.put(f"{owner} {number}", owner)
    return queue


def test_keys_have_turns_by_their_weight() -> None:
    assert order(filled({"a": Share(), "b": Share(), "c": Share()}), 6) == "abcabc"
    turns = order(filled({"a": Share(2), "b": Share(1), "c": Share(0.5)}), 70)
    assert (turns.count("a"), turns.count("b"), turns.count("c")) == (40, 20, 10)


def test_an_idle_key_saves_up_no_turns_and_coming_back_often_gains_none() -> None:
    queue = filled({"a": Share(), "b": Share()}, 1)
    assert order(queue, 2) == "ab"
    for number in range(100):
        queue.put(f"a {number}", "a")
    order(queue, 50)
    for number in range(50):
        queue.put(f"b {number}", "b")
    turns = order(queue, 20)
    assert (turns.count("a"), turns.count("b")) == (10, 10)
    queue = filled({"a": Share()})
    for number in range(10):  # one at a time, submitted again as soon as it is taken
        queue.put(f"b {number}", "b")
        assert "b" in order(queue, 2)


def test_returned_jobs_go_first_and_dropped_jobs_are_not_taken() -> None:
    queue = filled({"a": Share(), "b": Share()}, 3)
    first = queue.take()
    queue.put_back(first, "a")
    for job_id in ("a 1", "a 2", "b 0", "b 0", "nobody's"):
        queue.drop(job_id)
    assert [queue.take() for _ in range(len(queue))] == [first, "b 1", "b 2"]
    with pytest.raises(IndexError):
        queue.take()


def test_random_operations_neither_lose_nor_duplicate_jobs() -> None:
    chance = random.Random(7)
    queue, waiting = FairQueue(10**6, {"a": Share(3), "b": Share(0.1)}), set[str]()
    for number in range(20_000):
        what = chance.random()
        if what < 0.5:
            owner = chance.choice("abcd")
            (queue.put if what < 0.45 else queue.put_back)(f"{owner} {number}", owner)
            waiting.add(f"{owner} {number}")
        elif waiting and what < 0.7:
            gone = chance.choice(sorted(waiting)[:50])
            queue.drop(gone)
            waiting.discard(gone)
        elif waiting:
            waiting.remove(queue.take())
        assert len(queue) == len(waiting)
    assert {queue.take() for _ in range(len(queue))} == waiting
    assert not queue._lines and not queue._places._taken and not queue._places._common_taken


def test_a_turn_costs_the_same_however_many_jobs_wait() -> None:
    queue = FairQueue(10**6, {})
    begun_at = time.process_time()
    for number in range(100_000):
        queue.put(str(number), f"key {number % 1000}")
    for _ in range(100_000):
        queue.take()
    assert time.process_time() - begun_at < 5  # 0.3 s here


# --- places --------------------------------------------------------------------------------------


def test_a_key_that_fills_the_queue_leaves_places_for_others(serve: Serve) -> None:
    async def line() -> None:
        async with serve(queue_max=12, api_keys=KEYS) as served:
            served.backend.hold()
            await submitted(served)
            await eventually(lambda: begun(served))
            for owner, places in (("ann", 8), ("bob", 2), ("cleo", 2)):
                for _ in range(places):
                    await submitted(served, owner=owner)
                with pytest.raises(Refusal) as raised:
                    await submitted(served, owner=owner)
                assert raised.value.code == "queue_full"
                assert "key" in raised.value.message
            assert (await served.jobs.counts())[0]["queued"] == 12

    asyncio.run(line())


def test_a_key_alone_has_the_whole_queue() -> None:
    for known in ({}, {"a": Share()}, {"a": Share(0.1)}):
        queue = FairQueue(7, known)
        assert [queue.reserve("a", 1) for _ in range(8)] == [None] * 7 + ["queue"]


@pytest.mark.parametrize("keys", [2, 3, 10, 499, 500])
def test_every_key_has_a_place_however_greedy_the_others_are(keys: int) -> None:
    names = [str(number) for number in range(keys)]
    queue = FairQueue(1000, {name: Share() for name in names})
    for greedy in names[:-1]:
        while queue.reserve(greedy, 1) is None:
            pass
    assert queue.reserve(names[-1], 1) is None
    assert sum(queue._places._taken.values()) <= 1000


def test_the_limit_in_a_keys_entry_bounds_its_waiting_jobs(serve: Serve) -> None:
    async def line() -> None:
        async with serve(api_keys=KEYS | {"bob": f"{digest('bob')}:max=2"}) as served:
            served.backend.hold()
            await submitted(served)
            await eventually(lambda: begun(served))
            waiting = [await submitted(served, owner="bob") for _ in range(2)]
            with pytest.raises(Refusal, match="This key"):
                await submitted(served, owner="bob")
            await submitted(served, owner="ann")
            await served.jobs.cancel(waiting[0])
            await submitted(served, owner="bob")

    asyncio.run(line())


def test_a_refused_group_takes_no_places() -> None:
    queue = FairQueue(4, {})
    assert (queue.reserve("a", 5), queue.reserve("a", 4)) == ("queue", None)
    queue.release("a", 4)
    assert queue.reserve("b", 4) is None


# --- the entry -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ("", Share()),
        (":weight=2", Share(2)),
        (":max=50", Share(1, 50)),
        (":weight=0.5:max=1", Share(0.5, 1)),
        (":max=1:weight=12.25", Share(12.25, 1)),
    ],
)
def test_an_entry_may_set_a_keys_share(
    options: str, share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAN_API_KEYS", f"ann:{digest('secret')}{options},bob:{digest('b')}")
    settings = Settings.load()
    assert shares(settings.api_keys) == {"ann": share, "bob": Share()}
    assert Keys(settings.api_keys).owner("Bearer secret") == "ann"
    assert Settings(**settings.with_secrets()).api_keys == settings.api_keys


@pytest.mark.parametrize(
    "options",
    [
        *(":weight=0", ":weight=-1", ":weight=0.00", ":weight=1000", ":weight=1e3", ":weight="),
        *(":max=0", ":max=-1", ":max=1.5", ":max=", ":limit=2", ":", ":weight=1:weight=2"),
        *(":max=1:weight=1:max=2", ":weight=nan", ":weight=2 ", ":max=1000000", "=2"),
    ],
)
def test_an_invalid_entry_is_reported(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_API_KEYS", f"ann:{digest('secret')}{options},bob:{digest('b')}")
    if options.endswith(" "):
        Settings.load()  # spaces around an entry are ignored
        return
    with pytest.raises(ConfigurationError, match="WAN_API_KEYS is wrong: it must be name:hash"):
        Settings.load()


def test_the_command_line_makes_a_key_with_a_share() -> None:
    run = CliRunner().invoke
    made = run(command_line.app, ["key", "ann", "--weight", "2.5", "--max", "50"])
    entry = made.stdout.splitlines()[1]
    assert entry.startswith("ann:") and entry.endswith(":weight=2.5:max=50")
    settings = Settings(api_keys=entry)  # type: ignore[arg-type]
    assert shares(settings.api_keys) == {"ann": Share(2.5, 50)}
    assert new_entry("ann")[1].count(":") == 1
    for wrong in (["--weight", "0"], ["--weight", "nan"], ["--max", "0"], ["--weight", "0.001"]):
        assert run(command_line.app, ["key", "ann", *wrong]).exit_code != 0
