"""The unmodified handler in the pinned SDK's real loop, with a local control plane."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.services.control_plane import ControlPlane
from tests.worker_loop.worker import Worker, started
from wan_engine import data_uri
from wan_engine.storage.claims import FIELD


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def worker(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with started(plane, tmp_path_factory.mktemp("loop") / "worker", cold=True) as worker:
        yield worker


@pytest.fixture
def good(data: Path) -> dict[str, Any]:
    return {"prompt": "lift-off", "image": data_uri(data / "rocket_640x360.jpg"), "seed": 1}


def test_a_job_is_done_and_its_progress_comes_in_order(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("first", good)
    result = plane.result("first")
    assert result["output"]["cost"] == 0.5 and list(result) == ["output"]
    order = ["prepare", "denoise", "decode", "encode", "publish"]
    places = [order.index(item["stage"]) for item in plane.posts["first"].progress]
    assert places and places == sorted(places)


def test_the_log_says_how_long_each_part_of_the_start_took(
    plane: ControlPlane, worker: Worker
) -> None:
    plane.wait_until(lambda: plane.polls > 0, seconds=60)
    text = worker.log.read_text()
    line = r"the worker takes jobs ([\d.]+) s after its start \((.*?)\)"
    (seconds, stages), *others = re.findall(line, text)
    spent = dict(stage.rsplit(" ", 1) for stage in stages.split(", "))
    order = ["imports", "checks", "choice", "libraries", "safety", "model", "writer", "warm-up"]
    assert list(spent) == [*order, "sdk"] and others == []
    assert sum(map(float, spent.values())) == pytest.approx(float(seconds), abs=0.5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"duration": 7}, 'field "duration" must be one of [5, 10, 15], got number 7'),
        ({"image": "http://127.0.0.1:9/a.png"}, "Invalid image URL: the address is not public"),
        ({"audio": "data:audio/wav;base64,AAAA"}, "Invalid audio URL: the file is not WAV or MP3"),
    ],
)
def test_a_callers_fault_is_a_sentence(
    plane: ControlPlane,
    worker: Worker,
    good: dict[str, Any],
    fields: dict[str, Any],
    sentence: str,
) -> None:
    job_id = f"bad-{next(iter(fields))}"
    plane.submit(job_id, {**good, **fields})
    assert plane.result(job_id) == {"error": sentence}
    assert worker.scratch() == []


def test_a_gateways_job_has_the_error_code_as_its_output(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("coded", {**good, "seed": "x", FIELD: "job/0.0"})
    result = plane.result("coded")
    assert result["output"] == {"error_code": "invalid_request"} and "seed" in result["error"]
    assert list(result) == ["output", "error"]


@pytest.mark.parametrize("what", ["prompt", "image"])
def test_a_flagged_request_costs_nothing(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], what: str, tmp_path: Path
) -> None:
    magenta = tmp_path / "magenta.png"
    Image.new("RGB", (320, 240), (255, 0, 255)).save(magenta)
    bad = {"prompt": "a forbidden thing", "image": data_uri(magenta)}
    clips = worker.clips()
    plane.submit(f"flagged-{what}", {**good, what: bad[what]})
    assert plane.result(f"flagged-{what}") == {"error": f"Content policy: {what} was flagged"}
    assert worker.scratch() == [] and worker.clips() == clips
    plane.submit(f"unchecked-{what}", {**good, what: bad[what], "enable_safety_checker": False})
    assert plane.result(f"unchecked-{what}")["output"]["cost"] == 0.5


@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_a_cancelled_job_posts_nothing_and_the_next_one_runs(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], stage: str
) -> None:
    cancelled, after = f"cancel-{stage}", f"after-{stage}"
    plane.submit(cancelled, {**good, "duration": 15, "size": "1080p"})
    posts = plane.posts[cancelled]
    plane.wait_until(lambda: any(p["stage"] == stage for p in posts.progress), seconds=60)
    plane.stop(cancelled)
    plane.submit(after, good)
    plane.result(after)
    assert worker.seconds_until_stopped(cancelled) < 1
    assert posts.results == [] and worker.scratch() == []
    assert not any(cancelled in path.name for path in worker.clips())


def test_a_job_that_arrives_while_another_runs_waits_for_it(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("now", good)
    plane.submit("next", good)
    plane.result("next")
    assert "output" in plane.result("now") and "output" in plane.result("next")
    assert plane.taken.index("now") < plane.taken.index("next")
    assert plane.events.index(("result", "now")) < plane.events.index(("taken", "next"))
    assert plane.batches == []
    text = worker.log.read_text()
    assert text.index("job now: 1280") < text.index("job next: 1280")


def test_no_progress_arrives_after_a_result(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("last", good)
    plane.result("last")
    time.sleep(0.5)
    assert sum(posts.after_result for posts in plane.posts.values()) == 0


@pytest.mark.parametrize("fault", [500, "drop"])
def test_a_result_is_posted_again_after_a_fault(
    plane: ControlPlane, worker: Worker, good: dict[str, Any], fault: int | str
) -> None:
    job_id = f"fault-{fault}"
    plane.faults.append(fault)
    plane.submit(job_id, {**good, "seed": "x"})
    assert "error" in plane.result(job_id)
    assert plane.posts[job_id].refused == 1


def test_a_job_delivered_again_is_not_rendered_again(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    plane.submit("twice", good)
    first = plane.result("twice")
    clips = worker.clips()
    plane.submit("twice", good)
    plane.wait_until(lambda: len(plane.posts["twice"].results) == 2, seconds=30)
    assert plane.posts["twice"].results[1] == first and worker.clips() == clips


def test_the_log_holds_no_prompt_and_no_picture(
    plane: ControlPlane, worker: Worker, good: dict[str, Any]
) -> None:
    prompt = "a marmalade zeppelin"
    plane.submit("expanded", {**good, "prompt": prompt, "enable_prompt_expansion": True})
    assert "output" in plane.result("expanded")
    text = worker.log.read_text()
    assert "prompt expanded by template" in text and prompt not in text
    assert good["prompt"] not in text and good["image"][-60:] not in text
