"""A proxy that serves a server below a path, and takes the path off: `handle_path` of Caddy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["below"]


@contextlib.contextmanager
def below(path: str, port: int) -> Iterator[str]:
    """Serve what listens on ``port`` below ``path``; gives the URL, with a slash at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, path, port), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{path}/"
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept


def _accept(listener: socket.socket, path: str, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, path, port), daemon=True).start()


def _serve(client: socket.socket, path: str, port: int) -> None:
    """One request a connection, so that there is one head to rewrite; or one WebSocket."""
    with client, contextlib.suppress(OSError):
        data = b""
        while b"\r\n\r\n" not in data:
            piece = client.recv(65536)
            if not piece:
                return
            data += piece
        line, rest = data.split(b"\r\n", 1)
        method, target, version = line.split(b" ")
        if not target.startswith(path.encode() + b"/"):
            client.sendall(
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            return
        if b"\r\nupgrade:" not in rest.lower():
            rest = rest.replace(b"Connection: keep-alive", b"Connection: close")
        line = b" ".join([method, target.removeprefix(path.encode()), version])
        with socket.create_connection(("127.0.0.1", port)) as server:
            server.sendall(line + b"\r\n" + rest)
            threading.Thread(target=_pipe, args=(client, server), daemon=True).start()
            _pipe(server, client)


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
