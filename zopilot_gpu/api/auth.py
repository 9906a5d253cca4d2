"""Who may call what. Knows the key ring; refuses everything that is not on the open list.

A key travels as `X-API-Key: KEY` or `Authorization: Bearer KEY`. `X-API-Key` wins where both are sent: behind RunPod's
load balancer the Bearer token is RunPod's own. A header that is sent twice is refused later, by `api.limits`.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from zopilot_gpu.api import request
from zopilot_gpu.api.failures import ErrorResponse
from zopilot_gpu.api.keys import KeyRing, digest_of
from zopilot_gpu.errors import Forbidden, Unauthorised

OPEN_PATHS = frozenset({"/livez", "/readyz", "/ping"})


class Auth:
    """Lets a request through with a valid key, or to an open path.

    Args:
        keys: the valid keys; an open ring lets everybody in.
        open_paths: paths that need no key, compared with `scope["path"]` as it is.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, open_paths: frozenset[str]) -> None:
        self.app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or refuses it with 401 (no key) or 403 (wrong key)."""
        if scope["type"] == "websocket":  # no route takes one, so none is let near the routes
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        key = _sent_key(Headers(scope=scope))
        info = request.current()
        found = self._keys.find(digest_of(key or b""))
        info.authorised = self._keys.is_open or (key is not None and found is not None)
        if key is not None and found is not None:
            info.owner, info.key_name = found.owner, found.name
        if info.authorised or scope["path"] in self._open_paths:
            await self.app(scope, receive, send)
        else:
            refusal = Unauthorised() if key is None else Forbidden()
            await ErrorResponse(refusal)(scope, receive, send)


def _sent_key(headers: Headers) -> bytes | None:
    """The key's bytes as they were on the wire, or None where none was sent."""
    for key in headers.getlist("x-api-key"):
        if sent := key.encode("latin-1").strip():
            return sent
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    return token.encode("latin-1").strip() or None
