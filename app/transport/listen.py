"""Take the port before anything slow happens, so that a busy one is reported at once."""

from __future__ import annotations

import errno
import socket

from app.config import ServerConfig
from app.errors import StartupError

__all__ = ["listen", "url_of"]

BACKLOG = 2048


def listen(config: ServerConfig) -> socket.socket:
    """Return a listening socket for the configured address.

    Raises:
        StartupError: The address is unknown or its port cannot be taken.

    """
    where = f"{config.host}:{config.port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartupError(
            f"Cannot listen on {where}: {error.strerror}",
            hint="Give an address of this machine with --host, such as 127.0.0.1 or 0.0.0.0",
        ) from None
    sock = socket.socket(family, kind, proto)
    try:
        # Lets a restart take the port back while old connections linger; a listener still holds it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _explain(error, where, config.port) from None
    sock.setblocking(False)
    return sock


def _explain(error: OSError, where: str, port: int) -> StartupError:
    if error.errno == errno.EADDRINUSE:
        return StartupError(
            f"Cannot listen on {where}: something else already does",
            hint=f"Stop it, or choose another port: everlog serve --port {port + 1}",
        )
    if error.errno == errno.EACCES:
        return StartupError(
            f"Cannot listen on {where}: not permitted",
            hint="Ports below 1024 need privileges; try --port 8000",
        )
    return StartupError(
        f"Cannot listen on {where}: {error.strerror}",
        hint="Give an address of this machine with --host, such as 127.0.0.1 or 0.0.0.0",
    )


def url_of(sock: socket.socket) -> str:
    """Return the address to open in a browser on this machine."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
