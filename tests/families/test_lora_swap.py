"""LoRA files of requests in a loaded model: fused and removed again, to the bit, with every
recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.families.lora_files import lora_file, noise
from tests.rows import ROWS
from wan_engine import toy
from wan_engine.errors import Cancelled, LoraRefused
from wan_engine.families import load_family, lora_swap
from wan_engine.families.float8 import Float8Linear, convert_blocks
from wan_engine.families.lora import Fusing
from wan_engine.families.lora_swap import LoraSwap
from wan_engine.families.placement import experts
from wan_engine.runtime import memory
from wan_engine.runtime.recipes import Recipe
from wan_engine.schema import FirstPicture, Lora, SegmentInput
from wan_engine.settings import Settings
from wan_engine.weights import Located, LocatedLora
from wan_engine.weights.lora_folder import ChosenLora, LoraFolder

Load = Callable[..., Any]
State = dict[str, torch.Tensor]
NAME = "wan-tiny"
OFFLOADS = ("none", "stream", "model", "layer")


def said(_done: int, _total: int) -> None:
    """A progress callback that ignores the bytes."""


@pytest.fixture(scope="module")
def files(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files `a` and `b`, and the pair `c`."""
    network, folder = load(NAME).pipeline.transformer, tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("a", "b", "c_high", "c_low")):
        lora_file(folder / f"{name}.safetensors", network, 100 * seed)
    return folder


@pytest.fixture
def folder(files: Path, tmp_path: Path) -> Path:
    """A copy of `files`, which the test may change."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def fresh(load: Load, files: Path) -> Mapping[str | None, State]:
    """The weights of loads in float32: with `a`, with `b`, and with no file."""
    located = {name: LocatedLora(files / f"{name}.safetensors", 1.0, "both") for name in "ab"}
    loaded = {name: state(load(NAME, (file,))) for name, file in located.items()}
    return {None: state(load(NAME)), **loaded}


@pytest.fixture
def choose(folder: Path, tiny_cache: Path) -> Callable[..., tuple[ChosenLora, ...]]:
    """`choose(Lora or name, ...)` returns the LoRA files of a request that names these."""
    located = Located(ROWS[NAME], toy.build(NAME, tiny_cache / NAME))
    shelf = LoraFolder(Settings(lora_dir=folder))

    def choose(*asked: str | Lora) -> tuple[ChosenLora, ...]:
        named = [Lora(one) if isinstance(one, str) else one for one in asked]
        return shelf.chosen(named, located)

    return choose


def state(family: Any) -> State:
    """A copy of every weight and buffer of the experts."""
    return {
        f"{number}.{name}": one.detach().clone()
        for number, expert in enumerate(experts(family.pipeline))
        for name, one in (*expert.named_parameters(), *expert.named_buffers())
    }


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(raw(one[name]), raw(other[name]))
        for name in one
    )


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def changed(one: State, other: State) -> int:
    return sum(not torch.equal(raw(one[name]), raw(other[name])) for name in one)


@pytest.fixture(params=["kept in host memory", "read again"])
def aside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the original numbers are while others are in the model: in host memory, or in their
    file."""
    room = 10**12 if request.param == "kept in host memory" else 0
    monkeypatch.setattr(memory, "available_bytes", lambda: room)
    return str(request.param)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_switching_from_none_to_b_to_a_equals_fresh_loads_to_the_bit(
    load: Load, choose: Any, fresh: Mapping[str | None, State], offload: Any, aside: str
) -> None:
    family = load(NAME, recipe=Recipe("cpu", "float32", offload))
    assert changed(fresh["a"], fresh[None]) > 100 and changed(fresh["a"], fresh["b"]) > 100
    for name in ("a", None, "b", "a", None):
        wanted = choose(name) if name else ()
        family.set_loras(wanted, said)
        assert same(state(family), fresh[name]), (name, aside)
        assert family.loras == wanted
    assert aside


@pytest.mark.parametrize("offload", ["none", "stream"])
def test_switching_works_with_matrices_that_a_load_converts_to_8_bits(
    load: Load, choose: Any, folder: Path, offload: Any, aside: str
) -> None:
    recipe = Recipe("cpu", "bfloat16", offload)

    def converted(*loras: LocatedLora) -> Any:
        family = load(NAME, loras, recipe=recipe)
        for expert in experts(family.pipeline):
            convert_blocks(expert, torch.device("cpu"))
        return family

    family, plain = converted(), state(converted())
    fresh = state(converted(LocatedLora(folder / "a.safetensors", 0.5, "both")))
    matrices = [
        module for module in family.pipeline.transformer.modules()
        if isinstance(module, Float8Linear)
    ]  # fmt: skip
    assert matrices and changed(fresh, plain) > 100
    for _ in range(2):
        family.set_loras(choose(Lora("a", 0.5)), said)
        assert same(state(family), fresh)
        family.set_loras((), said)
        assert same(state(family), plain)
    assert aside


