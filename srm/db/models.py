"""Tables of the schema `srm`. Every change here needs a migration; `alembic check` compares the two.

Every table that grows with the number of accounts has `account_id` first in its keys, so that Citus can distribute it
by account. Migrations create the views, and the reaper creates the monthly partitions; neither has a model here.

The comments of tables and columns are part of the released schema. A new wording needs a migration too.
"""

from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, attribute_keyed_dict, mapped_column, relationship

SCHEMA = "srm"
ContentType = Literal["COD", "CU", "TS", "NPVR", "LIVE"]
CONTENT_TYPES = get_args(ContentType)
EndReason = Literal["teardown", "expired", "operator", "evicted", "replaced", "account_disabled", "device_disabled"]
END_REASONS = get_args(EndReason)
OnLimit = Literal["deny", "evict_oldest", "evict_newest"]
SameDevice = Literal["count", "replace"]
Mode = Literal["enforce", "observe"]
Role = Literal["viewer", "care", "admin"]


class Base(DeclarativeBase):
    """Names of constraints, and the column types that annotations stand for."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        },
    )
    type_annotation_map = {  # noqa: RUF012
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        list[str]: ARRAY(Text),
        list[int | None]: ARRAY(Integer),
        list[UUID]: ARRAY(Uuid),
        dict[str, Any]: JSONB(none_as_null=True),
    }


def one_of(column: str, words: tuple[str, ...]) -> CheckConstraint:
    """Constraint: the column has one of these words."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(word) for word in words)})", name=column)


def at_least(column: str, least: int) -> CheckConstraint:
    """Constraint: the column is NULL or at least `least`."""
    return CheckConstraint(f"{column} >= {least}", name=column)


def identifier(column: str) -> CheckConstraint:
    """Constraint: the column has 1 to 255 characters, like every id in the API."""
    return CheckConstraint(f"char_length({column}) BETWEEN 1 AND 255", name=column)


class AccountProfile(Base):
    """Limits and timeout that accounts share."""

    __tablename__ = "account_profiles"
    __table_args__ = (
        identifier("profile_id"),
        at_least("max_sessions", 0),
        CheckConstraint("timeout_seconds > 0", name="timeout_seconds"),
        one_of("on_limit", get_args(OnLimit)),
        one_of("same_device", get_args(SameDevice)),
        at_least("max_sessions_per_content", 0),
        at_least("max_ip_addresses", 0),
        at_least("max_sessions_per_ip", 0),
        at_least("max_session_seconds", 1),
        one_of("mode", get_args(Mode)),
        {"comment": "Limits and timeout that accounts share"},
    )

    profile_id: Mapped[str] = mapped_column(primary_key=True, comment="Name of the profile")
    max_sessions: Mapped[int | None] = mapped_column(
        comment="Most playback sessions that an account may have at once; null = no limit"
    )
    timeout_seconds: Mapped[int | None] = mapped_column(
        comment="Seconds in which a keep-alive is expected; null = keep-alive disabled"
    )
    on_limit: Mapped[str] = mapped_column(
        server_default=text("'deny'"),
        comment="At the limit: deny = refuse the setup; evict_oldest, evict_newest = end as few sessions as make room",
    )
    same_device: Mapped[str] = mapped_column(
        server_default=text("'count'"),
        comment="The sessions that the device of a setup already has: count = they count; replace = they are ended",
    )
    max_sessions_per_content: Mapped[int | None] = mapped_column(
        comment="Most sessions on the same contentID; null = no limit"
    )
    max_ip_addresses: Mapped[int | None] = mapped_column(
        comment="Most client addresses with a session, an IPv6 /64 being one; null = no limit"
    )
    max_sessions_per_ip: Mapped[int | None] = mapped_column(
        comment="Most sessions from one client address; null = no limit"
    )
    max_session_seconds: Mapped[int | None] = mapped_column(
        comment="Longest that a session may live, keep-alives or not; null = no limit"
    )
    mode: Mapped[str] = mapped_column(
        server_default=text("'enforce'"),
        comment="enforce = the limits hold; observe = a setup beyond them is admitted, and recorded in denials",
    )

    device_groups: Mapped[dict[str, "ProfileDeviceGroup"]] = relationship(
        collection_class=attribute_keyed_dict("device_group"), cascade="all, delete-orphan", lazy="selectin"
    )
    content_groups: Mapped[dict[str, "ProfileContentGroup"]] = relationship(
        collection_class=attribute_keyed_dict("content_group"), cascade="all, delete-orphan", lazy="selectin"
    )


