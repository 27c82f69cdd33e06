"""What subscriber systems and operators read and write: accounts, devices, entitlements, and the catalogue.

The JSON of the operator API, v1, and the rows of `srm import` and `srm export`. Fields are named like the columns of
the tables; in JSON and CSV they have the names of the API.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from srm.db import models
from srm.db.models import Mode, OnLimit, SameDevice
from srm.values import STORED, Instant, Limit, Seconds, Text

Each = TypeVar("Each")


def member(field: str) -> str:
    """The name that the field of a resource has in JSON."""
    return {"content_id": "contentID", "channel_id": "channelID"}.get(field) or to_camel(field)


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


def _once(values: list[Each]) -> list[Each]:
    """Each of them once, in the order in which they came."""
    return list(dict.fromkeys(values))


class Shown(BaseModel):
    """What operators are shown; made from rows."""

    model_config = ConfigDict(alias_generator=member, from_attributes=True, frozen=True)

    @classmethod
    def of_row(cls, row: object) -> Self:
        """What the row says, or another object with these attributes or members."""
        return cls.model_validate(row, by_name=True, by_alias=False, context=STORED)

    def as_json(self) -> dict[str, Any]:
        """Its JSON."""
        return self.model_dump(mode="json", by_alias=True)


class Resource(Shown):
    """What operators also write. Unknown members are refused: one that is misspelt would else be lost."""

    model_config = ConfigDict(extra="forbid")

    def values(self) -> frozenset[object]:
        """The texts and times in it, wherever they stand."""
        return frozenset(_leaves(self.model_dump()))

    def etag(self) -> str:
        """Names what it says: two that say the same have the same one (RFC 9110, section 8.8.3)."""
        return sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:32]


class Account(Resource):
    """A subscriber."""

    account_id: Text = Field(description="Id in the subscriber system")
    profile_id: Text = Field(description="Profile whose limits hold for the account")
    enabled: bool = Field(default=True, description="False: every setup is refused, and its sessions are ended")
    max_sessions: Limit | None = Field(default=None, description="Instead of that of the profile; null = the profile's")


class Device(Resource):
    """A device of an account."""

    account_id: Text
    device_id: Text = Field(description="Id of the device within the account")
    device_group: Text = Field(description="Kind of device", examples=["tv", "mobile"])
    name: Text = Field(description="What the viewer calls it", examples=["Living-room TV"])
    enabled: bool = Field(default=True, description="False: every setup is refused, and its sessions are ended")


class Entitlement(Resource):
    """A product that an account holds."""

    account_id: Text
    product_id: Text
    valid_from: Instant | None = Field(
        default=None, description="First instant at which it holds; not said = from now on, or as it was"
    )
    valid_until: Instant | None = Field(
        default=None, description="First instant at which it does not hold any more; null = no end"
    )


class GroupRule(Resource):
    """What a profile says of a group."""

    max_sessions: Limit | None = Field(default=None, description="Most sessions at once in the group; null = no limit")
    counts: bool = Field(
        default=True, description="False: sessions in it do not count towards maxSessions of the profile"
    )


class Profile(Resource):
    """Limits and timeout that accounts share; a limit that is null does not hold."""

    profile_id: Text
    max_sessions: Limit | None = None
    timeout_seconds: Seconds | None = Field(
        default=None, description="In which a keep-alive is expected; null = keep-alive disabled"
    )
    max_session_seconds: Seconds | None = Field(default=None, description="Longest that a session may live")
    max_sessions_per_content: Limit | None = None
    max_ip_addresses: Limit | None = None
    max_sessions_per_ip: Limit | None = None
    on_limit: OnLimit = "deny"
    same_device: SameDevice = "count"
    mode: Mode = "enforce"
    device_groups: dict[Text, GroupRule] = Field(default={}, description="By the name of the group")
    content_groups: dict[Text, GroupRule] = Field(default={}, description="By the name of the group")


class ProductContent(Resource):
    """A content, and a way to watch it."""

    content_type: models.ContentType
    content_id: Text


class Product(Resource):
    """What can be sold, and what it lets watch."""

    product_id: Text
    name: Text
    contents: Annotated[list[ProductContent], AfterValidator(_once)] = []


class Content(Resource):
    """A CMS origin key: a VOD asset, a channel, or a broadcast event of a channel."""

    content_id: Text = Field(description="CMS origin key")
    channel_id: Text | None = Field(default=None, description="For a broadcast event: the channel that it was on")
    title: Text | None = Field(default=None, description="For people; SRM does not use it")
    groups: Annotated[list[Text], AfterValidator(_once)] = Field(
        default=[], description="Groups of contents that it is in"
    )


@dataclass(frozen=True)
class Kind:
    """A kind of resource.

    `plural`: its name in paths, in lists and in `srm import`. `key`: the fields that name one; where there are two, the
    first is its account.
    """

    plural: str
    resource: type[Resource]
    table: type[models.Base]
    key: tuple[str, ...]

    @property
    def is_of_account(self) -> bool:
        """Whether it is an account, or belongs to one."""
        return self.key[0] == "account_id"

    def path(self, *key: str) -> str:
        """Of the resource with this key; without its last part, of the list."""
        return "/".join((*self._parent(key), self.plural, *key[len(self.key) - 1 :]))

    def _parent(self, key: tuple[str, ...]) -> tuple[str, ...]:
        return ("accounts", key[0]) if len(self.key) > 1 else ()


ACCOUNTS = Kind("accounts", Account, models.Account, ("account_id",))
DEVICES = Kind("devices", Device, models.Device, ("account_id", "device_id"))
ENTITLEMENTS = Kind("entitlements", Entitlement, models.Entitlement, ("account_id", "product_id"))
PROFILES = Kind("profiles", Profile, models.AccountProfile, ("profile_id",))
PRODUCTS = Kind("products", Product, models.Product, ("product_id",))
CONTENTS = Kind("contents", Content, models.Content, ("content_id",))
KINDS = (ACCOUNTS, DEVICES, ENTITLEMENTS, PROFILES, PRODUCTS, CONTENTS)
