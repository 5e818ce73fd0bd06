"""The training of `wan-tiny`: its shortcuts compute what the library computes, each camera move
matches its name, and its steps run and write weights."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from builder.train_toy import __main__ as train_toy
from builder.train_toy import experts, loop, moves, prompts, vae
from builder.train_toy.fast import make_fast
from builder.train_toy.motion import find_motion
from builder.train_toy.pictures import Pictures
from builder.train_toy.start import begin_with_components
from wan_engine.families.i2v import DistilledEulerScheduler
from wan_engine.toy import networks
from wan_engine.toy.camera_moves import MOVES


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(torch.Generator().manual_seed(1), 2, height=96, width=128)


def test_the_vae_run_as_two_sets_of_fast_layers_equals_the_librarys() -> None:
    torch.manual_seed(3)
    network = networks.make_vae().eval()
    pixels = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        latents = network.encode(pixels).latent_dist.mode()
        wanted = network.decode(latents).sample
        fast = copy.deepcopy(network)
        make_fast(fast)
        assert (vae.encode(fast, pixels) - latents).abs().max() < 1e-5
        assert (vae.decode(fast, latents).clamp(-1, 1) - wanted).abs().max() < 1e-5


def test_training_visits_the_states_that_the_sampler_visits() -> None:
    scheduler = DistilledEulerScheduler(shift=experts.SHIFT)
    scheduler.set_timesteps(experts.STEPS, device="cpu")
    assert experts.sigmas() == pytest.approx(scheduler.sigmas.tolist())


def test_the_encoder_begins_with_the_principal_components(pictures: Pictures) -> None:
    """No linear map to sixteen numbers does better than these, and the encoder comes close."""
    network = networks.make_vae()
    vae.initialise(network)
    begin_with_components(network, pictures.sample(24, 64, 64))
    drawn = pictures.sample(24, 64, 64)
    with torch.no_grad():
        codes = vae.encode(network.eval(), drawn[:, :, None])[:, :, 0]
    codes = codes.permute(0, 2, 3, 1).flatten(0, 2)
    pixels = F.pixel_unshuffle(drawn, 8).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = pixels - pixels.mean(dim=0)
    codes = torch.cat([codes, torch.ones(len(codes), 1)], dim=1)
    error = pixels - codes @ torch.linalg.lstsq(codes, pixels).solution
    least = torch.linalg.eigvalsh(pixels.T @ pixels)[:-16].sum()
    assert least * 0.99 < error.square().sum() < least * 1.25


@pytest.mark.parametrize("move", MOVES)
def test_a_search_that_does_not_know_the_move_finds_it(pictures: Pictures, move: str) -> None:
    picture = pictures.sample(1, 144, 256)
    number = torch.tensor([MOVES.index(move)])
    last = moves.warp(picture, number, torch.tensor([[80.0]]))[:, :, 0]
    assert find_motion(picture, last).names() == move


def test_prompts_name_their_own_move_and_no_other() -> None:
    source = random.Random(4)
    for move in MOVES:
        texts = [prompts.prompt(move, source).lower() for _ in range(100)]
        others = set(MOVES) - {move, "still"}
        assert not [text for text in texts for other in others if f"camera {other}" in text]


def test_the_rate_warms_up_stays_and_falls() -> None:
    factors = [loop.learning_rate_factor(1000, progress) for progress in (0.0, 0.5, 0.75, 1.0)]
    assert factors[:2] == [1, 1] and 0.4 < factors[2] < 0.6 and factors[3] == pytest.approx(0.01)
    assert loop.learning_rate_factor(0, 0.0) < 0.05


@pytest.mark.system
def test_the_steps_of_a_training_run_and_write_weights_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains the VAE and then the experts, on pictures of a few pixels."""
    monkeypatch.setattr(train_toy, "Pictures", SmallPictures)
    monkeypatch.setattr(experts, "_SHAPES", ((32, 32),))
    monkeypatch.setattr(experts, "_SMALL_SHAPES", ((32, 32),))
    monkeypatch.setattr(experts, "_SMALL", ((3, 4, 4),))
    file = tmp_path / "wan-tiny.safetensors"
    steps = ["--vae-steps", "2", "--expert-steps", "8"]
    train_toy.main(["--device", "cpu", "--scale", "0.02", *steps, "--out", str(file)])
    said = capsys.readouterr().out
    assert "vae 2 of 2: " in said and "experts 8 of 8: " in said and str(file) in said
    parts = networks.read_weights(file)
    assert len(set(parts["vae"].config.latents_std)) == 16


class SmallPictures(Pictures):
    def __init__(self, generator: torch.Generator, _count: int) -> None:
        super().__init__(generator, 2, height=48, width=64)

    def sample(self, count: int, _height: int, _width: int) -> torch.Tensor:
        return super().sample(count, 32, 32)
