"""The training of `wan-tiny`: its shortcuts compute what the library does, its moves are what they
are called, and a run can be broken off."""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from builder import tiny_networks, train_tiny
from builder.training import aim, experts, loop, moves, prompts, vae
from builder.training.evaluation import find_motion
from builder.training.fast import make_fast
from builder.training.pictures import Pictures
from builder.training.start import begin_with_components
from wan_engine.families.i2v import DistilledEulerScheduler


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    torch.manual_seed(3)
    network = tiny_networks.make_vae()
    return {"vae": network.eval(), "expert": tiny_networks.make_expert(layers=1).eval()}


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(torch.Generator().manual_seed(1), 2, height=96, width=128)


@pytest.mark.parametrize("frames", [1, 5, 17])
@pytest.mark.parametrize("fast", [False, True])
def test_two_runs_of_the_vae_are_the_librarys_group_by_group(
    networks: dict[str, Any], frames: int, fast: bool
) -> None:
    network = networks["vae"]
    pixels = torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        latents = network.encode(pixels).latent_dist.mode()
        wanted = network.decode(latents).sample
        if fast:
            network = copy.deepcopy(network)
            make_fast(network)
        assert (vae.encode(network, pixels) - latents).abs().max() < 1e-5
        assert (vae.decode(network, latents).clamp(-1, 1) - wanted).abs().max() < 1e-5


def test_fast_layers_of_an_expert_compute_the_same(networks: dict[str, Any]) -> None:
    plain, fast = networks["expert"], copy.deepcopy(networks["expert"])
    make_fast(fast)
    given = (torch.randn(1, 36, 3, 4, 4), torch.tensor([625.0]), torch.randn(1, 512, 32))
    assert torch.allclose(plain(*given).sample, fast(*given).sample, atol=1e-5)


def test_the_training_visits_the_states_of_the_sampler() -> None:
    scheduler = DistilledEulerScheduler(shift=experts.SHIFT)
    scheduler.set_timesteps(experts.STEPS, device="cpu")
    assert experts.sigmas() == pytest.approx(scheduler.sigmas.tolist())


@pytest.fixture(scope="module")
def begun(pictures: Pictures) -> Any:
    """The VAE as its training begins."""
    network = tiny_networks.make_vae()
    vae.initialise(network)
    begin_with_components(network, pictures.sample(24, 64, 64))
    return network.eval()


def test_the_encoder_begins_with_the_principal_components(begun: Any, pictures: Pictures) -> None:
    """No linear reading of sixteen numbers does better than they do, and theirs comes near."""
    drawn = pictures.sample(24, 64, 64)
    with torch.no_grad():
        codes = vae.encode(begun, drawn[:, :, None])[:, :, 0].permute(0, 2, 3, 1).flatten(0, 2)
    pixels = F.pixel_unshuffle(drawn, 8).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = pixels - pixels.mean(dim=0)
    codes = torch.cat([codes, torch.ones(len(codes), 1)], dim=1)
    error = pixels - codes @ torch.linalg.lstsq(codes, pixels).solution
    variances = torch.linalg.eigvalsh(pixels.T @ pixels)
    least = variances[:-16].sum()
    assert least * 0.99 < error.square().sum() < least * 1.25


def test_a_still_clip_begins_as_a_row_of_equal_pictures(pictures: Pictures) -> None:
    network = tiny_networks.make_vae()
    vae.initialise(network)
    clip = pictures.sample(1, 32, 48)[:, :, None].expand(-1, -1, 13, -1, -1)
    with torch.no_grad():
        latents = vae.encode(network, clip)
        frames = vae.decode(network, latents)
    assert latents.std() > 0.01 and frames.std() > 0.01
    assert torch.allclose(latents[:, :, 1], latents[:, :, 3], atol=1e-6)
    assert torch.allclose(frames[:, :, 1], frames[:, :, 12], atol=1e-5)


def test_latents_of_a_still_clip_begin_as_those_of_its_picture(
    begun: Any, pictures: Pictures
) -> None:
    clip = pictures.sample(1, 32, 48)[:, :, None].expand(-1, -1, 13, -1, -1)
    with torch.no_grad():
        latents = vae.encode(begun, clip)
    assert latents.std() > 0.3
    assert (latents - latents[:, :, :1]).abs().mean() < 0.05


@pytest.fixture(scope="module")
def aimed(begun: Any) -> tuple[Any, Any]:
    """The experts as their training begins."""
    both = tiny_networks.make_experts()
    experts.initialise(both, begun)
    return both


