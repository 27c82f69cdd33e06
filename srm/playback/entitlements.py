"""Content access: whether an account may watch a content, from the local tables or as somebody else has said."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, or_, select

from srm.db.models import Content, Entitlement, ProductContent
from srm.db.sql import constant
from srm.errors import SrmError

TYPES_OF_EVENTS = (constant("CU"), constant("NPVR"))
"""For these contentID is a broadcast event, and having its channel is enough: packages are sold by channel."""


@dataclass(frozen=True, slots=True)
class Access:
    """What is known of the content access of a setup before the account is locked.

    `ask_tables`: nothing; the tables decide. `refusal`: what the setup is answered if it gets as far as content access.
    `asked_for_seconds`: how long the request has waited for somebody else to say so.
    """

    ask_tables: bool = False
    refusal: SrmError | None = None
    asked_for_seconds: float = 0


LOCAL = Access(ask_tables=True)
ALLOWED = Access()


def is_granted(
    account_id: ColumnElement[str], content_type: ColumnElement[str], content_id: ColumnElement[str]
) -> ColumnElement[bool]:
    """Condition that the account holds, now, an entitlement to a product that has the content.

    A content that the catalogue does not know is in no product, so it is not granted.
    """
    now = func.statement_timestamp()
    return exists().where(
        Entitlement.account_id == account_id,
        Entitlement.valid_from <= now,
        or_(Entitlement.valid_until.is_(None), Entitlement.valid_until > now),
        ProductContent.product_id == Entitlement.product_id,
        _lets_watch(content_type, content_id),
    )


def is_in_product(
    product_id: ColumnElement[str], content_type: ColumnElement[str], content_id: ColumnElement[str]
) -> ColumnElement[bool]:
    """Condition that the product has the content."""
    return exists().where(ProductContent.product_id == product_id, _lets_watch(content_type, content_id))


def _lets_watch(content_type: ColumnElement[str], content_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Condition that a row of `product_contents` is for the content, or for the channel of the event."""
    of_event = select(Content.channel_id).where(Content.content_id == content_id)
    channel_id = of_event.correlate_except(Content).scalar_subquery()
    return and_(
        ProductContent.content_type == content_type,
        or_(
            ProductContent.content_id == content_id,
            and_(content_type.in_(TYPES_OF_EVENTS), ProductContent.content_id == channel_id),
        ),
    )
