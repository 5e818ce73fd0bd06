"""The run of a quarter of an hour, with tiny networks on a CPU. No test checks times."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_quarter
from benchmarks.gpu_quarter import Plan, Step, rows_of

BUSY = 3600.0  # seconds: long enough for any busy machine


def run(out: Path, *steps: Step, seconds: float = BUSY) -> list[dict[str, Any]]:
    gpu_quarter.run(out, "tiny", seconds, steps, {})
    return rows_of(out)


@pytest.mark.system  # it starts torch three times
def test_each_figure_is_stored_at_once_and_not_measured_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.jsonl"
    errors = Step("errors", "errors", limit=BUSY)
    encode = Step("encode", "encode", ("bfloat16",), limit=BUSY)
    first = run(out, errors)
    assert [row["case"] for row in first][-1] == "end" and len(first) == 7
    assert {row["step"] for row in first} == {"errors"}
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == first
    with out.open("a") as file:
        file.write('{"step": "encode", "part": "enc')  # like a run that was interrupted
        file.write("\n")
    both = run(out, errors, encode)
    assert both[: len(first)] == first
    assert {row["step"] for row in both[len(first) :]} == {"encode"}
    table = out.with_suffix(".md").read_text("utf-8")
    assert "| errors | Gaussian |" in table and "| encode | bfloat16 |" in table
    assert "| end |" not in table


def test_a_failed_part_is_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    late = Step("ceilings", "ceilings", limit=0.01)
    [ended] = run(out, late)
    assert ended["case"] == "end" and ended["exit"] != 0
    rows = run(out, Step("ceilings", "ceilings", limit=BUSY))
    assert rows[-1]["exit"] == 0 and len(rows) > 3


def test_a_step_with_too_little_time_is_left_out_and_reported(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    [row] = run(out, Step("start", "start", least=120), seconds=60)
    assert row["case"] == "left out" and row["left_s"] <= 60


def test_steps_are_ordered_by_their_value_and_fit() -> None:
    steps = Plan().steps
    assert [step.name for step in steps][:3] == ["checks", "job", "block"]
    assert len({step.name for step in steps}) == len(steps)
    assert all(step.part in gpu_quarter.gpu.PARTS and step.least < step.limit for step in steps)


def test_every_case_of_a_step_is_one_of_its_part() -> None:
    for step in Plan().steps:
        if step.cases:
            none_chosen = gpu_quarter.gpu._measured(step.part, "tiny", ("none",))
            assert set(step.cases) <= {case["case"] for case in none_chosen}, step.name


def test_packed_packages_are_in_the_lock() -> None:
    assert set(gpu_quarter.PACKAGES) <= gpu_quarter._locked().keys()


def test_packed_packages_must_fit_beside_the_repository() -> None:
    here = gpu_quarter.repository_bytes()
    assert here > (gpu_quarter.ROOT / "wan_engine" / "toy" / "wan-tiny.safetensors").stat().st_size
    gpu_quarter.refuse_if_too_large(gpu_quarter.MOST_BYTES - here, here)
    with pytest.raises(
        ValueError, match=r"^The pack has .* MiB and the repository .*: together 64"
    ):
        gpu_quarter.refuse_if_too_large(gpu_quarter.MOST_BYTES - here + 1, here)


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def test_packed_packages_can_be_imported_and_their_program_runs(tmp_path: Path) -> None:
    pack, site = tmp_path / "pack", tmp_path / "site"
    pack.mkdir()
    program = Path("/bin/true").read_bytes()
    given = wheel(
        tmp_path / "no_such_ffmpeg-1.0-py3-none-any.whl",
        {
            "no_such_ffmpeg/__init__.py": b"",
            "no_such_ffmpeg/binaries/ffmpeg-linux-x86_64-v9": program,
            "no_such_ffmpeg-1.0.dist-info/RECORD": b"",
        },
    )
    gpu_quarter._take_apart(given, pack)
    assert sorted(path.name for path in pack.iterdir()) == ["ffmpeg.xz", given.name]
    environment = gpu_quarter.unpack(pack, site)
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(site)
    assert (site / "no_such_ffmpeg" / "__init__.py").is_file()
    assert not (site / "no_such_ffmpeg" / "binaries").exists()
    subprocess.run([environment["IMAGEIO_FFMPEG_EXE"]], check=True)
    assert gpu_quarter.unpack(tmp_path / "absent", site) == {}


def test_an_installed_package_is_not_replaced_by_a_packed_copy_of_itself(tmp_path: Path) -> None:
    here = gpu_quarter.version("numpy")
    wheel(tmp_path / f"numpy-{here}-py3-none-any.whl", {"numpy/__init__.py": b""})
    (tmp_path / "ffmpeg.xz").write_bytes(gpu_quarter.lzma.compress(b"a program"))
    gpu_quarter.unpack(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site" / "numpy").exists()
