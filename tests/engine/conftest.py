"""The engine on `wan-tiny` at its smallest, and requests for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.clips import SMALLEST, MakeSettings, OrderFor, RequestFor, few_frames
from wan_engine import Engine, Settings, VideoRequest, data_uri


@pytest.fixture(autouse=True)
def _small_clips(request: pytest.FixtureRequest) -> None:
    """`small_clips` for every test that is not marked `full_size`."""
    if "full_size" not in request.keywords:
        request.getfixturevalue("small_clips")


@pytest.fixture
def unloaded(make_settings: MakeSettings) -> Engine:
    """`wan-tiny` with few frames, because encoding takes most of the time of such a small job."""
    return few_frames(make_settings(**SMALLEST))


@pytest.fixture(scope="session")
def loaded(
    settings_in: Callable[..., Settings], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    engine = few_frames(settings_in(tmp_path_factory.mktemp("loaded"), **SMALLEST))
    engine.load()
    return engine


@pytest.fixture
def engine(unloaded: Engine, loaded: Engine) -> Engine:
    """`unloaded` with its weights read once, for tests that do not change the engine."""
    unloaded.pool.main.family, unloaded.safety = loaded.pool.main.family, loaded.safety
    return unloaded


@pytest.fixture
def whole(make_settings: MakeSettings) -> Engine:
    """The engine with as many frames as the catalogue's row has."""
    return Engine(make_settings(**SMALLEST))


@pytest.fixture
def thirty(make_settings: MakeSettings) -> Any:
    """The engine of an operator who sets no frame rate."""
    return Engine(make_settings(**SMALLEST, fps=30))


@pytest.fixture
def request_for(data: Path) -> RequestFor:
    def make(**fields: Any) -> VideoRequest:
        image = data_uri(data / "rocket_640x360.jpg")
        return VideoRequest.parse({"prompt": "lift-off", "image": image, "seed": 3, **fields})

    return make


@pytest.fixture
def shortest(request_for: RequestFor) -> OrderFor:
    """Requests for the shortest clips, for tests that do not look at the length."""
    return lambda **fields: replace(request_for(**fields).order(), duration=2)
