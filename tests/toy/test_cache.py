"""The folder of the tiny checkpoints."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from wan_engine.toy import cache


def test_a_shared_folder_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"wan_engine-{os.getuid()}"
    assert cache.own_folder() == own and own.stat().st_mode & 0o777 == 0o700
    assert cache.own_folder() == own
    own.chmod(0o777)
    other = cache.own_folder()
    assert other != own and other.stat().st_mode & 0o777 == 0o700
    own.rmdir()
    own.symlink_to(tmp_path)
    assert cache.own_folder() not in (own, tmp_path)