class ProfileGroupColumns:
    """Columns of a profile's limit for one group, of devices or of contents."""

    profile_id: Mapped[str] = mapped_column(
        ForeignKey(AccountProfile.profile_id, ondelete="CASCADE"), primary_key=True, comment="The profile"
    )
    max_sessions: Mapped[int | None] = mapped_column(
        sort_order=1, comment="Most sessions at once in the group; null = no limit"
    )
    counts: Mapped[bool] = mapped_column(
        server_default=text("true"),
        sort_order=1,
        comment="False: sessions in it do not count towards max_sessions of the profile",
    )


class ProfileDeviceGroup(ProfileGroupColumns, Base):
    """A profile's limit for one device group."""

    __tablename__ = "profile_device_groups"
    __table_args__ = (
        identifier("device_group"),
        at_least("max_sessions", 0),
        {"comment": "What a profile says of sessions on the devices of a group"},
    )

    device_group: Mapped[str] = mapped_column(primary_key=True, comment="The group, as in devices.device_group")


class Account(Base):
    """A subscriber. A setup locks this row, so setups of one account run one after the other."""

    __tablename__ = "accounts"
    __table_args__ = (
        identifier("account_id"),
        at_least("max_sessions", 0),
        Index(None, "profile_id"),
        {"comment": "Subscribers; the row is the lock under which the sessions of the account are counted"},
    )

    account_id: Mapped[str] = mapped_column(primary_key=True, comment="Id in the subscriber system")
    profile_id: Mapped[str] = mapped_column(
        ForeignKey(AccountProfile.profile_id), comment="Profile whose limits hold for the account"
    )
    enabled: Mapped[bool] = mapped_column(
        server_default=text("true"), comment="False: every setup is refused with SRM-0004"
    )
    max_sessions: Mapped[int | None] = mapped_column(
        comment="Limit that replaces max_sessions of the profile; null = the limit of the profile"
    )


class Device(Base):
    """A device of an account."""

    __tablename__ = "devices"
    __table_args__ = (
        ForeignKeyConstraint(["account_id"], [Account.account_id], ondelete="CASCADE"),
        identifier("device_id"),
        {"comment": "Devices of the accounts"},
    )

    account_id: Mapped[str] = mapped_column(primary_key=True, comment="Account that the device belongs to")
    device_id: Mapped[str] = mapped_column(primary_key=True, comment="Id of the device within the account")
    device_group: Mapped[str] = mapped_column(comment="Kind of device: tv, mobile, …")
    name: Mapped[str] = mapped_column(comment="Name that the viewer gave the device: Living-room TV")
    enabled: Mapped[bool] = mapped_column(
        server_default=text("true"), comment="False: every setup from it is refused with SRM-0005"
    )


class Content(Base):
    """A CMS origin key: a VOD asset, a channel, or a broadcast event of a channel."""

    __tablename__ = "contents"
    __table_args__ = (
        identifier("content_id"),
        Index(None, "channel_id"),
        {"comment": "CMS origin keys: VOD assets, channels and broadcast events"},
    )

    content_id: Mapped[str] = mapped_column(primary_key=True, comment="CMS origin key")
    channel_id: Mapped[str | None] = mapped_column(
        ForeignKey("srm.contents.content_id"),
        comment="For a broadcast event: the channel that it was on; else null",
    )
    title: Mapped[str | None] = mapped_column(comment="For people; SRM does not use it")

    in_groups: Mapped[list["ContentGroup"]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", order_by="ContentGroup.content_group"
    )

    @property
    def groups(self) -> list[str]:
        """Names of the groups that the content is in."""
        return [group.content_group for group in self.in_groups]


class ContentGroup(Base):
    """Membership of one content in one content group."""

    __tablename__ = "content_groups"
    __table_args__ = (
        identifier("content_group"),
        {"comment": "Groups of contents that profiles may limit; an event is also in the groups of its channel"},
    )

    content_id: Mapped[str] = mapped_column(
        ForeignKey(Content.content_id, ondelete="CASCADE"), primary_key=True, comment="The content"
    )
    content_group: Mapped[str] = mapped_column(primary_key=True, comment="Name of the group: sports, …")


class ProfileContentGroup(ProfileGroupColumns, Base):
    """A profile's limit for one content group."""

    __tablename__ = "profile_content_groups"
    __table_args__ = (
        identifier("content_group"),
        at_least("max_sessions", 0),
        {"comment": "What a profile says of sessions on the contents of a group"},
    )

    content_group: Mapped[str] = mapped_column(
        primary_key=True, comment="The group, as in content_groups.content_group"
    )


