"""Names of jobs."""

from __future__ import annotations

import pytest

from tests.storage.stores import (
    ODD_IDS,
)
from wan_engine.storage import job_name


@pytest.mark.parametrize("job", ["f1c3ab-u1", "Job_1", "x" * 64, "12345678-1234-1234-123456789abc"])
def test_a_plain_job_id_is_its_own_name(job: str) -> None:
    assert job_name(job) == job


def test_other_job_ids_get_a_digest() -> None:
    names = [job_name(job) for job in ODD_IDS]
    assert len(set(names)) == len(ODD_IDS)
    assert all(0 < len(name) <= 64 for name in names)
