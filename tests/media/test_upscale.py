"""Larger pictures: exact size and count with any network, windows without seams, clear refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from wan_engine.control import Control
from wan_engine.errors import Cancelled, ConfigurationError, EncodeFailed, OutOfMemory
from wan_engine.media import upscale
from wan_engine.schema import Frames, Plan, Segment, Shot
from wan_engine.settings import Settings
from wan_engine.weights import choose_upscaling


def plan(
    *counts: int,
    render: tuple[int, int] = (64, 48),
    crop: tuple[int, int] | None = None,
    target: tuple[int, int] = (96, 72),
) -> Plan:
    """One shot for each of `counts`, with that many frames."""
    shots = tuple(Shot("", (Segment(0, count, 0, count),), count) for count in counts)
    return Plan(*target, *render, *(crop or render), 16, sum(counts), 0, shots, 16)


def chunks(frames: list[np.ndarray]) -> Iterator[Frames]:
    start, end = 0, 1
    while start < len(frames):
        yield np.stack(frames[start:end])
        start, end = end, end + 4


class Doubler:
    """Repeats every pixel, and records the number of frames per call."""

    def __init__(self, window: int = 1, overlap: int = 0) -> None:
        self.window, self.overlap = window, overlap
        self.given: list[int] = []

    def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
        self.given.append(len(frames))
        return frames.repeat_interleave(2, 2).repeat_interleave(2, 3)


def run(plan: Plan, frames: list[np.ndarray], upscaler: upscale.Upscaler) -> np.ndarray:
    return np.concatenate(list(upscale.upscale(chunks(frames), plan, upscaler, Control())))


def grey(value: int) -> np.ndarray:
    return np.full((48, 64, 3), value, np.uint8)


WINDOWS = [(1, 0), (9, 4), (33, 4)]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("count", [1, 4, 5, 9, 33, 34, 81])
def test_every_frame_comes_out_once_in_the_size_of_the_clip(
    count: int, windows: tuple[int, int]
) -> None:
    doubler = Doubler(*windows)
    made = run(plan(count), [grey(index) for index in range(count)], doubler)
    assert made.shape == (count, 72, 96, 3)
    assert made[:, 36, 48, 0].tolist() == list(range(count))  # windows that overlap agree
    assert max(doubler.given) <= windows[0]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_no_window_contains_two_shots(windows: tuple[int, int]) -> None:
    doubler = Doubler(*windows)
    frames = [grey(10)] * 11 + [grey(200)] * 12
    made = run(plan(11, 12), frames, doubler)
    assert (made[:11] == 10).all() and (made[11:] == 200).all()


def test_windows_fade_into_each_other() -> None:
    class Restless(Doubler):
        """Makes each window brighter than the one before."""

        def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
            return super().enlarge(frames, scale) + 0.2 * (len(self.given) - 1)

    made = run(plan(14), [grey(0)] * 14, Restless(9, 4))[:, 36, 48, 0]
    assert made.tolist() == [0] * 5 + [10, 20, 31, 41] + [51] * 5


def test_the_middle_is_cropped_as_the_encoder_would_crop_it() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[6:42, 8:56] = 255
    made = run(plan(1, crop=(48, 36)), [picture], Doubler())
    assert (made == 255).all()


def test_a_picture_stays_the_same_but_larger() -> None:
    data = Path(__file__).parents[1] / "data" / "rocket_640x360.jpg"
    photograph = Image.open(data).convert("RGB").resize((128, 72), Image.Resampling.LANCZOS)
    shape = plan(1, render=(128, 72), target=(192, 108))
    made = run(shape, [np.asarray(photograph)], Doubler())[0]
    wanted = np.asarray(photograph.resize((192, 108), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(made - wanted).mean() < 4


@pytest.mark.parametrize("count", [0, 3, 7, 9, 12])
def test_a_wrong_number_of_frames_fails(count: int) -> None:
    with pytest.raises(EncodeFailed):
        run(plan(8), [grey(0)] * count, Doubler())


def test_a_cancelled_job_stops_and_its_source_is_closed() -> None:
    control, closed = Control(), []

    def source() -> Iterator[Frames]:
        try:
            for _ in range(9):
                yield grey(0)[None]
        finally:
            closed.append(True)

    stream = upscale.upscale(source(), plan(9), Doubler(), control)
    next(stream)
    control.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert closed == [True]


def test_a_full_device_is_out_of_memory() -> None:
    class TooLarge(Doubler):
        def enlarge(self, frames: torch.Tensor, scale: float) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemory, match="larger picture"):
        run(plan(1), [grey(0)], TooLarge())


@pytest.mark.parametrize("length", [1, 640, 641, 720, 1280, 4096])
def test_tiles_cover_everything_once(length: int) -> None:
    tiles = upscale._tiles(length)
    assert [index for start, end in tiles for index in range(start, end)] == list(range(length))
    assert max(end - start for start, end in tiles) <= 640


def test_only_a_larger_clip_needs_a_network() -> None:
    assert upscale.is_larger(plan(1))
    assert not upscale.is_larger(plan(1, target=(64, 48)))
    assert not upscale.is_larger(plan(1, target=(32, 24)))


# --- choice of the method ------------------------------------------------------------------------


@pytest.fixture
def kandinsky(tmp_path: Path) -> Path:
    """A Kandinsky 6 SR with random weights and one small tile size."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky6SRPipeline,
        Kandinsky6SRTransformer3DModel,
        Kandinsky6SRVAE,
    )

    torch.manual_seed(0)
    widths = (4,) * 5
    vae = Kandinsky6SRVAE(
        latent_channels=4,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=1,
    )
    transformer = Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        tile_sizes=((128, 128),),
    )
    pipeline = Kandinsky6SRPipeline(
        transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler()
    )
    pipeline.save_pretrained(tmp_path / "sr")
    return tmp_path / "sr"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_kandinsky_enlarges_a_window_of_any_length_and_size(kandinsky: Path) -> None:
    network = upscale.load("kandinsky-sr", kandinsky, "cpu")
    made = run(plan(3, render=(64, 48), target=(96, 72)), [grey(100)] * 3, network)
    assert made.shape == (3, 72, 96, 3)
    assert made.std() > 0  # random weights give texture


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_kandinsky_runs_uncompiled_where_compiling_fails(
    kandinsky: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = plan(3, render=(64, 48), target=(96, 72)), [grey(100)] * 3
    eager = run(*asked, upscale.load("kandinsky-sr", kandinsky, "cpu"))
    network = upscale.load("kandinsky-sr", kandinsky, "cpu")
    assert isinstance(network, upscale.KandinskySr)

    def fails(*_: object) -> Any:
        raise RuntimeError("Failed to find C compiler")

    transformer = network._pipeline.transformer
    transformer.compile_repeated_blocks = partial(
        transformer.compile_repeated_blocks, backend=fails
    )
    network.compile()
    assert np.array_equal(run(*asked, network), eager)
    assert caplog.text.count("the upscaler runs uncompiled, slower and larger: RuntimeError") == 1
    assert "Failed to find C compiler" in caplog.text


def test_the_setting_and_the_weights_choose_the_network(kandinsky: Path) -> None:
    assert choose_upscaling(Settings())[0] == "lanczos"
    assert choose_upscaling(Settings(upscale="native"))[0] == "native"
    assert choose_upscaling(Settings(upscale_weights=kandinsky))[0] == "kandinsky-sr"
    assert choose_upscaling(Settings(upscale="lanczos", upscale_weights=kandinsky))[0] == "lanczos"


@pytest.mark.parametrize("name", ["realesrgan", "kandinsky-sr"])
def test_a_network_without_weights_says_what_it_needs(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs WAN_UPSCALE_WEIGHTS"):
        choose_upscaling(Settings(upscale=name))


def test_weights_of_another_kind_are_refused(kandinsky: Path, tmp_path: Path) -> None:
    file = tmp_path / "x2.pth"
    file.touch()
    with pytest.raises(ConfigurationError, match="which is a folder"):
        choose_upscaling(Settings(upscale="realesrgan", upscale_weights=kandinsky))
    with pytest.raises(ConfigurationError, match="which is not a folder"):
        choose_upscaling(Settings(upscale="kandinsky-sr", upscale_weights=file))
    (kandinsky / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ConfigurationError, match="holds WanPipeline"):
        choose_upscaling(Settings(upscale_weights=kandinsky))


def test_an_incomplete_folder_is_refused(kandinsky: Path) -> None:
    next((kandinsky / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(ConfigurationError, match="incomplete: vae/"):
        choose_upscaling(Settings(upscale_weights=kandinsky))


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not there"):
        choose_upscaling(Settings(upscale_weights=tmp_path / "x2.pth"))


def test_a_missing_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", cast(Any, None))
    (tmp_path / "x2.pth").touch()
    with pytest.raises(ConfigurationError, match=r"requirements-extra\.txt"):
        choose_upscaling(Settings(upscale_weights=tmp_path / "x2.pth"))


# --- a real image network, where spandrel is installed -------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A file of an ESRGAN with random weights."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN import ESRGAN

    def make(**shape: int) -> Path:
        torch.manual_seed(0)
        network = ESRGAN(**{"num_filters": 8, "num_blocks": 1, "scale": 2, **shape})
        torch.save(network.state_dict(), tmp_path / "x.pth")
        return tmp_path / "x.pth"

    return make


@pytest.mark.parametrize("scale", [2, 4])
def test_an_esrgan_enlarges_by_its_own_scale(checkpoint: Callable[..., Path], scale: int) -> None:
    weights = checkpoint(scale=scale)
    assert choose_upscaling(Settings(upscale_weights=weights))[0] == "realesrgan"
    network = upscale.load("realesrgan", weights, "cpu")
    assert network.enlarge(torch.rand(1, 3, 20, 30), 1.5).shape == (1, 3, 20 * scale, 30 * scale)
    assert run(plan(2), [grey(100)] * 2, network).shape == (2, 72, 96, 3)


def test_tiles_leave_no_seam(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = upscale.load("realesrgan", checkpoint(), "cpu")
    frame = torch.rand(1, 3, 60, 90)
    whole = network.enlarge(frame, 2)
    monkeypatch.setattr(upscale, "_TILE_PIXELS", 32)
    assert torch.allclose(network.enlarge(frame, 2), whole, atol=1e-5)


def test_a_foreign_file_is_refused(checkpoint: Callable[..., Path]) -> None:
    weights = checkpoint()
    torch.save({"weight": torch.zeros(3)}, weights)
    with pytest.raises(ConfigurationError, match="spandrel cannot read"):
        upscale.load("realesrgan", weights, "cpu")


def test_a_network_for_grey_pictures_is_refused(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match="not a network for larger colour"):
        upscale.load("realesrgan", checkpoint(in_nc=1, out_nc=1), "cpu")
