"""Files and folders from settings and callers, and the error for each that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from wan_engine.runtime import paths
from wan_engine.runtime.paths import PathRefused


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
def test_a_network_volume_is_distinguished_from_a_disk(
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


def test_without_proc_every_folder_is_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_MOUNTS", tmp_path / "absent")
    assert paths.over_a_network(tmp_path) is False


LONG = "a" * 300


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent", "there is no file absent"),
        ("file/inside", "there is no file file/inside"),
        ("folder", "is a folder, not a file"),
        ("dangling", "there is no file dangling"),
        ("circle", "Too many levels of symbolic links"),
        ("/dev/zero", "is a device or pipe"),
        (LONG, "File name too long"),
        ("nul\0", "embedded null byte"),
        ("half\ud800", "surrogates not allowed"),
        ("~nobody-of-that-name/a", "home directory"),
        ("/proc/self/mem/x", "there is no file"),
    ],
)
def test_an_unreadable_file_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    with pytest.raises(PathRefused, match=why) as caught:
        paths.to_read(name)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent/a", "the folder .*absent does not exist"),
        ("file/a", "the folder .*file does not exist"),
        ("folder", "is a folder, not a file"),
        ("circle", "loop|Too many levels"),
        ("/proc/a", "the folder /proc cannot be written to"),
        ("/dev/full", "is a device or pipe"),
        (LONG, "File name too long"),
        ("nul\0", "embedded null byte"),
        ("~nobody-of-that-name/a", "home directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    with pytest.raises(PathRefused, match=why) as caught:
        paths.to_write(name)
    assert str(caught.value).isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == LAID_OUT


LAID_OUT = ["circle", "dangling", "file", "folder"]


def lay_out(folder: Path) -> None:
    (folder / "file").touch()
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder / "circle")


def test_checking_that_a_file_can_be_written_does_not_change_it(tmp_path: Path) -> None:
    lay_out(tmp_path)
    assert paths.to_write(str(tmp_path / "new")) == tmp_path / "new"
    assert paths.to_write(str(tmp_path / "file")) == tmp_path / "file"
    assert paths.to_write(str(tmp_path / "dangling")) == tmp_path / "nowhere"
    assert sorted(path.name for path in tmp_path.iterdir()) == LAID_OUT


def test_a_disk_that_fills_up_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")

    def fill(path: Path) -> None:
        path.write_bytes(b"half")
        Path("/dev/full").write_bytes(b"x")

    with (
        pytest.raises(PathRefused, match=r"a cannot be written \(No space left on device\)"),
        paths.written(tmp_path / "a") as half,
    ):
        fill(half)
    assert (tmp_path / "a").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
