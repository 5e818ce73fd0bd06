"""Fixtures of all tests: an environment without anybody's settings, and small folders to work
in."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import small, warm
from wan_engine import toy
from wan_engine.settings import Settings
from wan_engine.toy.checkpoints import place_in_cache

# Tensors this small gain nothing from a second thread, and are much slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests start a few hundred processes of this project, so their modules are compiled once.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The Hub's client reads this variable on import, which may happen while tests are collected.
os.environ["HF_HUB_OFFLINE"] = "1"

_OURS = ("WAN_", "BUCKET_", "RUNPOD_", "HF_")
for _name in list(os.environ):  # for files that several tests share
    if _name.upper().startswith(_OURS) and _name != "HF_HUB_OFFLINE":
        del os.environ[_name]


_WAITING = (
    "tests/worker_loop",
    "tests/cli",
    "tests/test_handler",
    "tests/test_compose",
    "tests/gateway/test_",
    "tests/storage/test_retries",
    "tests/storage/test_silent",
    "tests/storage/test_spool",
    "tests/runtime/test_watchdog",
    "tests/media/test_audio",
)
_COMPUTING = ("tests/engine", "tests/families", "tests/test_")


def pytest_configure(config: pytest.Config) -> None:
    """Let the workers of pytest-xdist share the processes that have imported the large
    libraries."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        warm.lend()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first: after every two files that compute, one that mostly waits for processes
    and clocks. Four workers that get whole files in this order (`--no-loadscope-reorder`) then
    keep two cores busy and end at about the same time."""
    files = list(dict.fromkeys(item.nodeid.split("::")[0] for item in items))
    waiting = [file for start in _WAITING for file in files if file.startswith(start)]
    computing = [f for f in files if f.startswith(_COMPUTING) and f not in waiting]
    places = {file: (3.0 * at + 2.5) for at, file in enumerate(waiting)}
    places |= {file: 1.5 * at for at, file in enumerate(computing)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], float("inf")))


def pytest_collection_finish() -> None:
    """Exempt the libraries and thousands of tests from every later garbage collection, which the
    engine asks for whenever it frees a device."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and nothing calls the Hub."""
    for name in list(os.environ):
        if name.upper().startswith(_OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def small_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips have a sixteenth of the area that was asked for: their encode takes most of the time
    of a job on tiny weights."""
    small.shrink_clips(monkeypatch.setattr)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which tiny checkpoints are built, once per run.

    `wan-tiny` is already in it, with random weights: a twentieth of the size of the trained one.
    Tests that look at the picture use `trained`.
    """
    folder = tmp_path_factory.mktemp("tiny")
    random = toy.build("wan-tiny-random", folder / "wan-tiny")
    place = folder / place_in_cache("wan-tiny")
    place.parent.mkdir()
    place.symlink_to(random, target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained `wan-tiny` that users get. Its clips show the user's picture."""
    return toy.build("wan-tiny", tmp_path_factory.mktemp("trained") / "wan-tiny")


@pytest.fixture
def data() -> Path:
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def settings_in(tiny_cache: Path) -> Callable[..., Settings]:
    """Settings for the tiny model and classifiers, with all folders below the first argument. The
    other arguments replace any setting."""

    def make(folder: Path, **overrides: Any) -> Settings:
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        values = {
            "model": "wan-tiny",
            "safety_prompt_model": "tiny-prompt-guard",
            "safety_image_model": "tiny-image-classifier",
            "cache_dir": tiny_cache,
            "output_dir": folder / "outputs",
            "scratch_dir": scratch,
            "fps": "native",  # most tests look at what the model renders
        }
        return Settings(**{**values, **overrides})

    return make


@pytest.fixture
def make_settings(settings_in: Callable[..., Settings], tmp_path: Path) -> Callable[..., Settings]:
    """`settings_in` with the test's folder."""
    return partial(settings_in, tmp_path)
