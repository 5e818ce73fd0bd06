"""Adds the task of a job's request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    task = sa.Column("task", sa.String(32), nullable=False, server_default="image-to-video")
    op.add_column("jobs", task)


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("task")