def test_the_operators_files_stay_underneath(
    load: Load, choose: Any, folder: Path, aside: str
) -> None:
    own = LocatedLora(folder / "b.safetensors", 0.7, "high")
    family, below = load(NAME, (own,)), state(load(NAME, (own,)))
    family.set_loras(choose("a"), said)
    above = state(family)
    family.set_loras((), said)
    assert same(state(family), below)
    family.set_loras(choose("a"), said)
    assert same(state(family), above) and not same(above, below)
    assert not same(state(load(NAME)), below) and aside


def test_switching_works_in_8_bits(load: Load, choose: Any, folder: Path, aside: str) -> None:
    own = LocatedLora(folder / "b.safetensors", 0.7, "high")
    family = load(NAME, (own,), recipe=Recipe("cpu", "bfloat16"))
    for expert in experts(family.pipeline):
        convert_blocks(expert, torch.device("cpu"))
    below = state(family)
    family.set_loras(choose("a", "c"), said)
    family.set_loras((), said)
    assert same(state(family), below) and aside


def test_each_half_of_a_pair_goes_into_its_own_expert(
    load: Load, choose: Any, folder: Path
) -> None:
    family = load(NAME)
    halves = (
        LocatedLora(folder / "c_high.safetensors", 0.5, "high"),
        LocatedLora(folder / "c_low.safetensors", 0.5, "low"),
    )
    family.set_loras(choose(Lora("c", 0.5)), said)
    assert same(state(family), state(load(NAME, halves)))
    family.set_loras(choose(Lora("c", 0.5, "low")), said)
    low = state(load(NAME, halves[1:]))
    assert same(state(family), low)
    family.set_loras(choose(Lora("c_low", 0.5)), said)  # one half, by its own name
    assert same(state(family), low)


def test_several_files_add_up_as_in_a_load(load: Load, choose: Any, folder: Path) -> None:
    family = load(NAME)
    family.set_loras(choose(Lora("a", -0.5, "low"), Lora("b", 2)), said)
    files = (
        LocatedLora(folder / "a.safetensors", -0.5, "low"),
        LocatedLora(folder / "b.safetensors", 2.0, "both"),
    )
    assert same(state(family), state(load(NAME, files)))


def test_the_same_files_are_not_fused_again(load: Load, choose: Any, folder: Path) -> None:
    family, told = load(NAME), []

    def hear(done: int, total: int) -> None:
        told.append((done, total))

    family.set_loras(choose("a"), hear)
    assert told and told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    told.clear()
    family.set_loras(choose("a"), hear)
    assert told == []
    other = lora_file(folder / "a.safetensors", family.pipeline.transformer, 7)  # a newer file
    assert other.is_file()
    family.set_loras(choose("a"), hear)
    assert told


@pytest.fixture
def loaded(load: Load) -> Iterator[Any]:
    yield load(NAME)


@pytest.mark.parametrize("after", [1, 30, 60])
def test_a_job_cancelled_meanwhile_leaves_the_plain_model(
    load: Load, choose: Any, loaded: Any, aside: str, after: int
) -> None:
    plain, count = state(load(NAME)), 0

    def cancelled(_done: int, _total: int) -> None:
        nonlocal count
        count += 1
        if count == after:
            raise Cancelled

    for before in ((), choose("b")):
        loaded.set_loras(before, said)
        count = 0
        with pytest.raises(Cancelled):
            loaded.set_loras(choose("a"), cancelled)
        assert loaded.loras == () and same(state(loaded), plain)
    assert aside


class Stumble(Exception):
    pass


