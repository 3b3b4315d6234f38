"""Which pages may talk to this server: checks of the Host and Origin headers.

A browser sends cookies and reaches loopback addresses on behalf of any page, so a WebSocket must
look at Origin itself (cross-site WebSocket hijacking), and a server on a loopback address must
look at Host (DNS rebinding: a name of the attacker's that suddenly means 127.0.0.1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["Gate", "is_loopback"]

_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def _host(netloc: str) -> tuple[str, int | None]:
    """Name and explicit port of a network location; a malformed one gives an empty name."""
    try:
        parts = urlsplit(f"//{netloc}")
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "", None


def is_loopback(name: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Gate:
    """Decides by the headers of a request.

    Args:
        host: Address the server listens on.
        origins: Origins of other pages that may connect, such as ``https://chat.example.org``.
        scripts: Origins of other pages whose scripts may make HTTP requests; ``*`` is any, but for
            requests that have no key.

    Attributes:
        scripts: The same, as browsers write them.

    """

    def __init__(self, host: str, origins: Sequence[str], scripts: Sequence[str] = ()) -> None:
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self.scripts = [origin.rstrip("/").lower() for origin in scripts]
        self._names = {_host(urlsplit(origin).netloc)[0] for origin in self._origins}
        self._local = is_loopback(host)

    def host(self, host: str | None) -> bool:
        """Whether the Host header may name this server."""
        if not self._local or host is None or "*" in self._origins:
            return True
        name, _ = _host(host)
        return is_loopback(name) or name in self._names

    def origin(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of ``origin`` may open a WebSocket; programs send no Origin."""
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return True
        parts = urlsplit(origin.lower())
        name, port = _host(parts.netloc)
        own, own_port = _host((host or "").lower())
        default = _PORTS.get(parts.scheme)
        return bool(name) and name == own and (port or default) == (own_port or default)

    def script(self, origin: str | None, host: str | None) -> bool:
        """Whether a page of ``origin`` may make HTTP requests that have no key."""
        return self.origin(origin, host) or (origin or "").lower() in self.scripts
