"""A receiver of callbacks that tests can take down, and that keeps what it was sent, with the signature checked."""

import base64
import hashlib
import hmac
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "a-secret-of-the-tests"


class Receiver(ThreadingHTTPServer):
    """Listens on 127.0.0.1; `status` is what it answers, 503 at first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_port}"
        self.status = 503
        self.num_refused = 0
        self.num_unsigned = 0
        self.deliveries: dict[str, list[dict[str, Any]]] = defaultdict(list)  # by delivery id, in order of arrival
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def env(self) -> dict[str, str]:
        """The settings of a service that may call it."""
        return {
            "ZOPILOT_GPU_CALLBACK_HOSTS": self.host,
            "ZOPILOT_GPU_CALLBACK_SECRET": SECRET,
            "ZOPILOT_GPU_CALLBACK_ALLOW_HTTP": "true",
        }


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
        if self.headers["webhook-signature"] != f"v1,{expected}":
            self.server.num_unsigned += 1
        if self.server.status < 300:
            self.server.deliveries[self.headers["webhook-id"]].append(json.loads(body))
        else:
            self.server.num_refused += 1
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass
