"""Callback URLs that try to reach what is not on the operator's list: real sockets listen there, and none is connected to.

A control shows that the sockets count and that the forms are dangerous: a client without our rules reaches them with many.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Serve
from tests.faults.receiver import SECRET, Receiver
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.jobs.courier import Courier
from zopilot_gpu.jobs.destination import Policy
from zopilot_gpu.settings import Settings


class Trap:
    """Sockets on every address of this machine (v4 and v6) that count who connects."""

    def __init__(self) -> None:
        self.num_connections = 0
        self.server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port = int(self.server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.num_connections += 1
                with contextlib.suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.close()


# P is the trap's port, OK the listed receiver's on 127.0.0.1. localhost:P is listed by name, its address is not.
FORMS = """
http://127.0.0.1:P/ http://127.0.0.1:P http://127.0.0.2:P/ http://127.1:P/ http://127.0.1:P/ http://0:P/ http://0.0.0.0:P/
http://2130706433:P/ http://0x7f000001:P/ http://0x7f.0.0.1:P/ http://0x7f.1:P/ http://017700000001:P/ http://0177.0.0.1:P/
http://0177.0.0.01:P/ http://127.0.0.01:P/ http://127.000.000.001:P/ http://127.0.0.1.:P/ http://00000000177.0.0.1:P/
http://[::1]:P/ http://[::]:P/ http://[0:0:0:0:0:0:0:1]:P/ http://[0000::0001]:P/ http://[::ffff:127.0.0.1]:P/
http://[::ffff:7f00:1]:P/ http://[0:0:0:0:0:ffff:7f00:1]:P/ http://[::127.0.0.1]:P/ http://[::1%25lo]:P/ http://[::1%lo]:P/
http://[64:ff9b::7f00:1]:P/ http://[2002:7f00:1::]:P/ http://[fe80::1]:P/ http://[fc00::1]:P/ http://[fec0::1]:P/
http://localhost:P/ http://localhost.:P/ http://LOCALHOST:P/ http://LocalHost:P/ http://ip6-localhost:P/ http://a.localhost:P/
http://127.0.0.1:OK@127.0.0.1:P/ http://127.0.0.1:OK@localhost:P/ http://user@127.0.0.1:P/ http://user:pass@127.0.0.1:P/
http://@127.0.0.1:P/ http://:@127.0.0.1:P/ http://127.0.0.1:P#@127.0.0.1:OK/ http://127.0.0.1:P?@127.0.0.1:OK/
http://127.0.0.1:P\\@127.0.0.1:OK/ http://127.0.0.1:OK\\@127.0.0.1:P/ http://127.0.0.1:P;@127.0.0.1:OK/
http://127.0.0.1:OK%40127.0.0.1:P/ http://127.0.0.1%3aP/ http://127%2e0%2e0%2e1:P/ http://%31%32%37.0.0.1:P/
http:\\\\127.0.0.1:P/ http:/127.0.0.1:P/ http:127.0.0.1:P/ //127.0.0.1:P/ ///127.0.0.1:P/ 127.0.0.1:P http:///127.0.0.1:P/
HTTP://127.0.0.1:P/ hTTp://127.0.0.1:P/ https://127.0.0.1:P/ ftp://127.0.0.1:P/ file:///etc/passwd gopher://127.0.0.1:P/_x
ws://127.0.0.1:P/ unix:///tmp/x http+unix://127.0.0.1:P/ jar:http://127.0.0.1:P!/ data:text/plain,x dict://127.0.0.1:P/x
http://127.0.0.1:0P/ http://127.0.0.1:+P/ http://127.0.0.1:P:P/ http://127.0.0.1:/ http://[127.0.0.1]:P/ http://[::1]P/
http://127.0.0.1:OK:P/ http://127.0.0.2:OK/ http://127.0.0.1.example:P/ http://169.254.169.254/ http://[fd00:ec2::254]/
http://\uff11\uff12\uff17.0.0.1:P/ http://127\u30020\u30020\u30021:P/ http://\u24dbocalhost:P/
http://127.0.0.1:P/\x00 http://127.0.0.1:P/\u2028 http://xn--localhost-:P/
""".split()  # noqa: SIM905  (a list of words reads better so)
FORMS += [" http://127.0.0.1:P/", "http://127.0.0.1:P/ ", "http://127.0.0.1:P/\r\nHost: x", "http://127.0.0.1:P\t/", "\thttp://127.0.0.1:P/",
          "http://127.0.0.1:OK\r\n@127.0.0.1:P/", "http://\n127.0.0.1:P/", "", "http://", "http://:P/", "x" * 3000]  # fmt: skip


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    trap = Trap()
    yield trap
    trap.server.close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        receiver.status = 204
        yield receiver


def hosts(trap: Trap, receiver: Receiver) -> str:
    return f"{receiver.host},localhost:{trap.port},hooks.example:{trap.port},hooks.example"


def forms(trap: Trap, receiver: Receiver) -> list[str]:
    return [form.replace("OK", str(receiver.server_port)).replace("P/", f"{trap.port}/").replace(":P", f":{trap.port}")
            .replace("aP", f"a{trap.port}").replace("]P", f"]{trap.port}").replace("0P", f"0{trap.port}")
            .replace("+P", f"+{trap.port}") for form in FORMS]  # fmt: skip


@pytest.fixture
def courier(trap: Trap, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Courier:
    for name, value in (receiver.env | {"ZOPILOT_GPU_CALLBACK_HOSTS": hosts(trap, receiver)}).items():
        monkeypatch.setenv(name, value)
    return Courier(Settings(allow_anonymous=True))


async def test_no_form_of_a_url_reaches_what_is_not_on_the_list(courier: Courier, trap: Trap, receiver: Receiver) -> None:
    tried = forms(trap, receiver)
    assert len(set(tried)) >= 80
    before, heard = trap.num_connections, len(receiver.deliveries)
    reached = [form for form in tried if await courier._try("id", form, b"{}") is None]
    assert reached == []
    assert (trap.num_connections - before, len(receiver.deliveries) - heard) == (0, 0)
    assert await courier._try("control", f"http://{receiver.host}/hook?a=1", b"{}") is None
    assert len(receiver.deliveries["control"]) == 1
    print(f"\n{len(set(tried))} forms, 0 connections")  # noqa: T201


def test_a_client_without_our_rules_falls_into_the_trap(trap: Trap, receiver: Receiver) -> None:
    fallen = 0
    with httpx.Client(timeout=2) as client:
        for form in forms(trap, receiver):
            before = trap.num_connections
            with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, ValueError, UnicodeError):
                client.post(form, content=b"{}")
            fallen += trap.num_connections > before
    assert fallen > 25


async def resolving_to(monkeypatch: pytest.MonkeyPatch, *turns: list[str]) -> None:
    """Names resolve to these addresses, one list a call."""
    left = list(turns)

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "address",
    """127.0.0.1 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 198.18.0.1
    ::1 :: fe80::1 fc00::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: fec0::1 ff02::1""".split(),  # noqa: SIM905
)
async def test_a_listed_name_that_leads_inside_is_not_followed(
    courier: Courier, trap: Trap, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    before = trap.num_connections
    await resolving_to(monkeypatch, [address])
    assert await courier._try("id", f"http://hooks.example:{trap.port}/", b"{}") == "refused"
    await resolving_to(monkeypatch, ["93.184.216.34", address])  # one good address does not help
    assert await courier._try("id", f"http://hooks.example:{trap.port}/", b"{}") == "refused"
    assert trap.num_connections == before


async def test_a_name_that_changes_after_it_was_looked_at_does_not_lead_inside(
    courier: Courier, trap: Trap, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the second answer is the trap. The name is resolved once, and that answer is where we connect."""
    courier.policy = Policy((f"hooks.example:{trap.port}", "127.0.0.77/32"), allow_http=True)
    await resolving_to(monkeypatch, ["127.0.0.77"], ["127.0.0.1"])
    before = trap.num_connections
    await courier._try("id", f"http://hooks.example:{trap.port}/", b"{}")
    assert trap.num_connections == before + 1  # 127.0.0.77, which is listed here; the name was not asked for again
    await resolving_to(monkeypatch, ["127.0.0.1"])
    assert await courier._try("id", f"http://hooks.example:{trap.port}/", b"{}") == "refused"
    assert trap.num_connections == before + 1