class Product(Base):
    """A package, a rental or a capability such as start-over that can be sold."""

    __tablename__ = "products"
    __table_args__ = (
        identifier("product_id"),
        {"comment": "What can be sold: a package, a rental, a capability such as start-over"},
    )

    product_id: Mapped[str] = mapped_column(primary_key=True, comment="Id of the product")
    name: Mapped[str] = mapped_column(comment="For people; SRM does not use it")


class ProductContent(Base):
    """A content that a product contains, for one content type."""

    __tablename__ = "product_contents"
    __table_args__ = (
        one_of("content_type", CONTENT_TYPES),
        Index(None, "content_id"),
        {"comment": "What a product lets watch, and in which way"},
    )

    product_id: Mapped[str] = mapped_column(
        ForeignKey(Product.product_id, ondelete="CASCADE"), primary_key=True, comment="The product"
    )
    content_type: Mapped[str] = mapped_column(
        primary_key=True,
        comment="COD = VOD asset, CU = catch-up, TS = timeshift or start-over, NPVR = network recording, "
        "LIVE = live channel",
    )
    content_id: Mapped[str] = mapped_column(
        ForeignKey(Content.content_id),
        primary_key=True,
        comment="The content; a channel covers its events under CU and NPVR",
    )


class Entitlement(Base):
    """A product that an account holds for a time."""

    __tablename__ = "entitlements"
    __table_args__ = (
        ForeignKeyConstraint(["account_id"], [Account.account_id], ondelete="CASCADE"),
        Index(None, "product_id"),
        {"comment": "Products that accounts hold"},
    )

    account_id: Mapped[str] = mapped_column(primary_key=True, comment="The account")
    product_id: Mapped[str] = mapped_column(ForeignKey(Product.product_id), primary_key=True, comment="The product")
    valid_from: Mapped[datetime] = mapped_column(
        server_default=func.statement_timestamp(), comment="First instant at which the entitlement holds"
    )
    valid_until: Mapped[datetime | None] = mapped_column(
        comment="First instant at which the entitlement no longer holds; null = no end"
    )


class SessionColumns:
    """Columns that `sessions` and `session_history` share, in this order."""

    account_id: Mapped[str] = mapped_column(primary_key=True, comment="Account that holds the slot")
    session_id: Mapped[UUID] = mapped_column(primary_key=True, comment="The sessionId of the API")
    device_id: Mapped[str] = mapped_column(comment="Device that set the session up")
    content_type: Mapped[str] = mapped_column(comment="contentType of the setup")
    content_id: Mapped[str] = mapped_column(comment="contentID of the setup")
    started_at: Mapped[datetime] = mapped_column(
        server_default=func.statement_timestamp(), comment="Time at which the slot was taken"
    )
    last_keep_alive_at: Mapped[datetime] = mapped_column(
        server_default=func.statement_timestamp(), comment="Time of the last keep-alive, or else of the setup"
    )
    timeout_seconds: Mapped[int | None] = mapped_column(
        comment="Seconds from a keep-alive to the lapse, copied from the profile at setup; null = no keep-alive needed"
    )
    max_sessions: Mapped[int | None] = mapped_column(
        comment="Limit of the account under which the session was admitted; null = no limit"
    )
    ended_by: Mapped[str | None] = mapped_column(
        sort_order=3, comment="Name of the device whose setup ended the session; null = no setup did"
    )
    device_group: Mapped[str | None] = mapped_column(sort_order=5, comment="Group of the device, at setup")
    content_groups: Mapped[list[str] | None] = mapped_column(
        sort_order=5, comment="Groups of the content, at setup; null = no group"
    )
    address: Mapped[str | None] = mapped_column(
        INET, sort_order=5, comment="Address of the client at setup, of IPv6 its /64; null = not known"
    )
    counts: Mapped[bool] = mapped_column(
        server_default=text("true"),
        sort_order=5,
        comment="True: the session counts towards max_sessions; decided at setup by the groups of device and content",
    )
    max_session_seconds: Mapped[int | None] = mapped_column(
        sort_order=5, comment="Seconds from started_at to the lapse, keep-alives or not; null = no limit"
    )
    max_sessions_per_content: Mapped[int | None] = mapped_column(
        sort_order=5, comment="Limit under which the session was admitted, as max_sessions; null = no limit"
    )
    max_ip_addresses: Mapped[int | None] = mapped_column(
        sort_order=5, comment="Limit under which the session was admitted, as max_sessions; null = no limit"
    )
    max_sessions_per_ip: Mapped[int | None] = mapped_column(
        sort_order=5, comment="Limit under which the session was admitted, as max_sessions; null = no limit"
    )
    max_sessions_of_device_group: Mapped[int | None] = mapped_column(
        sort_order=5, comment="Limit of device_group under which the session was admitted; null = no limit"
    )
    max_sessions_of_content_groups: Mapped[list[int | None] | None] = mapped_column(
        sort_order=5, comment="Limits of content_groups, in their order, under which the session was admitted"
    )


