"""`GET /playground`: one static page to try the service with. Knows four files and their headers; holds no key and no data.

The page is open: what it does, it does with the key that is typed into it, like any other caller. Its policy allows nothing
from elsewhere, and nothing inline. Try it: `make demo`, then open http://127.0.0.1:3000/playground.
"""

import hashlib
from importlib.resources import files

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from zopilot_gpu.api.failures import ErrorResponse
from zopilot_gpu.errors import InvalidRequest

_FILES = {
    "/playground": ("index.html", "text/html; charset=utf-8"),
    "/playground/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/playground/style.css": ("style.css", "text/css; charset=utf-8"),
    "/playground/icon.svg": ("icon.svg", "image/svg+xml"),
}
PATHS = frozenset(_FILES)
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Playground:
    """Answers for the page's files; everything else goes to the app below."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        here = files(__package__)
        self._contents = {path: here.joinpath(name).read_bytes() for path, (name, _) in _FILES.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"] not in _FILES:
            await self.app(scope, receive, send)
        elif scope["method"] not in {"GET", "HEAD"}:
            sentence = "This route does not take this method; the Allow header says which it takes."
            refusal = ErrorResponse(InvalidRequest(405, "method_not_allowed", sentence))
            refusal.headers["Allow"] = "GET, HEAD"
            await refusal(scope, receive, send)
        else:
            await self._file(scope)(scope, receive, send)

    def _file(self, scope: Scope) -> Response:
        content = self._contents[scope["path"]]
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": tag}
        if Headers(scope=scope).get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_FILES[scope["path"]][1], headers=headers)
