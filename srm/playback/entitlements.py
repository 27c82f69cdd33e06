"""Content access: may an account watch a content? From the local tables, or as an entitlement service has answered."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, func, or_, select

from srm.db.models import Content, Entitlement, ProductContent
from srm.db.sql import constant
from srm.errors import SrmError

EVENT_TYPES = (constant("CU"), constant("NPVR"))
"""Content types of broadcast events. Holding the event's channel is enough: packages are sold by channel."""


@dataclass(frozen=True, slots=True)
class Access:
    """Content access as far as it is known before the account is locked.

    `ask_tables`: nothing is known; the tables decide. `denial`: error for a setup that passes the checks of account and
    device. `spent_seconds`: time that the request has spent waiting for the entitlement service.
    """

    ask_tables: bool = False
    denial: SrmError | None = None
    spent_seconds: float = 0


LOCAL = Access(ask_tables=True)
ALLOWED = Access()


def is_granted(
    account_id: ColumnElement[str], content_type: ColumnElement[str], content_id: ColumnElement[str]
) -> ColumnElement[bool]:
    """Condition that the account now holds an entitlement to a product with the content.

    A content that the catalogue does not know is in no product, so nobody is granted it.
    """
    now = func.statement_timestamp()
    return exists().where(
        Entitlement.account_id == account_id,
        Entitlement.valid_from <= now,
        or_(Entitlement.valid_until.is_(None), Entitlement.valid_until > now),
        ProductContent.product_id == Entitlement.product_id,
        _gives_access(content_type, content_id),
    )


def is_in_product(
    product_id: ColumnElement[str], content_type: ColumnElement[str], content_id: ColumnElement[str]
) -> ColumnElement[bool]:
    """Condition that the product gives access to the content."""
    return exists().where(ProductContent.product_id == product_id, _gives_access(content_type, content_id))


def _gives_access(content_type: ColumnElement[str], content_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Condition that a row of `product_contents` names the content or, for an event, its channel."""
    of_event = select(Content.channel_id).where(Content.content_id == content_id)
    channel_id = of_event.correlate_except(Content).scalar_subquery()
    return and_(
        ProductContent.content_type == content_type,
        or_(
            ProductContent.content_id == content_id,
            and_(content_type.in_(EVENT_TYPES), ProductContent.content_id == channel_id),
        ),
    )
