"""Demo data: something to try every answer of the client API with."""

from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from srm.db.models import Account, AccountProfile, Base, Content, Device, Entitlement, Product, ProductContent

ACCOUNT, DEVICE = "demo-1", "demo-1-tv"
CONTENT_ID, CONTENT_TYPE = "BTV_CH1_V", "LIVE"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
DEVICE_GROUPS = {"tv": "tv", "phone": "mobile", "tablet": "mobile", "laptop": "computer"}
PRODUCTS = {
    "demo-package": [
        ("COD", "100001V3D"),
        ("LIVE", "BTV_CH1_V"),
        ("CU", "BTV_CH1_V"),
        ("NPVR", "BTV_CH1_V"),
    ],
    "demo-start-over": [("TS", "BTV_CH1_V")],
}


def load(db: Connection) -> None:
    """Put the demo data into the database; what is there under the same names is set back to it."""
    with Session(db) as orm:
        for rows in _rows_in_order_of_references():
            for row in rows:
                orm.merge(row)
            orm.flush()


def is_loaded(db: Connection) -> bool:
    """Whether the account of the examples is there."""
    with Session(db) as orm:
        return orm.get(Account, ACCOUNT) is not None


def _rows_in_order_of_references() -> list[list[Base]]:
    accounts = {"demo-1": ("default", True), "demo-2": ("default", False), "demo-3": ("no-keep-alive", True)}
    return [
        [
            AccountProfile(
                profile_id=profile,
                max_sessions=3,
                max_sessions_per_content=None,
                max_ip_addresses=None,
                max_sessions_per_ip=None,
                timeout_seconds=timeout,
                max_session_seconds=None,
                on_limit="deny",
                same_device="count",
                mode="enforce",
            )
            for profile, timeout in {"default": 30, "no-keep-alive": None}.items()
        ],
        [
            Account(account_id=account, profile_id=profile, enabled=enabled, max_sessions=None)
            for account, (profile, enabled) in accounts.items()
        ],
        [
            Device(
                account_id=account,
                device_id=f"{account}-{kind}",
                device_group=group,
                name=f"Demo {kind}",
                enabled=True,
            )
            for account in accounts
            for kind, group in DEVICE_GROUPS.items()
        ],
        [
            Device(
                account_id="demo-1",
                device_id="demo-1-old",
                device_group="tv",
                name="Demo old TV",
                enabled=False,
            )
        ],
        [
            Content(content_id="100001V3D", channel_id=None, title="A film"),
            Content(content_id="BTV_CH1_V", channel_id=None, title="Channel 1"),
            Content(content_id="BTV_CH2_V", channel_id=None, title="Channel 2, entitled to nobody"),
        ],
        [Content(content_id="BTV_CH1_E1", channel_id="BTV_CH1_V", title="A broadcast on channel 1")],
        [Product(product_id=product, name=product) for product in PRODUCTS],
        [
            ProductContent(product_id=product, content_type=content_type, content_id=content_id)
            for product, contents in PRODUCTS.items()
            for content_type, content_id in contents
        ],
        [
            Entitlement(account_id=account, product_id=product, valid_from=LONG_AGO, valid_until=None)
            for account in accounts
            for product in PRODUCTS
        ],
    ]
