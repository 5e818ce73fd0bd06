"""External families, each one file with its row (`probes/`), unknown to the core: through the
command line, the worker's loop and the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import wave
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import pytest

from benchmarks.services.control_plane import ControlPlane
from tests import warm
from tests.engine.clips import clip_frames, local
from tests.worker_loop.worker import started
from wan_engine import Engine, VideoRequest, catalog, data_uri
from wan_engine.catalog import models
from wan_engine.control import Control
from wan_engine.errors import ConfigurationError, ContentPolicy, InvalidRequest
from wan_engine.gateway.app import create_app, open_gateway
from wan_engine.media import ffmpeg
from wan_engine.settings import Settings

PROBES = Path(__file__).parent / "probes"
ROOT = PROBES.parents[1]
COLLAGE = {"reference_model": "probe-collage"}
TONE = {"model": "none", "video_sound_model": "probe-tone"}
FLASH = {"model": "probe-flash", "sound_model": "probe-click"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """WAN_MODELS_DIR with a folder for each of them, as after a download."""
    for name in ("probe-collage", "probe-tone", "probe-flash", "probe-click"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "Probe"}))
    return tmp_path / "models"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The probes as an installed package of this process."""
    monkeypatch.syspath_prepend(str(PROBES))
    models._added_models.cache_clear()
    yield
    monkeypatch.undo()
    models._added_models.cache_clear()


