"""Values that are not finite end the job. A clip of one colour is valid."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.clips import SMALLEST, few_frames
from wan_engine import Control, Engine, Settings, VideoRequest, data_uri
from wan_engine.errors import NotFinite
from wan_engine.families.base import stream_decode, to_frames
from wan_engine.media.upscale import upscale
from wan_engine.plan import PlanLimits, make_plan
from wan_engine.runtime.finite import require_finite
from wan_engine.safety import open_safety
from wan_engine.schema import Media, Plan, Script, ScriptShot

MakeSettings = Callable[..., Settings]
NAN, INFINITY = float("nan"), float("inf")


def spoil(network: Any, value: float) -> None:
    """Sets one value of the network's last weight."""
    weight = list(network.parameters())[-1]
    weight.data.view(-1)[0] = value


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("text_encoder", "the text encoder"),
        ("vae.encoder", "the VAE's encoder"),
        ("transformer", "step 1 of 4 by the high-noise expert"),
        ("transformer_2", "step 3 of 4 by the low-noise expert"),
        ("vae.decoder", "the VAE's decoder"),
    ],
)
def test_a_network_with_one_bad_number_fails_the_job_and_the_log_says_where(
    make_settings: MakeSettings,
    data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    network: str,
    said: str,
    value: float,
) -> None:
    engine = few_frames(make_settings(**SMALLEST))
    family: Any = engine.load()
    part = family.pipeline
    for name in network.split("."):
        part = getattr(part, name)
    spoil(part, value)
    request = VideoRequest(prompt="lift-off", image=data_uri(data / "rocket_640x360.jpg"), seed=3)
    with caplog.at_level(logging.ERROR), pytest.raises(NotFinite, match="not finite"):
        engine.generate(request, Control("job"))
    assert f"{said} returned numbers that are not finite" in caplog.text
    assert not list(tmp_path.rglob("*.mp4")) and not list(tmp_path.rglob("*.json"))
    assert not list((tmp_path / "scratch").iterdir())


def test_a_clip_of_one_colour_is_valid(make_settings: MakeSettings) -> None:
    engine = few_frames(make_settings(**SMALLEST))
    family: Any = engine.load()
    for weight in family.pipeline.vae.decoder.parameters():
        weight.data.zero_()
    picture = Path(engine.settings.output_dir).parent / "grey.png"
    Image.new("RGB", (256, 256), "grey").save(picture)
    request = VideoRequest(prompt="nothing", image=data_uri(picture), seed=0)
    assert engine.generate(request).video_url


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_infinity_is_found_before_it_is_clamped_to_white(value: float) -> None:
    class Decoder(torch.nn.Module):
        def forward(self, latent: torch.Tensor, **_: Any) -> torch.Tensor:
            made = torch.zeros(1, 3, 1, 4, 4)
            made[0, 0, 0, 1, 1] = value
            return made

    class Vae:
        config = type("Config", (), {"patch_size": None})
        decoder = Decoder()
        _feat_map = None

        def clear_cache(self) -> None: ...

        def post_quant_conv(self, latents: torch.Tensor) -> torch.Tensor:
            return latents

    with pytest.raises(NotFinite):
        list(to_frames(stream_decode(Vae(), torch.zeros(1, 16, 1, 2, 2))))


def test_a_classifier_with_a_bad_number_gives_no_verdict(make_settings: MakeSettings) -> None:
    safety: Any = open_safety(make_settings(), required=True)
    safety.load()
    spoil(safety._classifier._model, NAN)
    with pytest.raises(NotFinite):
        safety.check_image(Image.new("RGB", (256, 256)), Control())
    for weight in safety._guard._model.parameters():
        weight.data.fill_(NAN)
    with pytest.raises(NotFinite):
        safety.check_prompt("a red boat", Control())


def test_an_enlarged_frame_with_a_bad_number_fails_the_job(make_settings: MakeSettings) -> None:
    class Broken:
        window, overlap = 1, 0

        def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
            return torch.full((1, 3, frames.shape[2] * 2, frames.shape[3] * 2), INFINITY)

    plan = small_plan(make_settings)
    frames = (np.zeros((1, plan.render_height, plan.render_width, 3), np.uint8) for _ in range(9))
    with pytest.raises(NotFinite):
        list(upscale(frames, plan, Broken(), Control()))


def small_plan(make_settings: MakeSettings) -> Plan:
    engine = Engine(make_settings(render_area=64 * 48))
    request = VideoRequest(prompt="x", image="data:,", seed=0)
    script, media = Script((ScriptShot("x", 5),)), Media(Image.new("RGB", (640, 480)))
    return make_plan(request, script, media, engine.spec, PlanLimits())


def test_values_are_finite_or_the_stage_is_named() -> None:
    require_finite([0.0, -1e308], "a sum")
    require_finite(torch.zeros(3), "a tensor")
    require_finite(torch.empty(0), "nothing")
    for values in ([1.0, NAN], [INFINITY], torch.tensor([1.0, NAN]), torch.tensor([-INFINITY])):
        with pytest.raises(NotFinite) as failure:
            require_finite(values, "a sum")
        assert failure.value.where == "a sum"