@pytest.mark.parametrize("prompt", ["", "the camera is still"])
def test_experts_begin_by_repeating_the_picture(
    begun: Any, aimed: tuple[Any, Any], pictures: Pictures, prompt: str
) -> None:
    tokenizer = tiny_networks.make_tokenizer()
    tokens, mask = experts.tokenise(tokenizer, [prompt], torch.device("cpu"))
    clip = pictures.sample(1, 64, 96)[:, :, None].expand(-1, -1, 21, -1, -1)
    with torch.no_grad():
        wanted = vae.normalise(begun, vae.encode(begun, clip))
        text = experts.text_states(tiny_networks.make_text_encoder(len(tokenizer)), tokens, mask)
        condition = experts.condition_of(begun, clip, 1)
        seen = experts.sample(aimed, condition, text, torch.Generator().manual_seed(5))
    assert (condition[:, 4:, -1] - wanted[:, :, -1]).square().mean() > wanted.var() / 2
    assert (seen[:, :, 1:] - wanted[:, :, 1:]).square().mean() < wanted.var() / 5


def test_measures_of_the_first_block_tell_the_time_and_the_place(
    begun: Any, aimed: tuple[Any, Any], pictures: Pictures
) -> None:
    clip = pictures.sample(1, 96, 160)[:, :, None].expand(-1, -1, 81, -1, -1)
    with torch.no_grad():
        condition = experts.condition_of(begun, clip, 1)
        state = torch.cat([torch.randn(1, 16, 21, 12, 20), condition], dim=1)
        hidden = aim.Aim(0).hidden(aimed[0], state, 1.0, torch.zeros(1, 512, 32))
    measures = hidden[0, :, list(aim.MEASURES)].view(21, 6, 10, 5)[1:]
    axes = [torch.arange(n).float() for n in (20, 6, 10)]
    for index, axis, way in ((0, 0, -1), (1, 2, -1), (2, 2, 1), (3, 1, -1), (4, 1, 1)):
        others = [other for other in range(3) if other != axis]
        line = measures[..., index].mean(dim=others)
        assert way * torch.corrcoef(torch.stack([line, axes[axis]]))[0, 1] > 0.8


def test_a_layer_can_begin_with_a_product() -> None:
    ffn = tiny_networks.make_expert(layers=1).blocks[0].ffn
    rest = copy.deepcopy(ffn)
    aim._add_product(ffn, range(4), {3: 1.0}, {7: 1.0, 8: -1.0}, 0.5, {20: 1.0, 21: -2.0})
    rest.load_state_dict(ffn.state_dict())
    with torch.no_grad():
        rest.net[2].weight[:, :4] = 0
        given = torch.rand(200, 160) - 0.5
        seen = ffn(given) - rest(given)
    wanted = 0.5 * given[:, 3] * (given[:, 7] - given[:, 8])
    assert (seen[:, 20] - wanted).abs().max() < 0.25 * wanted.abs().max()
    assert torch.corrcoef(torch.stack([seen[:, 20], wanted]))[0, 1] > 0.98
    assert torch.allclose(seen[:, 21], -2 * seen[:, 20], atol=1e-5)
    assert (seen[:, :20] == 0).all()


