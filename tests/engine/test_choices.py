"""What the constructor chooses from the settings, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.engine.clips import (
    MakeSettings,
    RequestFor,
)
from wan_engine import Engine
from wan_engine.catalog import CATALOG
from wan_engine.catalog.with_settings import with_settings
from wan_engine.errors import (
    ConfigurationError,
)
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.schema import Media, Script, ScriptShot
from wan_engine.settings import OwnLora


def test_settings_replace_the_models_own_values(make_settings: MakeSettings) -> None:
    spec = Engine(make_settings(steps=2, guidance_scale=4, flow_shift=3)).spec
    assert (spec.steps, spec.guidance_scale, spec.flow_shift) == (2, 4, 3)


def test_cfg_for_the_second_expert_alone_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ConfigurationError, match="WAN_GUIDANCE_SCALE_2 is 3"):
        Engine(make_settings(guidance_scale=1, guidance_scale_2=3))


def test_the_continuation_is_a_setting(make_settings: MakeSettings) -> None:
    def chosen(**settings: Any) -> tuple[str, int]:
        spec = Engine(make_settings(**settings)).spec
        return spec.continuation, spec.overlap_frames

    assert chosen() == ("last_frames", 5)
    assert chosen(continuation="last_frame") == ("last_frames", 1)
    assert chosen(model="wan-tiny-ti2v") == ("latents", 5)
    assert chosen(model="wan-tiny-ti2v", continuation="last_frames") == ("last_frames", 5)


def test_a_continuation_that_the_model_cannot_do_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ConfigurationError, match="svi, which wan-tiny-ti2v cannot do: it takes"):
        Engine(make_settings(model="wan-tiny-ti2v", continuation="svi"))
    with pytest.raises(ConfigurationError, match="auto or last_frames or svi"):
        Engine(make_settings(continuation="latents"))
    row = CATALOG["wan2.2-i2v-a14b-4step-svi"]
    with pytest.raises(ConfigurationError, match="it takes auto or svi"):
        with_settings(row, make_settings(continuation="last_frames"))


def test_svi_needs_its_pair(make_settings: MakeSettings, tmp_path: Path) -> None:
    files = [tmp_path / f"{expert}.safetensors" for expert in ("high", "low")]
    pair = tuple(OwnLora(path=path, expert=path.stem) for path in files)
    for given in ((), pair[:1], (OwnLora(path=files[0]),)):
        with pytest.raises(ConfigurationError, match="needs the Stable Video Infinity"):
            with_settings(CATALOG["wan-tiny"], make_settings(continuation="svi", lora=given))
    spec = with_settings(CATALOG["wan-tiny"], make_settings(continuation="svi", lora=pair))
    assert spec.continuation == "svi"
    row = CATALOG["wan2.2-i2v-a14b-4step-svi"]
    assert with_settings(row, make_settings(continuation="svi")).continuation == "svi"


def test_a_serverless_worker_needs_a_bucket(make_settings: MakeSettings) -> None:
    with pytest.raises(ConfigurationError, match="BUCKET_ENDPOINT_URL"):
        Engine(make_settings(), serverless=True)
    Engine(make_settings(storage="local"), serverless=True)


@pytest.mark.full_size
def test_native_renders_the_full_size(
    make_settings: MakeSettings, request_for: RequestFor, data: Path
) -> None:
    engine: Any = Engine(make_settings(upscale="native"))
    media = Media(Image.new("RGB", (1600, 900)))
    plans = [
        make_plan(
            request_for(size=size), Script((ScriptShot("", 5),)), media, engine.spec, PlanLimits()
        )
        for size in ("1280*720", "1920*1080")
    ]
    assert [(plan.render_width, plan.render_height) for plan in plans] == [
        (1280, 720),
        (1920, 1088),
    ]
    assert [(plan.crop_width, plan.crop_height) for plan in plans] == [(1280, 720), (1920, 1080)]


def test_a_backend_that_cannot_work_refuses_to_start(make_settings: MakeSettings) -> None:
    with pytest.raises(ConfigurationError, match="WAN_RIFE_WEIGHTS"):
        Engine(make_settings(interpolation="rife"))
    with pytest.raises(ConfigurationError, match="WAN_UPSCALE_WEIGHTS"):
        Engine(make_settings(upscale="realesrgan"))
