"""Files and folders that somebody named, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_engine import paths


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/runpod-volume/models", True),
        ("/runpod-volume", True),
        ("/runpod-volume/local/models", False),
        ("/runpod-volumes/models", False),
        ("/srv/with space/models", True),
        ("/home/models", False),
    ],
)
def test_a_network_volume_is_told_from_a_disk(
    folder: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "overlay / overlay rw 0 0\n"
        "proc /proc proc rw 0 0\n"
        "mfs#10.0.0.1:9421 /runpod-volume fuse.mfs rw,nosuid 0 0\n"
        "/dev/nvme0n1 /runpod-volume/local ext4 rw 0 0\n"
        "host:/share /srv/with\\040space nfs4 rw 0 0\n"
    )
    monkeypatch.setattr(paths, "_MOUNTS", mounts)
    assert paths.over_a_network(Path(folder)) is expected


def test_where_there_is_no_proc_every_folder_is_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_MOUNTS", tmp_path / "absent")
    assert paths.over_a_network(tmp_path) is False