@pytest.fixture
def variables(folders: Path, tiny_cache: Path) -> dict[str, str]:
    """The environment of a program that has the probes."""
    return {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{PROBES}",
        "WAN_MODELS_DIR": str(folders),
        "WAN_CACHE_DIR": str(tiny_cache),
        "WAN_SAFETY": "off",
        "WAN_FPS": "native",
        "WAN_PRESET": "superfast",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def three(data: Path, tmp_path: Path) -> list[str]:
    """Three references: red, green and blue."""
    from PIL import Image

    paths = [tmp_path / f"{colour}.png" for colour in ("red", "lime", "blue")]
    for path in paths:
        Image.new("RGB", (300, 400), path.stem).save(path)
    return [data_uri(path) for path in paths]


pytestmark = pytest.mark.usefixtures("small_clips")


def levels(path: Path) -> tuple[np.ndarray, list[float]]:
    """The samples of a clip's sound in -1..1, and the loudness of each tenth of a second."""
    wav = path.with_suffix(".wav")
    command = [ffmpeg.executable(), "-v", "error", "-i", str(path), "-ac", "1", "-y", str(wav)]
    subprocess.run(command, check=True)
    with wave.open(str(wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    return samples, [float(part.std()) for part in np.array_split(samples, len(samples) // 4800)]


def colours(path: Path) -> list[str]:
    """The colour of each third of the clip's middle frame."""
    frames = clip_frames(path, 90, 60)
    frame = frames[len(frames) // 2].astype(int)
    seen = [frame[20:40, at : at + 10].mean(axis=(0, 1)) for at in (10, 40, 70)]
    return [("red", "lime", "blue")[int(colour.argmax())] for colour in seen]


# --- as installed packages -----------------------------------------------------------------------


def test_three_references_and_no_picture_make_a_clip_in_their_order(
    make_settings: Callable[..., Settings], folders: Path, installed: None, three: list[str]
) -> None:
    from wan_engine.schema import ReferenceRequest

    engine = Engine(make_settings(models_dir=folders, safety="off", preset="superfast", **COLLAGE))
    request = ReferenceRequest(prompt="x", references=three[::-1], aspect_ratio="9:16", seed=1)
    result = engine.generate(request)
    assert colours(local(result.video_url)) == ["blue", "lime", "red"]
    assert result.plan is not None
    assert (result.plan.width, result.plan.height) == (180, 320)
    assert (result.model, result.cost) == ("probe-collage", engine.generate(request).cost)


@pytest.mark.parametrize("interpolation", ["mci", "blend"])
def test_sound_and_picture_stay_in_time_through_joins_and_interpolated_frames(
    make_settings: Callable[..., Settings],
    folders: Path,
    installed: None,
    data: Path,
    interpolation: str,
) -> None:
    """Flashes at 16 fps in two segments, shown at 30 fps; clicks from two windows at 24 fps."""
    values = {**FLASH, "safety": "off", "preset": "superfast", "interpolation": interpolation}
    engine = Engine(make_settings(models_dir=folders, **values, fps=30))
    image = data_uri(data / "rocket_640x360.jpg")
    request = VideoRequest(prompt="x", image=image, duration=10, seed=1)
    path = local(engine.generate(request).video_url)
    bright = clip_frames(path, 32, 18).mean(axis=(1, 2, 3)) > 100
    flashes = np.flatnonzero(bright & ~np.roll(bright, 1)) / 30
    sound = np.abs(levels(path)[0])
    loud = np.add.reduceat(sound, np.arange(0, len(sound), 480)) / 480 > 0.02
    clicks = np.flatnonzero(loud & ~np.roll(loud, 1)) / 100
    assert len(flashes) == len(clicks) > 10
    assert np.abs(flashes - clicks).max() < 1 / 24
    family = engine.pool.models["sound-for-video"].family
    assert [len(one.frames) for one in family.seen] == [125, 125]  # type: ignore[union-attr]


@pytest.fixture
def films(three: list[str], tmp_path: Path) -> list[str]:
    """The three references as videos of two seconds: one colour with a white square, and sound."""
    films = [tmp_path / f"{colour}.mp4" for colour in ("red", "lime", "blue")]
    for film in films:
        shown = f"color={film.stem}:s=300x400:r=25:d=2,drawbox=120:170:60:60:white:fill"
        sound = ("-f", "lavfi", "-i", "sine=700:d=2")
        command = [ffmpeg.executable(), "-v", "error", "-f", "lavfi", "-i", shown, *sound]
        subprocess.run([*command, "-preset", "ultrafast", str(film)], check=True)
    return [data_uri(film) for film in films]


def test_videos_and_pictures_are_references_in_the_given_order(
    make_settings: Callable[..., Settings],
    folders: Path,
    installed: None,
    three: list[str],
    films: list[str],
) -> None:
    from wan_engine.schema import ReferenceRequest

    engine = Engine(make_settings(models_dir=folders, safety="auto", preset="superfast", **COLLAGE))
    references = [films[2], three[0], films[1]]
    request = ReferenceRequest(prompt="x", references=references, aspect_ratio="9:16", seed=1)
    told: list[tuple[str, int, int]] = []
    control = Control(on_progress=lambda at: told.append((at.stage, at.step, at.steps)))
    result = engine.generate(request, control)
    assert colours(local(result.video_url)) == ["blue", "red", "lime"]
    assert {("prepare", step, 3) for step in range(3)} <= set(told)


def test_of_five_references_four_are_used_and_the_result_says_so(
    make_settings: Callable[..., Settings], folders: Path, installed: None, three: list[str]
) -> None:
    from wan_engine.schema import ReferenceRequest

    engine = Engine(make_settings(models_dir=folders, safety="off", preset="superfast", **COLLAGE))
    request = ReferenceRequest(prompt="x", references=three + three[:2], seed=1)
    assert "Only the first 4 of 5 references were used" in engine.generate(request).warnings


def test_a_reference_video_that_is_flagged_ends_the_job(
    make_settings: Callable[..., Settings],
    folders: Path,
    installed: None,
    tiny_cache: Path,
    tmp_path: Path,
) -> None:
    """Even if the frames that would be used are clean."""
    from wan_engine.schema import ReferenceRequest

    film = tmp_path / "film.mp4"
    clean = "testsrc2=s=320x240:r=20:d=2[a];color=magenta:s=320x240:r=20:d=3[b]"
    graph = f"{clean};[a][b]concat=n=2"
    command = [ffmpeg.executable(), "-v", "error", "-filter_complex", graph]
    subprocess.run([*command, "-preset", "ultrafast", str(film)], check=True)
    engine = Engine(make_settings(models_dir=folders, preset="superfast", **COLLAGE))
    request = ReferenceRequest(prompt="x", references=[data_uri(film)], seed=1)
    with pytest.raises(ContentPolicy):
        engine.generate(request)


class _NotFound(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


def test_an_unusable_reference_is_one_sentence_and_leaves_nothing_behind(
    make_settings: Callable[..., Settings],
    folders: Path,
    installed: None,
    three: list[str],
    films: list[str],
    tmp_path: Path,
) -> None:
    from PIL import Image

    from wan_engine.schema import parse_request

    Image.new("RGB", (1, 4000)).save(tmp_path / "strip.png")
    Image.new("RGBA", (300, 300), (255, 0, 0, 128)).save(tmp_path / "half.png")
    settings = make_settings(
        models_dir=folders, safety="off", allow_private_urls=True, scratch_dir=tmp_path, **COLLAGE
    )
    engine = Engine(settings)
    with ThreadingHTTPServer(("127.0.0.1", 0), _NotFound) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        away = f"http://127.0.0.1:{server.server_port}/a.mp4"
        for wrong, sentence in (
            ([three[0], away], "Invalid references[1] URL: the server answered 404"),
            ([films[0][:-4000]], "Invalid references[0] URL: the video is damaged or cut"),
            (
                ["data:video/mp4;base64,AAAA"],
                "Invalid references[0] URL: the file is not a JPEG, PNG",
            ),
            (
                [data_uri(tmp_path / "strip.png")],
                "Invalid references[0] URL: each side must be 240 to",
            ),
            ("https://example.com/a.mp4", 'field "references" must be an array of strings'),
            (three * 2, 'field "references" must have at most 5 entries, got 6'),
            ([], 'field "references" is required by the model probe-collage'),
        ):
            before = sorted(tmp_path.rglob("*"))
            with pytest.raises(InvalidRequest) as caught:
                engine.generate(parse_request({"prompt": "x", "references": wrong, "seed": 1}))
            said = str(caught.value)
            assert said.startswith(sentence) and "\n" not in said, said
            assert sorted(tmp_path.rglob("*")) == before
        server.shutdown()
    half = parse_request(
        {"prompt": "x", "references": [data_uri(tmp_path / "half.png")], "seed": 1}
    )
    assert engine.generate(half).warnings == ()  # on white


@pytest.mark.parametrize("sound", [None, True, False])
def test_sound_of_the_model_continues_over_the_joins_and_ends_with_the_picture(
    make_settings: Callable[..., Settings],
    folders: Path,
    installed: None,
    data: Path,
    sound: bool | None,
) -> None:
    from wan_engine import VideoRequest

    engine = Engine(make_settings(models_dir=folders, safety="off", preset="superfast", **TONE))
    image = data_uri(data / "rocket_640x360.jpg")
    request = VideoRequest(prompt="x", image=image, seed=1, generate_audio=sound)
    result = engine.generate(request)
    assert result.plan is not None and len(result.plan.segments) > 1
    path = local(result.video_url)
    if sound is False:
        with pytest.raises(subprocess.CalledProcessError):
            levels(path)
        return
    samples, loudness = levels(path)
    assert abs(len(samples) / 48_000 - 5) < 1 / engine.spec.fps
    assert min(loudness[1:-1]) > 0.08 and max(loudness) < 0.26  # no gap and no burst at a join
    spectrum = np.abs(np.fft.rfft(samples[:48_000]))
    assert int(spectrum.argmax()) == 440


def test_a_model_that_promises_sound_and_returns_none_fails_the_job(
    make_settings: Callable[..., Settings],
    folders: Path,
    installed: None,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wan_engine import VideoRequest
    from wan_engine.errors import EncodeFailed
    from wan_engine.media.soundtrack import Soundtrack

    engine = Engine(make_settings(models_dir=folders, safety="off", preset="superfast", **TONE))
    add = Soundtrack.add
    monkeypatch.setattr(Soundtrack, "add", lambda made, _sound, one: add(made, None, one))
    request = VideoRequest(prompt="x", image=data_uri(data / "rocket_640x360.jpg"))
    with pytest.raises(EncodeFailed, match="returned no sound"):
        engine.generate(request)


def test_a_caller_s_own_sound_replaces_that_of_the_model(
    make_settings: Callable[..., Settings], folders: Path, installed: None, data: Path
) -> None:
    from wan_engine import VideoRequest

    engine = Engine(make_settings(models_dir=folders, safety="off", preset="superfast", **TONE))
    media = {
        "image": data_uri(data / "rocket_640x360.jpg"),
        "audio": data_uri(data / "chime_1s.wav"),
    }
    _, loudness = levels(local(engine.generate(VideoRequest(prompt="x", **media)).video_url))
    assert max(loudness[15:]) < 0.001  # the chime, then silence


def test_wrong_rows_of_a_package_are_reported_with_its_name(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "broken-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    entry = folder / "entry_points.txt"
    monkeypatch.syspath_prepend(str(tmp_path))
    for value, said in (
        ("nowhere:ROWS", r"broken of wan_engine.models \(nowhere:ROWS\) gives no rows"),
        ("probe_tone:ROWS", "adds probe-tone, which is there already"),
    ):
        entry.write_text(f"[wan_engine.models]\nbroken = {value}\n")
        models._added_models.cache_clear()
        with pytest.raises(ConfigurationError, match=said):
            catalog.known_models()


# --- through the command line and the worker -----------------------------------------------------


def test_the_command_line_takes_references(
    variables: dict[str, str], data: Path, tmp_path: Path
) -> None:
    photos = [str(data / name) for name in ("rocket_640x360.jpg", "astronaut_360x480.png")]
    asked = [part for photo in (*photos, photos[0]) for part in ("--reference", photo)]
    command = ["-m", "wan_engine", "generate", *asked, "--prompt", "x", "--out", "clip.mp4"]
    env = {**variables, "PATH": os.environ["PATH"], "WAN_REFERENCE_MODEL": "probe-collage"}
    done = warm.shared().run(command, env=env, cwd=tmp_path, stdin="")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "probe-collage"
    assert len(clip_frames(tmp_path / "clip.mp4", 8, 8)) == 80
    assert "(reference-to-video: the request has references)" in done.stderr


def test_the_worker_knows_the_task_from_the_fields_of_its_input(
    variables: dict[str, str], three: list[str], data: Path, tmp_path: Path
) -> None:
    image = data_uri(data / "rocket_640x360.jpg")
    with (
        ControlPlane() as plane,
        started(
            plane,
            tmp_path / "worker",
            **{**variables, "WAN_REFERENCE_MODEL": "probe-collage", "WAN_RENDER_AREA": "3072"},
        ) as worker,
    ):
        plane.submit("references", {"prompt": "x", "references": three, "seed": 1})
        plane.submit("picture", {"prompt": "x", "image": image, "seed": 1})
        plane.submit("both", {"prompt": "x", "image": image, "references": three})
        plane.submit("end", {"prompt": "x", "references": three, "last_image": image})
        assert plane.result("references")["output"]["seed"] == 1
        assert plane.result("picture")["output"]["seed"] == 1
        assert plane.result("both")["error"] == (
            'field "references" cannot be given with field "image"'
        )
        assert plane.result("end")["error"] == (
            'field "last_image" cannot be used: the model probe-collage takes references'
        )
        assert ["red", "lime", "blue"] in [colours(clip) for clip in worker.clips()]
        assert (
            "model probe-collage (reference-to-video: the request has references)"
            in worker.log.read_text()
        )


@pytest.mark.system  # its engine process imports torch
def test_one_gateway_serves_both_models_and_names_them(
    make_settings: Callable[..., Settings],
    variables: dict[str, str],
    folders: Path,
    three: list[str],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", variables["PYTHONPATH"])  # the gateway's engine process
    settings = make_settings(
        models_dir=folders, safety="off", preset="superfast", render_area=4096, **COLLAGE
    )

    async def line() -> None:
        async with open_gateway(settings) as gateway:
            transport = httpx.ASGITransport(create_app(gateway))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                for wanted, model in (
                    (("references", three), "probe-collage"),
                    (("image", data_uri(data / "rocket_640x360.jpg")), "wan-tiny"),
                ):
                    asked = {"input": {"prompt": "x", "seed": 3, wanted[0]: wanted[1]}}
                    done = await http.post("/v2/wan-2-6-i2v/runsync", json=asked, timeout=120)
                    body = done.json()
                    assert (done.status_code, body["status"]) == (200, "COMPLETED"), body
                    clip = await http.get(body["output"]["video_url"])
                    assert f"model {model}".encode() in clip.content
                here = {"image-to-video": "wan-tiny", "reference-to-video": "probe-collage"}
                assert (await http.get("/readyz")).json()["models"] == here
                assert (await http.get("/v2/wan-2-6-i2v/health")).json()["models"] == here

    asyncio.run(line())