class PlaybackSession(SessionColumns, Base):
    """A playback session that is active, has lapsed, or has ended a few minutes ago.

    Every keep-alive is a heap-only update (PostgreSQL manual, "Heap-Only Tuples"): no index has `last_keep_alive_at`,
    and the fill factor leaves room on each page. There are no foreign keys, because a session outlives the device and
    the account that it names.
    """

    __tablename__ = "sessions"

    ended_at: Mapped[datetime | None] = mapped_column(
        sort_order=1,
        comment="Time at which the slot became free; for a lapsed session the instant of the lapse; null = not ended",
    )
    end_reason: Mapped[str | None] = mapped_column(sort_order=2, comment="Reason of the end; null = not ended")
    idempotency_key: Mapped[str | None] = mapped_column(
        sort_order=4, comment="Idempotency-Key of the setup; null = no key"
    )
    clock_stepped_from: Mapped[datetime | None] = mapped_column(
        sort_order=6,
        comment="availability.clock_stepped_from at the last keep-alive; where that has changed since, a step back of "
        "the clock came after the keep-alive",
    )

    __table_args__ = (
        one_of("content_type", CONTENT_TYPES),
        one_of("end_reason", END_REASONS),
        CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="ended"),
        Index(None, ended_at, postgresql_where=ended_at.is_not(None)),
        {
            "comment": "Playback sessions: active, lapsed and freshly ended ones",
            "postgresql_with": {"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.05"},
        },
    )


sessions = PlaybackSession.__table__.c
"""Columns of the table `sessions`, for statements."""


class OneRow:
    """Key column of a table with one row."""

    singleton: Mapped[bool] = mapped_column(primary_key=True, server_default=text("true"), comment="There is one row")


class Availability(OneRow, Base):
    """Times at which SRM could take keep-alives: one row, written by the heartbeat of the API."""

    __tablename__ = "availability"
    __table_args__ = (
        CheckConstraint("singleton", name="singleton"),
        {"comment": "Since when SRM has been able to take keep-alives; one row"},
    )

    seen_at: Mapped[datetime] = mapped_column(
        comment="Last time at which the API could take keep-alives; written each second"
    )
    available_since: Mapped[datetime] = mapped_column(
        comment="End of the last outage; until a timeout after it no session lapses for want of keep-alives"
    )
    outage_at: Mapped[datetime | None] = mapped_column(
        comment="Beginning of the last outage; null = no outage is known"
    )
    clock_stepped_from: Mapped[datetime | None] = mapped_column(
        comment="Latest instant that the clock can have shown before it last stepped back; null = no step is known"
    )
    clock_stepped_at: Mapped[datetime | None] = mapped_column(
        comment="Time at which the last step back of the clock was noticed, by the clock after the step; "
        "null = no step is known"
    )


class SessionHistory(SessionColumns, Base):
    """An ended session that the reaper has moved out of `sessions`."""

    __tablename__ = "session_history"

    ended_at: Mapped[datetime] = mapped_column(
        primary_key=True, sort_order=1, comment="Time at which the slot became free"
    )
    end_reason: Mapped[str] = mapped_column(sort_order=2, comment="Reason of the end")

    __table_args__ = (
        {
            "comment": "Ended sessions, partitioned by month (UTC) of ended_at, dropped by age",
            "postgresql_partition_by": "RANGE (ended_at)",
        },
    )


