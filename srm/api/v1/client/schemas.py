"""JSON of the client API, v1: models that validate requests and make the OpenAPI document.

Members have the names of the wire, in camel case. Docstrings are texts of the OpenAPI document.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from srm.db.models import ContentType

ContentId = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", strict=True)
]


class ContentRequest(BaseModel):
    """Content to play."""

    model_config = ConfigDict(frozen=True)

    contentID: ContentId = Field(  # noqa: N815
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
    """Options of a setup beyond the published API."""

    model_config = ConfigDict(frozen=True)

    listConflicts: bool = Field(  # noqa: N815
        default=False, strict=True, description="True: a denial by a limit says which sessions are in the way"
    )
    takeOver: tuple[UUID, ...] = Field(  # noqa: N815
        default=(),
        max_length=100,
        description="sessionIds of active sessions of the account that the new session replaces. They end only if the "
        "setup is admitted. An id of a session that is already gone does no harm",
    )


class SetupRequest(BaseModel):
    """Body of a setup. SRM ignores unknown members."""

    model_config = ConfigDict(frozen=True)

    content: ContentRequest
    options: SetupOptions = SetupOptions()


class Setup(BaseModel):
    """Session that was set up."""

    sessionId: UUID = Field(description="Names the session in keep-alive and teardown")  # noqa: N815
    timeout: int | None = Field(
        default=None,
        ge=1,
        description="Seconds in which a keep-alive is expected. Left out when keep-alive is disabled for the "
        "session; such a session does not lapse for lack of keep-alives",
        json_schema_extra={"type": "integer"},
    )


class SuccessResponse(BaseModel):
    """Answer to a setup that was admitted."""

    successResponse: Setup  # noqa: N815


class ListedSession(BaseModel):
    """Active session of the account."""

    sessionId: UUID  # noqa: N815
    deviceName: str = Field(description="Name that the viewer gave the device", examples=["Living-room TV"])  # noqa: N815
    contentID: str  # noqa: N815
    contentType: ContentType  # noqa: N815
    startedAt: datetime  # noqa: N815


class SessionList(BaseModel):
    """Active sessions of the account, the oldest first."""

    sessions: list[ListedSession]


class SessionListResponse(BaseModel):
    """Answer to a listing."""

    successResponse: SessionList  # noqa: N815


class Rule(BaseModel):
    """Limit that was reached."""

    name: str = Field(
        description="`max_sessions`, `max_sessions_per_content`, `max_ip_addresses`, `max_sessions_per_ip`, "
        "`device_group:` or `content_group:` and the name of the group",
        examples=["max_sessions", "device_group:mobile"],
    )
    limit: int = Field(description="Value of the limit", examples=[3])


class ErrorBody(BaseModel):
    """Error or denial."""

    code: str = Field(description="The HTTP status, as a string", examples=["200"])
    status: Literal["ERROR", "DENIED"] = Field(
        description="DENIED: a business rule denies the request, and the HTTP status is 200. ERROR: anything else"
    )
    errorCode: str = Field(pattern=r"^SRM-\d{4}$", examples=["SRM-0006"])  # noqa: N815
    errorMessage: str = Field(description="Text for people", examples=["Session Limit Reached"])  # noqa: N815
    rule: Rule | None = Field(default=None, description="With SRM-0006, if the setup said listConflicts")
    conflicts: list[ListedSession] | None = Field(
        default=None,
        description="With SRM-0006, if the setup said listConflicts: the sessions whose end would make room, the "
        "oldest first; empty if no end would",
    )


class ErrorResponse(BaseModel):
    """Envelope of every answer that is not a success."""

    errorResponse: ErrorBody  # noqa: N815
