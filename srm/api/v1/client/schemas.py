"""The JSON of the client API, v1: what is validated, and what the OpenAPI document is made of."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from srm.db.models import ContentType

ContentId = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", strict=True)
]


class ContentRequest(BaseModel):
    """What is to be played."""

    model_config = ConfigDict(frozen=True)

    contentID: ContentId = Field(  # noqa: N815 the name is the API's
        description="CMS origin key: of a VOD asset for COD, of a channel for TS and LIVE, "
        "of a broadcast event for CU and NPVR. 1 to 255 characters, no control characters",
        examples=["BTV_CH1_V"],
    )
    contentType: ContentType = Field(  # noqa: N815
        description="COD = VOD asset, CU = catch-up, TS = timeshift or start-over, NPVR = network recording, "
        "LIVE = live channel",
        examples=["LIVE"],
    )


class SetupOptions(BaseModel):
    """What a client may ask for beyond the published API."""

    model_config = ConfigDict(frozen=True)

    listConflicts: bool = Field(  # noqa: N815
        default=False, strict=True, description="Whether a refusal by a limit shall say which sessions are in the way"
    )
    takeOver: tuple[UUID, ...] = Field(  # noqa: N815
        default=(),
        max_length=100,
        description="sessionIds of active sessions of the account to end for the new one, both or neither. One that "
        "is already gone does no harm",
    )


class SetupRequest(BaseModel):
    """Body of a setup. Unknown members are ignored."""

    model_config = ConfigDict(frozen=True)

    content: ContentRequest
    options: SetupOptions = SetupOptions()


class Setup(BaseModel):
    """A session that was set up."""

    sessionId: UUID = Field(description="Names the session in keep-alive and teardown")  # noqa: N815
    timeout: int | None = Field(
        default=None,
        ge=1,
        description="Seconds in which a keep-alive is expected. Left out when keep-alive is disabled for the "
        "session; such a session does not lapse for want of keep-alives",
        json_schema_extra={"type": "integer"},
    )


class SuccessResponse(BaseModel):
    """Answer to a setup that was admitted."""

    successResponse: Setup  # noqa: N815


class ListedSession(BaseModel):
    """An active session of the account."""

    sessionId: UUID  # noqa: N815
    deviceName: str = Field(description="What the viewer calls it", examples=["Living-room TV"])  # noqa: N815
    contentID: str  # noqa: N815
    contentType: ContentType  # noqa: N815
    startedAt: datetime  # noqa: N815


class SessionList(BaseModel):
    """The active sessions of the account, the oldest first."""

    sessions: list[ListedSession]


class SessionListResponse(BaseModel):
    """Answer to a listing."""

    successResponse: SessionList  # noqa: N815


class Rule(BaseModel):
    """The limit that was reached."""

    name: str = Field(
        description="`max_sessions`, `max_sessions_per_content`, `max_ip_addresses`, `max_sessions_per_ip`, "
        "`device_group:` or `content_group:` and the name of the group",
        examples=["max_sessions", "device_group:mobile"],
    )
    limit: int = Field(description="What it is at", examples=[3])


class ErrorBody(BaseModel):
    """An answer that is not a success."""

    code: str = Field(description="The HTTP status, as a string", examples=["200"])
    status: Literal["ERROR", "DENIED"] = Field(
        description="DENIED: a business rule refuses, and the HTTP status is 200. ERROR: all else"
    )
    errorCode: str = Field(pattern=r"^SRM-\d{4}$", examples=["SRM-0006"])  # noqa: N815
    errorMessage: str = Field(description="For people", examples=["Session Limit Reached"])  # noqa: N815
    rule: Rule | None = Field(default=None, description="With SRM-0006, where the setup said listConflicts")
    conflicts: list[ListedSession] | None = Field(
        default=None,
        description="With SRM-0006, where the setup said listConflicts: the sessions whose end would make room, the "
        "oldest first; empty where no end would",
    )


class ErrorResponse(BaseModel):
    """Envelope of every answer that is not a success."""

    errorResponse: ErrorBody  # noqa: N815
