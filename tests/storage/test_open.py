"""The store that the settings select."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.storage.stores import (
    settings,
)
from wan_engine.errors import ConfigurationError
from wan_engine.settings import Settings
from wan_engine.storage import LocalStorage, S3Storage, open_storage


def test_the_settings_select_the_store(
    bucket_settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complete = settings(**bucket_settings)
    assert isinstance(open_storage(complete), S3Storage)
    assert isinstance(open_storage(complete.model_copy(update={"storage": "s3"})), S3Storage)
    assert isinstance(open_storage(complete.model_copy(update={"storage": "local"})), LocalStorage)
    assert isinstance(open_storage(Settings(output_dir=tmp_path / "out")), LocalStorage)
    assert caplog.text == ""
    assert isinstance(open_storage(settings()), LocalStorage)
    assert "only BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY" in caplog.text
    assert not (tmp_path / "out").exists()


def test_importing_is_cheap() -> None:
    code = "import sys, wan_engine.storage; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_s3_without_its_variables_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_storage(Settings(storage="s3", bucket_access_key_id="k"))
    assert "needs BUCKET_ENDPOINT_URL and BUCKET_SECRET_ACCESS_KEY:" in str(caught.value)


def test_settings_that_boto_refuses_are_a_sentence() -> None:
    wrong = settings().model_copy(update={"bucket_endpoint_url": "https://a b/bkt"})
    with pytest.raises(ConfigurationError, match="The bucket's settings are wrong"):
        S3Storage(wrong)
