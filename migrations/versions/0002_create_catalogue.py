"""Create catalogue.

Contents, products and entitlements. An account may watch the contents of the products that it is entitled to now.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "contents",
        sa.Column("content_id", sa.Text(), nullable=False, comment="CMS origin key"),
        sa.Column(
            "channel_id",
            sa.Text(),
            nullable=True,
            comment="For a broadcast event: the channel that it was on; else null",
        ),
        sa.Column("title", sa.Text(), nullable=True, comment="For people; SRM does not use it"),
        sa.CheckConstraint("char_length(content_id) BETWEEN 1 AND 255", name=op.f("contents_content_id_check")),
        sa.ForeignKeyConstraint(["channel_id"], ["srm.contents.content_id"], name=op.f("contents_channel_id_fkey")),
        sa.PrimaryKeyConstraint("content_id", name=op.f("contents_pkey")),
        schema="srm",
        comment="CMS origin keys: VOD assets, channels and broadcast events",
    )
    op.create_index(op.f("contents_channel_id_idx"), "contents", ["channel_id"], unique=False, schema="srm")
    op.create_table(
        "products",
        sa.Column("product_id", sa.Text(), nullable=False, comment="Id of the product"),
        sa.Column("name", sa.Text(), nullable=False, comment="For people; SRM does not use it"),
        sa.CheckConstraint("char_length(product_id) BETWEEN 1 AND 255", name=op.f("products_product_id_check")),
        sa.PrimaryKeyConstraint("product_id", name=op.f("products_pkey")),
        schema="srm",
        comment="What can be sold: a package, a rental, a capability such as start-over",
    )
    op.create_table(
        "product_contents",
        sa.Column("product_id", sa.Text(), nullable=False, comment="The product"),
        sa.Column(
            "content_type",
            sa.Text(),
            nullable=False,
            comment="COD = VOD asset, CU = catch-up, TS = timeshift or start-over, NPVR = network recording, LIVE = live channel",
        ),
        sa.Column(
            "content_id",
            sa.Text(),
            nullable=False,
            comment="The content; a channel covers its events under CU and NPVR",
        ),
        sa.CheckConstraint(
            "content_type IN ('COD', 'CU', 'TS', 'NPVR', 'LIVE')",
            name=op.f("product_contents_content_type_check"),
        ),
        sa.ForeignKeyConstraint(
            ["content_id"], ["srm.contents.content_id"], name=op.f("product_contents_content_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["product_id"],
            ["srm.products.product_id"],
            name=op.f("product_contents_product_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("product_id", "content_type", "content_id", name=op.f("product_contents_pkey")),
        schema="srm",
        comment="What a product lets watch, and in which way",
    )
    op.create_index(
        op.f("product_contents_content_id_idx"),
        "product_contents",
        ["content_id"],
        unique=False,
        schema="srm",
    )
    op.create_table(
        "entitlements",
        sa.Column("account_id", sa.Text(), nullable=False, comment="The account"),
        sa.Column("product_id", sa.Text(), nullable=False, comment="The product"),
        sa.Column(
            "valid_from",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="First instant at which it holds",
        ),
        sa.Column(
            "valid_until",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="First instant at which it does not hold any more; null = no end",
        ),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["srm.accounts.account_id"],
            name=op.f("entitlements_account_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["product_id"], ["srm.products.product_id"], name=op.f("entitlements_product_id_fkey")),
        sa.PrimaryKeyConstraint("account_id", "product_id", name=op.f("entitlements_pkey")),
        schema="srm",
        comment="Products that accounts hold",
    )
    op.create_index(op.f("entitlements_product_id_idx"), "entitlements", ["product_id"], unique=False, schema="srm")


def downgrade() -> None:
    op.drop_table("entitlements", schema="srm")
    op.drop_table("product_contents", schema="srm")
    op.drop_table("products", schema="srm")
    op.drop_table("contents", schema="srm")
