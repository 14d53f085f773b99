"""How often a destination answered that it failed on a document."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "deliveries", sa.Column("errors", sa.Integer(), nullable=False, server_default="0")
    )
    with op.batch_alter_table("deliveries") as table:
        table.alter_column("errors", existing_type=sa.Integer(), server_default=None)
