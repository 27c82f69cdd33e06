"""An example call of the client API, v1, to paste into a shell."""

import json
import shlex

from srm.playback.model import ContentRef


def setup_with_curl(base_url: str, token: str, content: ContentRef, unix_socket: str | None = None) -> str:
    """Return a curl command that sets a session up. `unix_socket`: path of the socket that the service listens on."""
    body = {"content": {"contentID": content.content_id, "contentType": content.content_type}}
    command = ["curl", "-s", "-X", "POST", f"{base_url}/srm/v1/sessions"]
    if unix_socket is not None:
        command += ["--unix-socket", unix_socket]
    return shlex.join([*command, "-H", f"Client-Token: {token}", "-d", json.dumps(body)])
