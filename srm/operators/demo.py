"""Demo data: an account for each story of the documents.

All ids of accounts, devices, profiles and products begin with `demo-`, so that no row of an operator is touched.
Contents have the ids of the examples in the published API.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, select, tuple_
from sqlalchemy.orm import Session

from srm.db.models import (
    Account,
    AccountProfile,
    Base,
    Content,
    ContentGroup,
    Device,
    Entitlement,
    Product,
    ProductContent,
    ProfileContentGroup,
    ProfileDeviceGroup,
    sessions,
)
from srm.errors import CommandError
from srm.operators import change_log
from srm.playback.ending import end_sessions

ACCOUNT, DEVICE = "demo-1", "demo-1-tv"
CONTENT_ID, CONTENT_TYPE = "BTV_CH1_V", "LIVE"
"""Account, device and content of the line that `srm serve` prints."""

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
TIMEOUT_SECONDS = 3600
"""Long enough to read on between the setup and the keep-alive of a document."""


class DemoAccount(NamedTuple):
    """Profile and state of a demo account."""

    profile_id: str
    enabled: bool = True


ACCOUNTS = {
    "demo-1": DemoAccount("demo-replace"),
    "demo-2": DemoAccount("demo-standard", enabled=False),
    "demo-3": DemoAccount("demo-no-keep-alive"),
    "demo-care": DemoAccount("demo-standard"),
    "demo-family": DemoAccount("demo-standard"),
    "demo-full": DemoAccount("demo-standard"),
    "demo-retry": DemoAccount("demo-standard"),
}
DEVICE_GROUPS = {"tv": "tv", "phone": "mobile", "tablet": "mobile", "laptop": "computer"}
DISABLED_DEVICE = ("demo-1", "demo-1-old")
PRODUCTS = {
    "demo-package": [
        ("COD", "100001V3D"),
        ("LIVE", "BTV_CH1_V"),
        ("CU", "BTV_CH1_V"),
        ("NPVR", "BTV_CH1_V"),
    ],
    "demo-start-over": [("TS", "BTV_CH1_V")],
}


def load(db: Connection, by: str, accounts: Collection[str] = tuple(ACCOUNTS)) -> None:
    """Write the demo data, with these demo accounts. Rows that exist already get the demo values again.

    A session of an account or device that the demo data disables ends. `by`: the operator whom the change log names.
    """
    _lock(db, accounts)
    with Session(db) as orm:
        for rows in _rows(accounts):
            for row in rows:
                orm.merge(row)
            orm.flush()
    disabled = [account for account in accounts if not ACCOUNTS[account].enabled]
    ended = end_sessions(db, "account_disabled", sessions.account_id.in_(disabled))
    of_device = tuple_(sessions.account_id, sessions.device_id) == DISABLED_DEVICE
    ended += end_sessions(db, "device_disabled", of_device & sessions.account_id.in_(accounts))
    change_log.record_ended(db, by, ended)


def is_loaded(db: Connection) -> bool:
    """True when every demo account is there. An older release had fewer."""
    found = db.scalars(select(Account.account_id).where(Account.account_id.in_(ACCOUNTS)))
    return len(found.all()) == len(ACCOUNTS)


def reset(db: Connection, by: str, accounts: Collection[str] = ()) -> int:
    """End the sessions of these demo accounts and set the demo data back; return how many sessions were active.

    `accounts`: empty = all demo accounts. `by`: the operator whom the change log names. Ended sessions, denials and
    changes stay on record. Rows that are not demo data stay too. Raises CommandError when the demo data was never
    loaded.
    """
    accounts = accounts or tuple(ACCOUNTS)
    if db.scalar(select(Product.product_id).where(Product.product_id.in_(PRODUCTS)).limit(1)) is None:
        raise CommandError("the demo data is not loaded here; load it with: srm demo load")
    _lock(db, accounts)
    ended = end_sessions(db, "operator", sessions.account_id.in_(accounts))
    count = change_log.record_ended(db, by, ended)
    for model, extra in _extra(accounts):
        db.execute(delete(model).where(extra))
    load(db, by, accounts)
    return count


def _lock(db: Connection, accounts: Collection[str]) -> None:
    """Keep other loads away, and setups of these accounts, until the end of the transaction."""
    db.execute(select(func.pg_advisory_xact_lock(func.hashtext("srm demo"))))
    in_order = select(Account.account_id).where(Account.account_id.in_(accounts)).order_by(Account.account_id)
    db.execute(in_order.with_for_update(key_share=True))


def _extra(accounts: Collection[str]) -> list[tuple[type[Base], ColumnElement[bool]]]:
    """Return conditions on the rows that somebody has added to the demo accounts, profiles, products and contents."""
    devices = tuple_(Device.account_id, Device.device_id)
    contents = [(product, *content) for product, contents in PRODUCTS.items() for content in contents]
    of_product = tuple_(ProductContent.product_id, ProductContent.content_type, ProductContent.content_id)
    profiles = [profile.profile_id for profile in _profiles()]
    return [
        (Device, Device.account_id.in_(accounts) & devices.not_in(_device_keys(accounts))),
        (Entitlement, Entitlement.account_id.in_(accounts) & Entitlement.product_id.not_in(PRODUCTS)),
        (ProductContent, ProductContent.product_id.in_(PRODUCTS) & of_product.not_in(contents)),
        (ProfileDeviceGroup, ProfileDeviceGroup.profile_id.in_(profiles)),
        (ProfileContentGroup, ProfileContentGroup.profile_id.in_(profiles)),
        (ContentGroup, ContentGroup.content_id.in_([content.content_id for content in _contents()])),
    ]


def _profiles() -> list[AccountProfile]:
    return [
        _profile("demo-standard"),
        _profile("demo-replace", max_sessions=len(DEVICE_GROUPS), same_device="replace"),
        _profile("demo-no-keep-alive", timeout_seconds=None, same_device="replace"),
    ]


def _profile(
    profile_id: str, max_sessions: int = 3, timeout_seconds: int | None = TIMEOUT_SECONDS, same_device: str = "count"
) -> AccountProfile:
    return AccountProfile(
        profile_id=profile_id,
        max_sessions=max_sessions,
        max_sessions_per_content=None,
        max_ip_addresses=None,
        max_sessions_per_ip=None,
        timeout_seconds=timeout_seconds,
        max_session_seconds=None,
        on_limit="deny",
        same_device=same_device,
        mode="enforce",
    )


def _device_keys(accounts: Collection[str]) -> list[tuple[str, str]]:
    keys = [(account, f"{account}-{kind}") for account in accounts for kind in DEVICE_GROUPS]
    return [*keys, DISABLED_DEVICE]


def _rows(accounts: Collection[str]) -> list[Sequence[Base]]:
    """Return all rows of the demo data, each behind the rows that it refers to."""
    return [_profiles(), *_rows_of_accounts(accounts), *_catalogue(), _entitlements(accounts)]


def _rows_of_accounts(accounts: Collection[str]) -> list[Sequence[Base]]:
    """Return the accounts and then their devices."""
    rows: list[Base] = []
    for account in accounts:
        profile_id, enabled = ACCOUNTS[account]
        rows.append(Account(account_id=account, profile_id=profile_id, enabled=enabled, max_sessions=None))
    devices: list[Base] = [
        Device(account_id=account, device_id=f"{account}-{kind}", device_group=group, name=f"Demo {kind}", enabled=True)
        for account in accounts
        for kind, group in DEVICE_GROUPS.items()
    ]
    account, device = DISABLED_DEVICE
    if account in accounts:
        devices.append(
            Device(account_id=account, device_id=device, device_group="tv", name="Demo old TV", enabled=False)
        )
    return [rows, devices]


def _contents() -> list[Content]:
    """Return the contents, each behind its channel."""
    return [
        Content(content_id="100001V3D", channel_id=None, title="A film"),
        Content(content_id="BTV_CH1_V", channel_id=None, title="Channel 1"),
        Content(content_id="BTV_CH2_V", channel_id=None, title="Channel 2, entitled to nobody"),
        Content(content_id="BTV_CH1_E1", channel_id="BTV_CH1_V", title="A broadcast on channel 1"),
    ]


def _catalogue() -> list[Sequence[Base]]:
    """Return contents, products, and the contents of the products, in the order of their references."""
    *channels, broadcast = _contents()
    return [
        channels,
        [broadcast],
        [Product(product_id=product, name=product) for product in PRODUCTS],
        [
            ProductContent(product_id=product, content_type=content_type, content_id=content_id)
            for product, contents in PRODUCTS.items()
            for content_type, content_id in contents
        ],
    ]


def _entitlements(accounts: Collection[str]) -> list[Entitlement]:
    return [
        Entitlement(account_id=account, product_id=product, valid_from=LONG_AGO, valid_until=None)
        for account in accounts
        for product in PRODUCTS
    ]