class Stumbling:
    """A function that fails once, when it is called for the `fails_at`th time."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real, self.taken, self.fails_at = real, 0, 0

    def __call__(self, *given: Any) -> Any:
        self.taken += 1
        if self.taken == self.fails_at:
            raise Stumble
        return self._real(*given)


STEPS = {
    "reading the LoRA file": (Fusing, "changed"),
    "looking a weight up": (lora_swap._Weights, "_held"),
    "writing a weight": (lora_swap._Weights, "_write"),
    "converting a weight": (lora_swap._Weights, "_converted"),
}


@pytest.mark.system  # for its eight swaps of two LoRA files
def test_an_error_at_any_step_leaves_the_plain_model(
    load: Load, choose: Any, aside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plain weights and of those in 8 bits, while `b` goes out and while `a` goes in."""
    family = load(NAME, recipe=Recipe("cpu", "bfloat16"))
    for expert in experts(family.pipeline):
        convert_blocks(expert, torch.device("cpu"))
    plain, a, b = state(family), choose("a"), choose("b")
    for step, (kind, name) in STEPS.items():
        real = Stumbling(getattr(kind, name))
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, lambda *given, real=real: real(*given))
            family.set_loras(b, said)
            real.taken = 0
            family.set_loras(a, said)
            calls = real.taken
            family.set_loras(b, said)
            # Early, while `b` goes out, or at the last moment.
            real.taken, real.fails_at = 0, max(1, calls // 3) if aside == "read again" else calls
            with pytest.raises(Stumble):
                family.set_loras(a, said)
        assert family.loras == () and same(state(family), plain), (aside, step)


def test_a_file_with_numbers_that_are_not_finite_leaves_the_plain_model(
    load: Load, choose: Any, loaded: Any, folder: Path
) -> None:
    network = loaded.pipeline.transformer
    lora_file(folder / "nan.safetensors", network, 5)
    given = load_file(folder / "nan.safetensors")
    given["transformer.proj_out.lora_B.weight"][0] = float("nan")
    save_file(given, folder / "nan.safetensors")
    lora_file(folder / "huge.safetensors", network, 5, size=1e38)
    for name, why in (("nan", "numbers that are not finite"), ("huge", "lower their scales")):
        with pytest.raises(LoraRefused, match=why):
            loaded.set_loras(choose("a", Lora(name, 4)), said)
        assert loaded.loras == () and same(state(loaded), state(load(NAME)))


def test_a_model_that_cannot_be_restored_says_so(
    choose: Any, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(toy.build(NAME, tiny_cache / NAME), checkpoint)
    family: Any = load_family(ROWS[NAME], checkpoint, Recipe("cpu", "float32"))
    family.set_loras(choose("a"), said)
    shutil.rmtree(checkpoint / "transformer")  # a volume that was unmounted
    with pytest.raises(KeyError):
        family.set_loras((), said)
    assert family.loras is None


def test_frames_follow_the_weights(load: Load, choose: Any, loaded: Any) -> None:
    picture = FirstPicture(Image.linear_gradient("L").convert("RGB").resize((64, 64)))
    asked = SegmentInput("x", "", (picture,), 64, 64, 5, seed=1)

    def frames(name: str = "") -> Any:
        loaded.set_loras(choose(name) if name else (), said)
        return np.concatenate(list(loaded.render(asked, lambda _: None).frames))

    first, plain, other, again = frames("a"), frames(), frames("b"), frames("a")
    assert np.array_equal(first, again) and not np.array_equal(first, plain)
    assert not np.array_equal(other, plain) and not np.array_equal(other, first)
    fresh = np.concatenate(list(load(NAME).render(asked, lambda _: None).frames))
    assert np.array_equal(plain, fresh)


def test_the_authors_names_of_the_model_that_moves_lips_are_accepted(
    load: Load, tiny_cache: Path, tmp_path: Path
) -> None:
    name = "wan-tiny-s2v"
    family = load(name)
    save_file(
        {
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight": noise(
                2, family.pipeline.transformer.blocks[0].self_attn.q.in_features
            ),
            "diffusion_model.blocks.0.self_attn.q.lora_B.weight": noise(
                family.pipeline.transformer.blocks[0].self_attn.q.out_features, 2
            ),
        },
        tmp_path / "a.safetensors",
    )
    located = Located(ROWS[name], toy.build(name, tiny_cache / name))
    wanted = LoraFolder(Settings(lora_dir=tmp_path)).chosen([Lora("a")], located)
    plain = state(family)
    family.set_loras(wanted, said)
    assert changed(state(family), plain) == 1
    family.set_loras((), said)
    assert same(state(family), plain)


def test_blocks_left_on_the_device_by_a_failed_pass_are_moved_back_first(load: Load) -> None:
    """`put_in` finds them there. On a GPU, changes to them would be lost."""
    family = load(NAME, recipe=Recipe("cpu", "float32", "stream"))
    brought: list[str] = []
    swap = family.swap
    assert isinstance(swap, LoraSwap)
    for block in family.pipeline.transformer.blocks:
        group = block._diffusers_hook.get_hook("group_offloading").group
        original = group.offload_

        def offload(original: Any = original) -> None:
            brought.append("home")
            original()

        group.offload_ = offload
    swap._experts[0].bring_home()
    assert len(brought) == len(family.pipeline.transformer.blocks)