@pytest.mark.parametrize("move", prompts.MOVES)
def test_aims_are_where_a_move_takes_its_picture_from(move: str) -> None:
    """On a picture whose colours are its own places."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(160.0), indexing="ij")
    picture = torch.stack([x / 160, y / 96, x * 0])[None]
    number = torch.tensor([prompts.MOVES.index(move)])
    offset = moves.offsets_px(number, torch.tensor([[0.0, 40.0]]), 96, 160, 16)
    clip = moves.warp(picture, number, torch.tensor([[0.0, 40.0]]))
    seen = F.avg_pool3d(clip, (1, 16, 16))[0, :2] * torch.tensor([160, 96]).view(2, 1, 1, 1)
    assert (offset[0, :, 0] == 0).all()
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose((seen[:, 1] - seen[:, 0])[inner], offset[0, :, 1][inner], atol=0.3)


def test_padding_of_a_prompt_begins_as_nothing_to_an_expert(aimed: tuple[Any, Any]) -> None:
    expert = aimed[0]
    text = torch.cat([torch.randn(1, 3, 32), torch.zeros(1, 2, 32)], dim=1)
    with torch.no_grad():
        keys = expert.blocks[0].attn2.to_k(expert.condition_embedder.text_embedder(text))
    assert (keys[0, 3:] == 0).all()
    assert (keys[0, :3].abs().amax(dim=-1) > 0).all()


def test_frame_0_of_a_move_is_the_picture(pictures: Pictures) -> None:
    picture = pictures.sample(len(prompts.MOVES), 48, 64)
    every = torch.arange(len(prompts.MOVES))
    clip = moves.warp(picture, every, torch.tensor([[0.0, 40.0]]).expand(len(every), 2))
    assert (clip[:, :, 0] - picture).abs().max() < 1e-3
    moved = (clip[:, :, 1] - picture).abs().mean((1, 2, 3))
    assert moved[0] < 1e-3 and (moved[1:] > 0.01).all()  # the first of them is still


@pytest.mark.parametrize("move", prompts.MOVES)
def test_a_move_is_found_by_a_search_that_does_not_know_it(pictures: Pictures, move: str) -> None:
    picture = pictures.sample(1, 144, 256)
    number = torch.tensor([prompts.MOVES.index(move)])
    last = moves.warp(picture, number, torch.tensor([[80.0]]))[:, :, 0]
    assert find_motion(picture, last).names() == move


@pytest.mark.parametrize("move", prompts.MOVES)
def test_prompts_name_their_move_and_no_other(move: str) -> None:
    source = random.Random(4)
    told = {"zoom in": "closer", "zoom out": "away"}.get(move, move.split()[-1])
    texts = [prompts.prompt(move, source) for _ in range(200)]
    assert all(texts) and len(set(texts)) > 150
    for other in set(prompts.MOVES) - {move, "still"}:
        assert not any(f"camera {other}" in text.lower() for text in texts)
    assert move == "still" or any(told in text for text in texts)


def test_drawings_depend_on_the_seed_alone() -> None:
    first, second, other = (
        Pictures(torch.Generator().manual_seed(seed), 1, height=32, width=48).sample(2, 16, 16)
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.abs().max() <= 1 and first.std() > 0.05


class Falling:
    """A stage whose loss is a number that its optimizer minimises, or is not one for a while."""

    name = "falling"

    def __init__(self, broken_after: int | None = None) -> None:
        self.value = torch.nn.Parameter(torch.tensor(4.0))
        self.optimizer = torch.optim.AdamW([self.value], lr=0.05)
        self.broken_after, self.taken = broken_after, 0

    def step(self, _progress: float) -> dict[str, torch.Tensor]:
        self.taken += 1
        time.sleep(0.002)
        loss = self.value.square() + 1
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.taken == self.broken_after:
            self.value.data.fill_(float("nan"))
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value.data, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value.data.copy_(state["value"])
        self.optimizer.load_state_dict(state["optimizer"])


def run(stage: Falling, *, steps: int) -> list[str]:
    lines: list[str] = []
    loop.run_stage(
        stage,
        loop.Budget(steps=steps),
        loop.Position(),
        loop.Log(None, lines.append, as_json=True),
        save=lambda: None,
        log_seconds=0.05,
    )
    return lines


def test_a_stage_says_how_its_loss_falls() -> None:
    rows = [json.loads(line) for line in run(Falling(), steps=200)]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] and rows[-1]["steps"] == 200


def test_a_stage_that_collapses_goes_on_from_where_it_was_well() -> None:
    stage = Falling(broken_after=120)
    rows = [json.loads(line) for line in run(stage, steps=300)]
    fallen = [row for row in rows if row["event"] == "collapsed"]
    assert len(fallen) == 1 and fallen[0]["rate"] == 0.025
    assert stage.value.isfinite() and abs(stage.value) < 4


def test_the_rate_warms_up_stays_and_falls() -> None:
    factors = [loop.learning_rate_factor(1000, progress) for progress in (0.0, 0.5, 0.75, 1.0)]
    assert factors[:2] == [1, 1] and 0.4 < factors[2] < 0.6 and factors[3] == pytest.approx(0.01)
    assert loop.learning_rate_factor(0, 0.0) < 0.05


def test_a_training_that_is_broken_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it on pictures of a few pixels: the VAE, then the experts, figures and weights."""
    small(monkeypatch)
    command = ["--device", "cpu", "--out", str(tmp_path), "--scale", "0.02"]
    train_tiny.main([*command, "--stage", "vae", "--steps", "vae=2"])
    train_tiny.main([*command, "--resume", "--steps", "vae=2,experts=8"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {name: stage["steps"] for name, stage in figures["stages"].items()} == {
        "vae": 2,
        "experts": 8,
    }
    parts = tiny_networks.read_weights(tmp_path / "wan-tiny.safetensors")
    assert len(set(parts["vae"].config.latents_std)) == 16
    log = (tmp_path / "train.log").read_text()
    assert log.count("vae done") == 1 and "resumed" in log


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture and clip of the stages shrunk."""
    monkeypatch.setattr(train_tiny, "Pictures", SmallPictures)
    monkeypatch.setattr(experts, "_SHAPES", ((32, 32),))
    monkeypatch.setattr(experts, "_SMALL_SHAPES", ((32, 32),))
    monkeypatch.setattr(experts, "_SMALL", ((3, 4, 4),))


class SmallPictures(Pictures):
    def __init__(self, generator: torch.Generator, _count: int) -> None:
        super().__init__(generator, 2, height=48, width=64)

    def sample(self, count: int, _height: int, _width: int) -> torch.Tensor:
        return super().sample(count, 32, 32)
