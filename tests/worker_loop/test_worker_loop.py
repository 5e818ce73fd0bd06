"""The unmodified handler under the pinned SDK's real loop, against a control plane on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.worker_loop.control_plane import ControlPlane
from wan_engine import data_uri

ROOT = Path(__file__).parents[2]


class Worker:
    """One `python handler.py` in its own session, with its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, folder: Path) -> None:
        self.process = process
        self.log = log
        self.folder = folder

    def clips(self) -> list[Path]:
        return sorted(self.folder.glob("outputs/*.mp4"))

    def scratch(self) -> list[Path]:
        return sorted(self.folder.glob("scratch/*"))


@contextmanager
def started(plane: ControlPlane, folder: Path, **settings: str) -> Iterator[Worker]:
    (folder / "scratch").mkdir(parents=True)
    log = folder / "worker.log"
    environment = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        **plane.environment(),
        "WAN_MODEL": "wan-tiny",
        "WAN_RENDER_AREA": "3072",
        "WAN_PRESET": "superfast",
        "WAN_SAFETY": "required",
        "WAN_SAFETY_PROMPT_MODEL": "tiny-prompt-guard",
        "WAN_SAFETY_IMAGE_MODEL": "tiny-image-classifier",
        "WAN_STORAGE": "local",
        "WAN_OUTPUT_DIR": str(folder / "outputs"),
        "WAN_SCRATCH_DIR": str(folder / "scratch"),
        "WAN_CACHE_DIR": str(folder.parent / "cache"),
        "WAN_PROGRESS_SECONDS": "0.1",
        **settings,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "handler.py")],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the SDK's ping process must end with it
        )
    try:
        yield Worker(process, log, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def worker(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with started(plane, tmp_path_factory.mktemp("loop") / "worker") as worker:
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


@pytest.mark.parametrize("what", ["prompt", "image"])
def test_what_the_safety_checker_flags_costs_nothing(
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


@pytest.mark.parametrize("stage", ["denoise", "decode"])  # the others end too soon for a poll
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
    assert posts.results == [] and worker.scratch() == []
    assert not any(cancelled in path.name for path in worker.clips())


def test_no_progress_arrived_after_a_result(
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


def test_the_log_holds_no_prompt_and_no_picture(worker: Worker, good: dict[str, Any]) -> None:
    text = worker.log.read_text()
    assert good["prompt"] not in text and good["image"][-60:] not in text


def test_a_terminated_worker_finishes_its_job(good: dict[str, Any], tmp_path: Path) -> None:
    with ControlPlane() as plane, started(plane, tmp_path / "worker") as worker:
        plane.submit("busy", good)
        plane.wait_until(lambda: bool(plane.posts["busy"].progress), seconds=60)
        worker.process.send_signal(signal.SIGTERM)
        result = plane.result("busy")
        assert "output" in result, result
        assert worker.process.wait(15) == 0
