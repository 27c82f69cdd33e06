"""The JSON of the client API, v1: what is validated, and what the OpenAPI document is made of."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ContentType = Literal["COD", "CU", "TS", "NPVR", "LIVE"]
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


class SetupRequest(BaseModel):
    """Body of a setup. Unknown members are ignored."""

    model_config = ConfigDict(frozen=True)

    content: ContentRequest


class Setup(BaseModel):
    """A session that was set up."""

    sessionId: UUID = Field(description="Names the session in keep-alive and teardown")  # noqa: N815
    timeout: int | None = Field(
        default=None,
        ge=1,
        description="Seconds in which a keep-alive is expected. Left out when keep-alive is disabled for the "
        "session; such a session does not lapse",
        json_schema_extra={"type": "integer"},
    )


class SuccessResponse(BaseModel):
    """Answer to a setup that was admitted."""

    successResponse: Setup  # noqa: N815


class ErrorBody(BaseModel):
    """An answer that is not a success."""

    code: str = Field(description="The HTTP status, as a string", examples=["200"])
    status: Literal["ERROR", "DENIED"] = Field(
        description="DENIED: a business rule refuses, and the HTTP status is 200. ERROR: all else"
    )
    errorCode: str = Field(pattern=r"^SRM-\d{4}$", examples=["SRM-0006"])  # noqa: N815
    errorMessage: str = Field(description="For people", examples=["Session Limit Reached"])  # noqa: N815


class ErrorResponse(BaseModel):
    """Envelope of every answer that is not a success."""

    errorResponse: ErrorBody  # noqa: N815
