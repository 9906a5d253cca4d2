"""Where a callback may go. Knows URLs, the operator's list and which addresses are public; opens no connection.

A URL is refused unless it is written the one plain way, `https://host[:port]/path?query`, and its host is on the list. The name
is resolved by us, every address it has must be public or in a network on the list, and the connection goes to one of those:
nothing that reads the URL a second time, or resolves it a second time, can see another host.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from zopilot_gpu.errors import InvalidRequest

MAX_URL_CHARS = 2000
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:]{2,39}\])(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<rest>(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)"
)
_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_NOT_ASKED_FOR = tuple(
    ipaddress.IPv6Network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "2001::/32", "2002::/16", "fec0::/10")  # IPv4 inside IPv6
)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL that passed, in its parts; `address` is set where the host is one."""

    url: str
    host: str
    port: int
    address: Address | None


class Policy:
    """The operator's list: hosts (`name`, `name:port`, an address), and networks (`10.1.0.0/16`) that names may lead into.

    A host without a port stands for the usual one of its scheme. Nothing is a pattern. An address on the list may be called by
    that address, public or not; it opens no way for a name that leads to it.
    """

    def __init__(self, entries: tuple[str, ...], *, allow_http: bool) -> None:
        self._hosts = {entry.lower() for entry in entries if "/" not in entry}
        self._networks: list[Network] = [ipaddress.ip_network(entry) for entry in entries if "/" in entry]
        self._schemes = {"https": 443} | ({"http": 80} if allow_http else {})

    def check(self, url: str) -> Destination:
        """The destination that `url` names.

        Raises:
            InvalidRequest: 422; the sentence does not say what is on the list.
        """
        if not self._hosts:
            raise _refusal("this service sends no callbacks")
        found = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
        if found is None or found["scheme"] not in self._schemes:
            kinds = " or ".join(self._schemes)
            raise _refusal(f"must be a plain {kinds} URL: a host in lower case, no user, no fragment")
        usual = self._schemes[found["scheme"]]
        port = int(found["port"] or usual)
        host = found["host"].strip("[]")
        address = _address(found["host"])
        # NOTE: 127.1, 0x7f.1 and 2130706433 are addresses to a resolver; the last label of a name begins with a letter.
        if address is None and not (_NAME.fullmatch(host) and host.rpartition(".")[2][0].isalpha()):
            raise _refusal("has no valid host")
        listed = f"[{host}]" if ":" in host else host
        on_list = f"{listed}:{port}" in self._hosts or (port == usual and (host in self._hosts or listed in self._hosts))
        if port > 65535 or not on_list or urlsplit(url).hostname != host:
            raise _refusal("its host is not on this service's list")
        return Destination(url, host, port, address)

    def may_reach(self, address: Address) -> bool:
        """Whether a name may lead to this address: a public one, or one in a network on the list."""
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        if mapped is not None:
            address = mapped
        if any(address in network for network in self._networks if network.version == address.version):
            return True
        if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in _NOT_ASKED_FOR):
            return False
        odd = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
        return address.is_global and not odd and not address.is_link_local and not address.is_private


def _address(host: str) -> Address | None:
    try:
        return ipaddress.IPv6Address(host[1:-1]) if host.startswith("[") else ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(422, "callback_refused", f"callback_url: {reason}")
