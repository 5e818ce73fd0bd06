"""The Runpod handler: job dict in, job dict out; cancellation; progress; the SDK's local run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handler import Handler
from tests.engine.clips import SMALLEST, few_frames
from tests.hostile import hostile_inputs, listening
from wan_engine import Engine, Settings, data_uri
from wan_engine.control import Control
from wan_engine.errors import Cancelled
from wan_engine.runtime import memory
from wan_engine.storage.claims import FIELD

ROOT = Path(__file__).parents[1]
GIF = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
SMALL: dict[str, Any] = {**SMALLEST, "progress_seconds": 0.05}
SMALL_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def engine(
    settings_in: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    engine = few_frames(settings_in(tmp_path_factory.mktemp("handler"), **SMALL))
    engine.load()
    return engine


def scratch(engine: Engine) -> list[Path]:
    assert engine.settings.scratch_dir is not None
    return list(engine.settings.scratch_dir.iterdir())


@pytest.fixture
def good(data: Path) -> dict[str, Any]:
    return {"prompt": "lift-off", "image": data_uri(data / "rocket_640x360.jpg"), "seed": 1}


def run(engine: Engine, payload: object) -> dict[str, Any]:
    handler = Handler(engine, engine.settings, report=False)
    return asyncio.run(handler({"id": "job", "input": payload}))


def test_a_job_returns_the_output_object(engine: Engine, good: dict[str, Any]) -> None:
    output = run(engine, good)
    assert output["video_url"] == output["result"] and output["cost"] == 0.5


BAD = [
    ({"prompt": None}, 'field "prompt" is required'),
    ({"prompt": "  "}, 'field "prompt" must be a string that is not blank, got string "  "'),
    ({"image": None}, 'field "image" is required'),
    ({"image": "photo.jpg"}, "Invalid image URL: it must start with http://, https:// or data:"),
    ({"image": "file:///etc/passwd"}, "Invalid image URL: it must start with"),
    ({"image": "http://169.254.169.254/latest"}, "Invalid image URL: "),
    ({"image": "http://localhost/a.png"}, "Invalid image URL: "),
    ({"image": "data:image/png;base64,!!"}, "Invalid image URL: "),
    ({"image": GIF}, "Invalid image URL: the file is not a JPEG, PNG, BMP or WEBP image"),
    ({"image": SMALL_PNG}, "Invalid image URL: each side must be 240 to 8000 pixels, got 1x1"),
    ({"audio": 5}, 'field "audio" must be a string, got number 5'),
    ({"audio": "data:audio/wav;base64,AAAA"}, "Invalid audio URL: the file is not WAV or MP3"),
    ({"size": "640*480"}, 'field "size" must be one of ["1280*720", "1920*1080"], got string'),
    ({"duration": 7}, 'field "duration" must be one of [5, 10, 15], got number 7'),
    ({"shot_type": "dual"}, 'field "shot_type" must be one of ["single", "multi"], got string'),
    ({"seed": "abc"}, 'field "seed" must be an integer, got string "abc"'),
    ({"seed": -2}, 'field "seed" must be an integer from -1 to 2147483647, got number -2'),
    ({"enable_prompt_expansion": 1}, 'field "enable_prompt_expansion" must be a boolean'),
    ({"enable_safety_checker": "yes"}, 'field "enable_safety_checker" must be a boolean'),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD)
def test_a_bad_value_is_one_clear_sentence(
    engine: Engine, good: dict[str, Any], fields: dict[str, Any], sentence: str
) -> None:
    output = run(engine, {**good, **fields})
    assert list(output) == ["error"] and output["error"].startswith(sentence)
    assert "\n" not in output["error"] and str(ROOT) not in output["error"]
    assert scratch(engine) == []


@pytest.mark.parametrize("payload", [[], "text", 5])
def test_an_input_that_is_not_an_object_is_refused(engine: Engine, payload: object) -> None:
    assert run(engine, payload)["error"].startswith('field "input" must be an object, got ')


@pytest.mark.parametrize(
    ("beside", "sentence"),
    [
        ({"s3Config": "x"}, 'field "s3Config" must be an object'),
        ({"s3Config": {"accessId": "a"}}, 'field "s3Config.endpointUrl" is required'),
        ({"s3config": {}}, 'field "s3Config" must be spelled like this'),
        (
            {
                "s3Config": {
                    "accessId": "a",
                    "accessSecret": "b",
                    "bucketName": "c",
                    "endpointUrl": "http://169.254.169.254",
                }
            },
            'field "s3Config.endpointUrl": the address is not public',
        ),
    ],
)
def test_a_jobs_own_bucket_is_checked_before_the_render(
    engine: Engine, good: dict[str, Any], beside: dict[str, Any], sentence: str
) -> None:
    before = set(engine.settings.output_dir.glob("*.mp4"))
    handler = Handler(engine, engine.settings, report=False)
    output = asyncio.run(handler({"id": "job", "input": good, **beside}))
    assert list(output) == ["error"] and output["error"].startswith(sentence)
    assert set(engine.settings.output_dir.glob("*.mp4")) == before


def test_a_bug_gives_a_reference_and_its_traceback_is_in_the_log(
    engine: Engine, good: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def generate(self, *_: object) -> None:
            raise KeyError("/secret/path")

    broken: Any = Broken()
    handler = Handler(broken, engine.settings, report=False)
    output = asyncio.run(handler({"id": "job", "input": good}))
    assert output["error"].startswith("Internal error, reference ")
    assert "/secret/path" not in output["error"] and "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("configured", "policy", "seconds"),
    [
        (None, None, None),
        (60.0, None, 60),
        (60.0, {"executionTimeout": 12_000}, 12),
        (60.0, {"executionTimeout": 600_000}, 60),
        (None, {"executionTimeout": 12_500}, 12.5),
        (None, {"ttl": 1000}, None),
        (60.0, {"executionTimeout": True}, 60),
        (60.0, {"executionTimeout": "5"}, 60),
        (60.0, [], 60),
    ],
)
def test_the_shorter_time_limit_applies(
    make_settings: Callable[..., Settings],
    good: dict[str, Any],
    configured: float | None,
    policy: object,
    seconds: float | None,
) -> None:
    class Asked:
        def generate(self, _request: object, control: Control) -> None:
            left.append(control.seconds_left)
            raise Cancelled

    left: list[float | None] = []
    asked: Any = Asked()
    handler = Handler(asked, make_settings(job_seconds=configured), report=False)
    asyncio.run(handler({"id": "job", "input": good, "policy": policy}))
    assert left == [seconds if seconds is None else pytest.approx(seconds, abs=1)]


class Waiting:
    """An engine that works until told to stop, and takes a moment to end."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()

    def generate(self, _request: object, control: Control) -> None:
        self.started.set()
        try:
            while True:
                control.checkpoint()
        finally:
            threading.Event().wait(0.2)
            self.ended.set()


