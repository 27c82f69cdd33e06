"""The resources that operators read and write: accounts, devices, entitlements and the catalogue.

Fields have the names of the table columns. JSON and CSV have names of their own: `srm/operators/documents.py` for files
and the change log, `wire.py` of each API version for HTTP.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from srm.db import models
from srm.db.models import Mode, OnLimit, SameDevice
from srm.values import STORED, Instant, Limit, Seconds, Text

Item = TypeVar("Item")
ResourceKey: TypeAlias = tuple[str, ...]
"""The values of the key fields of a resource, in the order of `Kind.key`."""


class ReadModel(BaseModel):
    """Data that operators read, made from rows."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    @classmethod
    def of_row(cls, row: object) -> Self:
        """Read an object with these attributes, or a dict with these members. Stored values are taken unchecked."""
        return cls.model_validate(row, context=STORED)


class Resource(ReadModel):
    """Data that operators also write.

    Unknown members are refused: otherwise a misspelt member would be lost unnoticed.
    """

    model_config = ConfigDict(extra="forbid")

    def values(self) -> frozenset[object]:
        """Return every text, number and time in the resource, at any depth."""
        return frozenset(_leaves(self.model_dump()))


def _leaves(value: object) -> Iterator[object]:
    match value:
        case dict():
            for name, member in value.items():
                yield name
                yield from _leaves(member)
        case list():
            for member in value:
                yield from _leaves(member)
        case _:
            yield value


def _unique(items: list[Item]) -> list[Item]:
    """Drop repeated items; keep the order."""
    return list(dict.fromkeys(items))


class Account(Resource):
    """A subscriber."""

    account_id: Text = Field(description="Id in the subscriber system")
    profile_id: Text = Field(description="Profile whose limits hold for the account")
    enabled: bool = Field(default=True, description="False: every setup is denied, and all sessions are ended")
    max_sessions: Limit | None = Field(
        default=None,
        description="Most active sessions, instead of the profile's limit; null = the profile's limit holds",
    )


class Device(Resource):
    """A device of an account."""

    account_id: Text
    device_id: Text = Field(description="Id of the device within the account")
    device_group: Text = Field(description="Kind of device", examples=["tv", "mobile"])
    name: Text = Field(description="Name that the viewer gave the device", examples=["Living-room TV"])
    enabled: bool = Field(
        default=True, description="False: every setup is denied, and all sessions of the device are ended"
    )


class Entitlement(Resource):
    """A product that an account holds."""

    account_id: Text
    product_id: Text
    valid_from: Instant | None = Field(
        default=None,
        description="First instant at which the entitlement holds. Left out or null: a new entitlement holds from now "
        "on, an existing one keeps its value",
    )
    valid_until: Instant | None = Field(
        default=None, description="First instant at which the entitlement no longer holds; null = no end"
    )


class GroupRule(Resource):
    """Limits of a profile for one group of devices or contents."""

    max_sessions: Limit | None = Field(default=None, description="Most active sessions in the group; null = unlimited")
    counts: bool = Field(
        default=True, description="False: sessions in the group do not count towards the profile's limit"
    )


class Profile(Resource):
    """Limits and timeout that accounts share. A limit that is null means unlimited."""

    profile_id: Text
    max_sessions: Limit | None = None
    timeout_seconds: Seconds | None = Field(
        default=None, description="Seconds in which a keep-alive is expected; null = keep-alive disabled"
    )
    max_session_seconds: Seconds | None = Field(
        default=None, description="Longest life of a session, in seconds; null = unlimited"
    )
    max_sessions_per_content: Limit | None = None
    max_ip_addresses: Limit | None = None
    max_sessions_per_ip: Limit | None = None
    on_limit: OnLimit = "deny"
    same_device: SameDevice = "count"
    mode: Mode = "enforce"
    device_groups: dict[Text, GroupRule] = Field(default={}, description="Rules by the name of the device group")
    content_groups: dict[Text, GroupRule] = Field(default={}, description="Rules by the name of the content group")


class ProductContent(Resource):
    """A content, and a way to watch it."""

    content_type: models.ContentType
    content_id: Text


class Product(Resource):
    """A package, rental or capability that can be sold, with the contents that it lets an account watch."""

    product_id: Text
    name: Text
    contents: Annotated[list[ProductContent], AfterValidator(_unique)] = []


class Content(Resource):
    """A CMS origin key: a VOD asset, a channel, or a broadcast event of a channel."""

    content_id: Text = Field(description="CMS origin key")
    channel_id: Text | None = Field(default=None, description="Channel of a broadcast event; null = not an event")
    title: Text | None = Field(default=None, description="For people; SRM does not use it")
    groups: Annotated[list[Text], AfterValidator(_unique)] = Field(
        default=[], description="Content groups that the content is in"
    )


@dataclass(frozen=True)
class Kind:
    """A kind of resource.

    `plural` names the kind in paths, in lists and in `srm import`. `key` has the fields that identify a resource. If
    the key has two fields, the first is the account.
    """

    plural: str
    resource: type[Resource]
    table: type[models.Base]
    key: tuple[str, ...]

    @property
    def is_of_account(self) -> bool:
        """True for accounts, and for kinds whose resources belong to an account."""
        return self.key[0] == "account_id"

    def path(self, *key: str) -> str:
        """Return the path of a resource, such as `accounts/a/devices/tv`.

        Without the last part of the key, return the path of the list: `accounts/a/devices`. The change log and the API
        both use these paths.
        """
        if len(self.key) == 1:
            return "/".join((self.plural, *key))
        return path_in_account(key[0], self.plural, *key[1:])


def path_in_account(account_id: str, *parts: str) -> str:
    """Return the path of a thing that belongs to an account, such as `accounts/a/sessions/1`."""
    return "/".join((ACCOUNTS.plural, account_id, *parts))


ACCOUNTS = Kind("accounts", Account, models.Account, ("account_id",))
DEVICES = Kind("devices", Device, models.Device, ("account_id", "device_id"))
ENTITLEMENTS = Kind("entitlements", Entitlement, models.Entitlement, ("account_id", "product_id"))
PROFILES = Kind("profiles", Profile, models.AccountProfile, ("profile_id",))
PRODUCTS = Kind("products", Product, models.Product, ("product_id",))
CONTENTS = Kind("contents", Content, models.Content, ("content_id",))
KINDS = (ACCOUNTS, DEVICES, ENTITLEMENTS, PROFILES, PRODUCTS, CONTENTS)