async def test_a_redirect_is_a_failure_and_is_not_followed(courier: Courier, receiver: Receiver) -> None:
    heard = len(receiver.deliveries)
    for status in (301, 302, 303, 307, 308):
        receiver.status = status
        assert await courier._try("id", f"http://{receiver.host}/", b"{}") == f"status {status}"
    receiver.status = 204
    assert len(receiver.deliveries) == heard


def test_the_service_refuses_the_same_forms_at_the_door(serve: Serve, trap: Trap, receiver: Receiver) -> None:
    env = receiver.env | {"ZOPILOT_GPU_CALLBACK_HOSTS": receiver.host, "ZOPILOT_GPU_MODEL": "nobody/nothing"}
    before = trap.num_connections
    with serve(ready=False, **env) as server:
        server.wait_for(lambda health: health["status"] == "unavailable")
        with server.client() as client:
            while client.get("/jobs").status_code == 503:  # it opens its database
                time.sleep(0.1)
            for form in forms(trap, receiver):
                refused = client.post("/jobs", json={"prompt": "Hi", "callback_url": form})
                assert (refused.status_code, refused.json()["error"]["code"]) == (422, "callback_refused"), form
                assert str(receiver.server_port) not in refused.text  # what is on the list is not told
            taken = client.post("/jobs", json={"prompt": "Hi", "callback_url": f"http://{receiver.host}/"})
            assert taken.status_code == 202
    assert trap.num_connections == before


def test_http_only_where_it_is_allowed_and_lists_are_exact() -> None:
    policy = Policy(("hooks.example", "[2606:2800:220::1]:8443", "10.1.0.0/16"), allow_http=False)
    assert policy.check("https://hooks.example/a/b?c=%20d").port == 443
    assert policy.check("https://hooks.example:443").host == "hooks.example"
    assert policy.check("https://[2606:2800:220::1]:8443/").port == 8443
    for url in ("http://hooks.example/", "https://hooks.example:444/", "https://a.hooks.example/", "https://hooks.example.evil/",
                "https://[2606:2800:220::1]/", "https://10.1.0.1/", "https://evil/?hooks.example"):  # fmt: skip
        with pytest.raises(InvalidRequest):
            policy.check(url)


def test_callbacks_need_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOPILOT_GPU_CALLBACK_HOSTS", "hooks.example")
    with pytest.raises(ValueError, match="ZOPILOT_GPU_CALLBACK_SECRET"):
        Settings(allow_anonymous=True)
    monkeypatch.setenv("ZOPILOT_GPU_CALLBACK_SECRET", SECRET)
    assert Settings(allow_anonymous=True).callback_hosts == ("hooks.example",)