def test_after_a_cancel_the_thread_ends_before_the_handler(
    engine: Engine, good: dict[str, Any]
) -> None:
    waiting: Any = Waiting()
    handler = Handler(waiting, engine.settings, report=False)

    async def cancel_twice() -> None:
        task = asyncio.create_task(handler({"id": "job", "input": good}))
        await asyncio.to_thread(waiting.started.wait)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiting.ended.is_set()

    asyncio.run(cancel_twice())


def test_a_job_that_was_handed_over_twice_is_rendered_once(
    make_settings: Callable[..., Settings], good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runpod.serverless.modules import rp_http

    engine = few_frames(make_settings(**SMALL))

    async def no_post(*_: object) -> None:
        return

    monkeypatch.setattr(rp_http, "send_result", no_post)
    handler = Handler(engine, engine.settings, report=True)
    named = {**good, FIELD: "job/0.0"}

    async def both() -> list[dict[str, Any]]:
        with engine.pool.device(Control()):  # the first one waits for it meanwhile
            first = asyncio.create_task(handler({"id": "first", "input": named}))
            folder = engine.settings.output_dir / ".jobs"
            while not (folder.is_dir() and any(folder.glob("*.claim"))):
                assert not first.done(), first.result()
                await asyncio.sleep(0.005)
            other = Handler(engine, engine.settings, report=True)
            second = await other({"id": "second", "input": named})
        return [await first, second, await handler({"id": "third", "input": named})]

    first, second, third = asyncio.run(both())
    assert second == {"duplicate_of": "first"}
    assert third["video_url"] == first["video_url"]
    assert [path.suffix for path in engine.settings.output_dir.glob("*.mp4")] == [".mp4"]


@pytest.mark.parametrize("report", [True, False])
def test_only_callers_that_name_their_renders_get_the_error_code(
    engine: Engine, good: dict[str, Any], report: bool
) -> None:
    """The code becomes the output of the failed job, which Runpod's clients return instead of
    None."""
    handler = Handler(engine, engine.settings, report=report)
    wrong = {**good, "seed": "x"}

    def told(payload: dict[str, Any]) -> list[str]:
        return list(asyncio.run(handler({"id": "job", "input": payload})))

    assert told(wrong) == ["error"]
    assert told({**wrong, FIELD: "job/0.0"}) == ["error", *(["error_code"] if report else [])]


def test_a_local_run_renders_again_under_the_same_name(
    engine: Engine, good: dict[str, Any]
) -> None:
    urls = {run(engine, {**good, FIELD: "job/0.0"})["video_url"] for _ in range(2)}
    assert len(urls) == 2


def test_progress_is_posted_in_order_and_never_after_the_result(
    engine: Engine, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runpod.serverless.modules import rp_http

    posts: list[dict[str, Any]] = []

    async def slow_post(_session: object, body: dict[str, Any], _job: object) -> None:
        await asyncio.sleep(0.05)
        posts.append(body)

    monkeypatch.setattr(rp_http, "send_result", slow_post)
    handler = Handler(engine, engine.settings, report=True)

    async def run_and_wait() -> int:
        await handler({"id": "job", "input": good})
        at_the_result = len(posts)
        await asyncio.sleep(0.4)
        return at_the_result

    at_the_result = asyncio.run(run_and_wait())
    assert len(posts) == at_the_result >= 3
    assert {post["status"] for post in posts} == {"IN_PROGRESS"}
    order = ["prepare", "denoise", "decode", "encode", "publish"]
    places = [order.index(post["output"]["stage"]) for post in posts]
    assert places == sorted(places)


@pytest.mark.parametrize("previews", ["on", "auto"])
def test_previews_are_posted_with_the_progress_if_the_setting_says_so(
    engine: Engine, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch, previews: str
) -> None:
    from runpod.serverless.modules import rp_http

    posts: list[dict[str, Any]] = []

    async def post(_session: object, body: dict[str, Any], _job: object) -> None:
        posts.append(body["output"])

    monkeypatch.setattr(rp_http, "send_result", post)
    settings = engine.settings.model_copy(update={"previews": previews})
    job = {"id": f"previews-{previews}", "input": good}  # a known id would not be rendered again
    asyncio.run(Handler(engine, settings, report=True)(job))
    shown = [output for output in posts if "preview" in output]
    assert bool(shown) == (previews == "on")
    for output in shown:
        assert output["preview"].startswith("data:image/webp;base64,")
        assert 1 <= output["preview_step"] <= 4


def test_no_hostile_request_gets_more_than_a_sentence(engine: Engine, good: dict[str, Any]) -> None:
    memory.reset_peaks()
    before = memory.peaks()["host"]
    with listening() as listener:
        handler = Handler(engine, engine.settings, report=False)
        for name, payload in hostile_inputs(good, listener.port):
            output = asyncio.run(handler({"id": "job", "input": payload}))
            assert list(output) == ["error"], name
            sentence = output["error"]
            assert sentence.startswith(("field ", "Invalid ", "input ")), (name, sentence)
            assert "\n" not in sentence and len(sentence) < 300, name
            assert (
                "127.0.0.1" not in sentence
                and str(engine.settings.output_dir.parent) not in sentence
            ), name
        assert listener.visits == 0
    assert memory.peaks()["host"] - before < 200  # MB
    assert scratch(engine) == []
    assert "video_url" in run(engine, good)
