"""A load balancer without memory: each connection goes to a server that takes it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator, Sequence

__all__ = ["Balancer", "balancing"]


class Balancer:
    """Forwards TCP connections to ports of this machine.

    Args:
        ports: Tried in this order.
        turns: Begin with another one for each connection.

    Attributes:
        port: Where it listens.
        served: Which port each connection went to, in order.

    """

    def __init__(self, ports: Sequence[int], *, turns: bool = False) -> None:
        self._ports = list(ports)
        self._turns = turns
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.served: list[int] = []
        self._open: set[socket.socket] = set()
        self._silenced: set[socket.socket] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut every connection that is open, as a network would: without a goodbye."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Carry nothing more on connections that are open, and leave both sides in the dark."""
        self._silenced |= self._open

    def close(self) -> None:
        """Take no more connections, and cut those that are open."""
        self._closed.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            ports = list(self._ports)
            if self._turns:
                self._ports.append(self._ports.pop(0))
            threading.Thread(target=self._serve, args=(client, ports), daemon=True).start()

    def _serve(self, client: socket.socket, ports: Sequence[int]) -> None:
        with client:
            for port in ports:
                with contextlib.suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", port), timeout=2)
                    break
            else:
                return
            self.served.append(port)
            with server:
                self._open |= {client, server}
                with contextlib.suppress(OSError):
                    self._pump(client, server)
                self._open -= {client, server}

    def _pump(self, one: socket.socket, two: socket.socket) -> None:
        """Carry bytes both ways until either side ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(one, selectors.EVENT_READ, two)
            selector.register(two, selectors.EVENT_READ, one)
            while True:
                for key, _ in selector.select():
                    if one in self._silenced:
                        self._closed.wait()
                        return
                    data = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)


@contextlib.contextmanager
def balancing(*ports: int, turns: bool = False) -> Iterator[Balancer]:
    """A balancer for the time of a ``with`` block."""
    balancer = Balancer(ports, turns=turns)
    try:
        yield balancer
    finally:
        balancer.close()
