"""Adds the long texts of requests, each stored once: their names, their places in requests, and
their bytes if the database stores them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("requests", sa.Column("parts", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "contents",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    request = sa.ForeignKey("requests.job_id", ondelete="CASCADE")
    op.create_table(
        "request_parts",
        sa.Column("job_id", sa.String(64), request, primary_key=True),
        sa.Column("place", sa.String(512), primary_key=True),
        sa.Column("hash", sa.String(64), sa.ForeignKey("contents.hash"), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
    )
    op.create_index("parts_by_hash", "request_parts", ["hash"])
    op.create_index("parts_by_owner", "request_parts", ["owner", "hash"])
    op.create_table(
        "content_pieces",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for table in ("content_pieces", "request_parts", "contents"):
        op.drop_table(table)
    with op.batch_alter_table("requests") as requests:
        requests.drop_column("parts")
