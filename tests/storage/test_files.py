"""Whole-or-nothing files on file systems that lack what disks have."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wan_engine.storage.files import whole_file


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_is_written_where_there_is_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: _refuse(number))
    with whole_file(tmp_path / "a") as file:
        file.write(b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_disk_that_fails_at_fsync_is_not_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: _refuse(errno.EIO))
    with pytest.raises(OSError, match="error"), whole_file(tmp_path / "a") as file:
        file.write(b"x")
    assert list(tmp_path.iterdir()) == []


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))
