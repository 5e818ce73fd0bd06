"""The tiny prompt writer's checkpoint: small, the same every time, whole or not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from builder import tiny_writer
from tests.builder.test_tiny import digest


def test_it_is_small_and_another_process_builds_the_same_bytes(tmp_path: Path) -> None:
    folder = tiny_writer.build(tmp_path / "here")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    script = (
        "import sys; from pathlib import Path; from builder import tiny_writer\n"
        "tiny_writer.build(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "there")]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert digest(folder) == digest(tmp_path / "there")


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tiny_writer.build(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