class Denial(Base):
    """A setup that was denied, or that an `observe` profile would have denied."""

    __tablename__ = "denials"
    __table_args__ = (
        {
            "comment": "Setups that were refused, or would have been, partitioned by month (UTC), dropped by age",
            "postgresql_partition_by": "RANGE (denied_at)",
        },
    )

    account_id: Mapped[str] = mapped_column(primary_key=True, comment="Account of the token")
    denied_at: Mapped[datetime] = mapped_column(
        primary_key=True, server_default=func.statement_timestamp(), comment="Time of the denial"
    )
    denial_id: Mapped[UUID] = mapped_column(
        primary_key=True, server_default=func.gen_random_uuid(), comment="Tells denials of one instant apart"
    )
    device_id: Mapped[str] = mapped_column(comment="Device of the token")
    content_type: Mapped[str] = mapped_column(comment="contentType of the setup")
    content_id: Mapped[str] = mapped_column(comment="contentID of the setup")
    address: Mapped[str | None] = mapped_column(
        INET, comment="Address of the client, of IPv6 its /64; null = not known"
    )
    error_code: Mapped[str] = mapped_column(comment="errorCode of the answer: SRM-0004 to SRM-0007")
    rule: Mapped[str | None] = mapped_column(
        comment="Limit that was reached: max_sessions, device_group:mobile, …; null = no limit was reached"
    )
    rule_limit: Mapped[int | None] = mapped_column(comment="Value of that limit")
    in_the_way: Mapped[list[UUID] | None] = mapped_column(comment="Sessions whose end would have made room")
    observed: Mapped[bool] = mapped_column(
        server_default=text("false"),
        comment="True: the profile only observes; the session was admitted, and by an enforced limit it would have "
        "been refused or, as on_limit says, have evicted others",
    )
    reason: Mapped[str | None] = mapped_column(
        comment="Reason of the entitlement service for denying content access; null = no reason was given, or no "
        "access was denied"
    )


class Operator(Base):
    """A person or system that may use the operator API."""

    __tablename__ = "operators"
    __table_args__ = (
        identifier("name"),
        one_of("role", get_args(Role)),
        {"comment": "Who may use the operator API; srm operator add, list, revoke"},
    )

    name: Mapped[str] = mapped_column(primary_key=True, comment="Name of the person or system")
    role: Mapped[str] = mapped_column(comment="viewer = reads; care = also ends sessions; admin = all")
    key_hash: Mapped[bytes] = mapped_column(comment="SHA-256 of the secret part of the Operator-Key")
    created_at: Mapped[datetime] = mapped_column(
        server_default=func.statement_timestamp(), comment="Time at which the key was made"
    )
    revoked_at: Mapped[datetime | None] = mapped_column(
        comment="Time at which the key stopped working; null = the key works"
    )


class OperatorChange(Base):
    """One change that an operator made."""

    __tablename__ = "operator_audit"
    __table_args__ = (
        Index(None, "changed_at", "change_id"),
        Index(None, "operator", "changed_at", "change_id"),
        {"comment": "What operators changed, and the sessions that they ended; nothing in it is ever changed"},
    )

    account_id: Mapped[str] = mapped_column(
        primary_key=True, comment="Account that was changed; empty = no account: the catalogue, a profile, an operator"
    )
    changed_at: Mapped[datetime] = mapped_column(
        primary_key=True, server_default=func.statement_timestamp(), comment="Time of the change"
    )
    change_id: Mapped[UUID] = mapped_column(
        primary_key=True, server_default=func.gen_random_uuid(), comment="Tells changes of one instant apart"
    )
    operator: Mapped[str] = mapped_column(comment="Author: name in operators, or cli: and a user of the system")
    action: Mapped[str] = mapped_column(comment="Action: create, update, delete, end, import, revoke")
    resource: Mapped[str] = mapped_column(comment="Path of the changed resource below /srm/v1/")
    before: Mapped[dict[str, Any] | None] = mapped_column(comment="State before the change; null = there was nothing")
    after: Mapped[dict[str, Any] | None] = mapped_column(comment="State after the change; null = nothing is left")
    correlation_id: Mapped[str | None] = mapped_column(
        comment="X-Correlation-Id of the request; null = no request made the change"
    )


class ReaperState(OneRow, Base):
    """Results of the last run of the reaper, and its counters: one row for all reapers."""

    __tablename__ = "reaper_state"
    __table_args__ = (
        CheckConstraint("singleton", name="singleton"),
        {"comment": "What the reaper did; one row, whichever reaper it was"},
    )

    ran_at: Mapped[datetime | None] = mapped_column(
        comment="Time at which a reaper last finished a run, failed tasks included; null = never"
    )
    expired: Mapped[int] = mapped_column(
        BigInteger, server_default=text("0"), comment="Lapsed sessions that reapers have ended, ever"
    )
    archived: Mapped[int] = mapped_column(
        BigInteger, server_default=text("0"), comment="Ended sessions that reapers have moved to session_history, ever"
    )
    failed_at: Mapped[datetime | None] = mapped_column(
        comment="Time at which a task of the last run failed; null = all tasks succeeded"
    )
    failure: Mapped[str | None] = mapped_column(
        comment="Task of the last run that failed, and its error; null = all tasks succeeded"
    )
    trusted_at: Mapped[datetime | None] = mapped_column(
        comment="Time by which the reaper drops history: the clock, or less after the clock jumped ahead by more than "
        "a day; null = no reaper has looked yet"
    )
