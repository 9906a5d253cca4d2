"""Delivers callbacks from the outbox: signed, pinned to an address, five times at most. Knows HTTP's sending side only.

The headers are those of Standard Webhooks, so that a receiver can verify with a library of its own:

    webhook-id         the delivery: the same at every try; who has seen it answers 2xx and does nothing
    webhook-timestamp  Unix seconds of this try
    webhook-signature  v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"))

2xx is a delivery. Anything else, a redirect too, is a try that failed; the answer's body is never read.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import sqlite3
import ssl
import time
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from zopilot_gpu import __version__, log
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.jobs.destination import Destination, Policy
from zopilot_gpu.jobs.store import Store
from zopilot_gpu.settings import Settings

MAX_TRIES = 5
_FACTOR = 4  # between waits: with 5 s the tries come after 0, 5, 25, 105 and 425 s
_TRY_S = 10.0
_AT_ONCE = 8
_LOOK_S = 1.0
_TOO_MANY = "DELETE FROM outbox WHERE rowid IN (SELECT rowid FROM outbox ORDER BY rowid DESC LIMIT -1 OFFSET ?)"
_log = log.get(__name__)


class Courier:
    """Works through the outbox in the background. `start` gives it the database."""

    def __init__(self, settings: Settings) -> None:
        self.policy = Policy(settings.callback_hosts, allow_http=settings.callback_allow_http)
        secret = settings.callback_secret
        self._secret = secret.get_secret_value().encode() if secret else b""
        self._retry_s, self._max_letters = settings.callback_retry_s, settings.jobs_max
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.outcomes = dict.fromkeys(("delivered", "failed", "gave_up"), 0)  # of tries, since this process began

    def start(self, store: Store) -> None:
        """Begins to deliver what is due."""
        self._task = asyncio.create_task(self._run(store))

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    async def close(self) -> None:
        """Stops; what was not delivered stays in the outbox."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, store: Store) -> None:
        while True:
            self._wake.clear()
            try:
                await store.change(_TOO_MANY, (self._max_letters,))
                due = await store.read(
                    "SELECT * FROM outbox WHERE due_at <= ? ORDER BY due_at LIMIT ?", (time.time(), _AT_ONCE)
                )
                await asyncio.gather(*(self._deliver(store, *row[:4]) for row in due))
                if due:
                    continue
            except sqlite3.Error as error:
                _log.error("outbox_failed", exc_info=error)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_S, self._retry_s)):
                    await self._wake.wait()

    async def _deliver(self, store: Store, delivery_id: str, url: str, body: str, num_tries: int) -> None:
        problem = await self._try(delivery_id, url, body.encode())
        last = num_tries + 1 >= MAX_TRIES
        if problem is None or last:
            await store.change("DELETE FROM outbox WHERE delivery_id = ?", (delivery_id,))
        else:
            due_at = time.time() + self._retry_s * _FACTOR**num_tries
            query = "UPDATE outbox SET num_tries = ?, due_at = ? WHERE delivery_id = ?"
            await store.change(query, (num_tries + 1, due_at, delivery_id))
        self.outcomes["delivered" if problem is None else "gave_up" if last else "failed"] += 1
        if problem is None:
            _log.info("callback_delivered", delivery_id=delivery_id, num_tries=num_tries + 1)
        else:
            _log.warning("callback_failed", delivery_id=delivery_id, num_tries=num_tries + 1, gave_up=last, problem=problem)

    async def _try(self, delivery_id: str, url: str, body: bytes) -> str | None:
        """One try; what went wrong, in a word that quotes nothing."""
        try:
            destination = self.policy.check(url)  # again: the list may have changed since
            async with asyncio.timeout(_TRY_S):
                addresses = await self._resolve(destination)
                return await self._post(destination, addresses, self._headers(delivery_id, body), body)
        except InvalidRequest:
            return "refused"
        except (TimeoutError, OSError, aiohttp.ClientError, ssl.SSLError, ValueError) as error:
            return type(error).__name__

    async def _resolve(self, destination: Destination) -> list[str]:
        """All addresses of the host.

        Raises:
            InvalidRequest: one of them may not be reached.
        """
        if destination.address is not None:
            return [str(destination.address)]
        found = await asyncio.get_running_loop().getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(self.policy.may_reach(ipaddress.ip_address(address)) for address in addresses):
            raise InvalidRequest(422, "callback_refused", "callback_url: its host leads elsewhere")
        return addresses

    async def _post(self, destination: Destination, addresses: list[str], headers: dict[str, str], body: bytes) -> str | None:
        connector = aiohttp.TCPConnector(resolver=_Pinned(destination.host, addresses), use_dns_cache=False, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session,
            session.post(destination.url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return None if 200 <= response.status < 300 else f"status {response.status}"

    def _headers(self, delivery_id: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        return {
            "Content-Type": "application/json",
            "User-Agent": f"zopilot-gpu/{__version__}",
            "webhook-id": delivery_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._secret, delivery_id, timestamp, body),
        }


def sign(secret: bytes, delivery_id: str, timestamp: str, body: bytes) -> str:
    """The signature of one try."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()}"


class _Pinned(AbstractResolver):
    """Gives the addresses that were looked at, and no others."""

    def __init__(self, host: str, addresses: list[str]) -> None:
        self._host, self._addresses = host, addresses

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:  # noqa: ARG002
        if host != self._host:
            raise OSError(f"{host} was not looked at")
        return [self._entry(address, port) for address in self._addresses]

    def _entry(self, address: str, port: int) -> ResolveResult:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        flags: Any = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return {"hostname": self._host, "host": address, "port": port, "family": family, "proto": 0, "flags": flags}

    async def close(self) -> None:
        pass
