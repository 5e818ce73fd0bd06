"""Measures the seconds that the safety checker adds to a clip: for the prompt, the image and 5, 10,
15 frames.

The classifiers have the full-size architectures of the defaults (Qwen3 0.6B, ViT-B/16 at 224 px)
with random weights, which are valid for time and nothing else. The prompt goes through
`Safety.check_prompt`, and frames of 1280x720 through `Safety.watch`, as in a job. Random weights
are unsure about every prompt, so the categories are always computed; a clearly safe prompt does not
need them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # if this file runs as a script

from wan_engine import toy
from wan_engine.control import Control
from wan_engine.errors import ContentPolicy
from wan_engine.runtime.logs import quiet_libraries
from wan_engine.safety import Safety, open_safety
from wan_engine.settings import Settings

_TOKENS = 480
"""Tokens after the part of the template that is computed once: 1500 English characters and the end
of the template of Qwen3Guard-Gen, together 1930 characters, at four per token. This is an estimate,
because its tokenizer is not here, and that of `tiny-prompt-guard` has one token per letter."""
_FPS = 16


def prepare(folder: Path, *, small: bool) -> Settings:
    """Write both classifiers to `folder`. `small` is for a test of this script."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, ViTConfig, ViTForImageClassification

    torch.manual_seed(7)
    guard = toy.build("tiny-prompt-guard", folder / "guard")
    image = toy.build("tiny-image-classifier", folder / "image")
    if small:
        return _settings(guard, image)
    # config.json of Qwen/Qwen3-0.6B, the base of Qwen3Guard-Gen-0.6B
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(guard)
    # the defaults are ViT-B/16 at 224 px
    ViTForImageClassification(ViTConfig(id2label={0: "normal", 1: "nsfw"})).save_pretrained(image)
    path = image / "preprocessor_config.json"
    made = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**made, "size": {"height": 224, "width": 224}}), "utf-8")
    return _settings(guard, image)


def _settings(guard: Path, image: Path) -> Settings:
    return Settings(
        safety="required",
        safety_prompt_model=str(guard),
        safety_image_model=str(image),
        safety_image_labels={"nsfw": 1.0},  # random weights never reach it, so all passes are timed
    )


def clip(seconds: int) -> Generator[np.ndarray, None, None]:
    frames = np.random.default_rng(7).integers(0, 255, (4, 720, 1280, 3), np.uint8)
    yield frames[:1]
    for _ in range(1, seconds * _FPS, 4):
        yield frames


def measure(settings: Settings, device: str, repeats: int) -> dict[str, Any]:
    """Wall and CPU seconds of each check, medians of `repeats` runs after one for warm-up.

    CPU seconds are the sum over all threads, and hardly depend on other work of the machine.
    """
    safety = open_safety(settings, required=True, device=device)
    wall, cpu = _timed(safety.load)
    seconds, cpu_seconds = {"load": wall}, {"load": cpu}
    guard = safety._guard
    assert guard is not None
    prompt = "y" * (_TOKENS - len(guard._after) - 2)
    picture = Image.fromarray(next(clip(1))[0])
    cases: dict[str, Callable[[], object]] = {
        "prompt": lambda: _prompt(safety, prompt),
        "image": lambda: safety.check_image(picture, Control()),
        **{
            f"{count}_frames": lambda count=count: _watch(safety, count)  # type: ignore[misc]
            for count in (5, 10, 15)
        },
    }
    for name, case in cases.items():
        case()
        times = [_timed(case) for _ in range(repeats)]
        seconds[name] = round(statistics.median(wall for wall, _ in times), 3)
        cpu_seconds[name] = round(statistics.median(cpu for _, cpu in times), 3)
    tokens = len(guard.tokens(prompt)) + len(guard._after)
    counted = {"device": device, "prompt_tokens": tokens}
    return {**counted, "seconds": seconds, "cpu_seconds": cpu_seconds}


def _prompt(safety: Safety, text: str) -> None:
    try:
        safety.check_prompt(text, Control())
    except ContentPolicy:
        return  # random weights take the longer way, with categories


def _watch(safety: Safety, seconds: int) -> None:
    for _ in safety.watch(clip(seconds), _FPS, Control()):
        pass


def _timed(case: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    case()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(arguments: list[str] | None = None) -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/safety.py --threads 1 --repeats 3",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="runs of each check, whose median is printed; default 3",
    )
    parser.add_argument("--small", action="store_true", help="tiny classifiers, to test the script")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    quiet_libraries(bars=False)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        settings = prepare(Path(folder), small=given.small)
        results = [measure(settings, device, given.repeats) for device in devices]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"threads": given.threads, "python": platform.python_version(), **versions}
    print(json.dumps({**machine, "results": results}))


if __name__ == "__main__":
    main()
