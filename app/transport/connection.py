"""One client: its commands go to the runtime, the threads it opened come from the log.

A follower of a thread holds a cursor and nothing else. Its task reads what is committed after
the cursor, writes it, and waits while the client reads slowly; what is not sent stays in the
log. Closing a socket cancels nothing but its followers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec
from websockets.exceptions import ConnectionClosed

from app.chat import commands
from app.chat.errors import Refused
from app.chat.runtime import Runtime
from app.errors import UNEXPLAINED, EverlogError, InputError
from app.events.envelope import thread_stream
from app.events.store import EventStore, StoreClosed, StoreError
from app.projections import state as projection
from app.transport import protocol as wire
from app.transport.access import LOCAL, Owners
from app.transport.auth import Auth, Denied, Principal, bearer
from app.transport.items import Delivery, ItemCache
from app.transport.protocol import CloseCode, FrameError, RefusalCode, encode
from app.transport.socket import Socket

__all__ = ["Connection", "Edge"]

log = logging.getLogger(__name__)

HELLO_SECONDS = 10
FETCH = 128
"""Events a follower reads at once: the most it holds for a client that does not read."""
MAX_THREADS = 64
MAX_BAD = 20
"""Frames in a row that may be bad; one is forgiven every second."""


class Edge:
    """What all connections share."""

    def __init__(
        self,
        store: EventStore,
        runtime: Runtime,
        auth: Auth,
        welcome: Callable[[str], wire.Welcome],
        standing: Callable[[], wire.Notice | None] = lambda: None,
    ) -> None:
        self.store = store
        self.runtime = runtime
        self.auth = auth
        self.welcome = welcome
        self.standing = standing
        self.owners = Owners(store)
        self.cache = ItemCache()
        self.behind: dict[Delivery, None] = {}
        """The followers that have not caught up."""
        self.followers = 0

    async def serve(self, socket: Socket) -> None:
        """Talk to one client until it is gone."""
        await Connection(socket, self).run()


class Connection:
    """The server's side of one socket."""

    def __init__(self, socket: Socket, edge: Edge) -> None:
        self._socket = socket
        self._edge = edge
        self._principal = Principal(name=LOCAL)
        self._opened: dict[str, asyncio.Task[None]] = {}
        self._bad = 0.0
        self._bad_since = 0.0

    async def run(self) -> None:
        """Greet, then take frames until the socket closes."""
        if not await self._greet():
            return
        with self._edge.auth.present(self._principal, self._expelled):
            await self._serve()

    @property
    def _user(self) -> str:
        return self._principal.user

    def _expelled(self) -> None:
        self._socket.dismiss(CloseCode.KEY, "this API key is of no use any more")

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            try:
                while True:
                    await self._take(await self._socket.recv(), group)
            except ConnectionClosed:
                pass
            finally:
                for follower in self._opened.values():
                    follower.cancel()
                await self._left(list(self._opened))

    async def _greet(self) -> bool:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                message = await self._socket.recv()
            frame = wire.decode_client(message)
        except TimeoutError:
            await self._socket.close(CloseCode.POLICY, "no hello")
            return False
        except FrameError as error:
            await self._refuse(error.code, error.reason, field=error.field, id=error.id)
            await self._socket.close(CloseCode.POLICY, "hello first")
            return False
        if not isinstance(frame, wire.Hello):
            await self._socket.close(CloseCode.POLICY, "hello first")
            return False
        if frame.protocol != wire.PROTOCOL:
            await self._socket.close(CloseCode.PROTOCOL, f"this server speaks {wire.PROTOCOL}")
            return False
        try:
            auth = self._edge.auth
            self._principal = auth.identify(frame.token or bearer(self._socket.authorization))
            auth.check(self._principal, "chat")
        except Denied as denied:
            await self._socket.close(CloseCode.KEY, denied.message)
            return False
        await self._socket.write(encode(self._edge.welcome(self._user)))
        self._socket.user = self._user
        notice = self._edge.standing()
        if notice is not None:
            await self._socket.write(encode(notice))
        return True

    # ------------------------------------------------------------------------- frames in

    async def _take(self, message: str | bytes, group: asyncio.TaskGroup) -> None:
        if isinstance(message, bytes):
            await self._refuse("unsupported", "binary frames are not supported by this server")
            return await self._strike()
        try:
            frame = wire.decode_client(message)
        except FrameError as error:
            await self._refuse(error.code, error.reason, field=error.field, id=error.id)
            return await self._strike()
        match frame:
            case wire.Open():
                await self._open(frame, group)
            case wire.Close():
                await self._close(frame.thread)
            case wire.Ping():
                await self._pong(frame.n)
            case wire.Hello():
                await self._refuse("bad_frame", "hello was said already")
            case _:
                await self._command(frame)
        return None

    async def _strike(self) -> None:
        """Count a bad frame; end the connection of a client that sends little else."""
        now = time.monotonic()
        self._bad = max(0.0, self._bad - (now - self._bad_since)) + 1
        self._bad_since = now
        if self._bad > MAX_BAD:
            await self._socket.close(CloseCode.POLICY, "too many bad frames")

    async def _refuse(
        self,
        code: RefusalCode,
        message: str,
        *,
        field: str | None = None,
        id: str | None = None,
        thread: str | None = None,
    ) -> None:
        frame = wire.Refuse(id=id, code=code, message=message, field=field, thread=thread)
        await self._socket.write(encode(frame))

    async def _pong(self, n: int) -> None:
        store = self._edge.store
        heads = {t: await store.stream_version(thread_stream(t)) for t in self._opened}
        await self._socket.write(encode(wire.Pong(n=n, heads=heads)))

    async def _command(self, frame: wire.Command) -> None:
        """Carry out a command; exactly one ``ack`` or ``refuse`` answers it."""
        try:
            if isinstance(frame, wire.Post):
                self._edge.auth.spend(self._principal)
            ack = await _carry_out(self._edge.runtime, frame, self._user)
        except InputError as error:
            return await self._refuse("bad_field", error.reason, field=error.field, id=frame.id)
        except Refused as error:
            return await self._refuse(error.code, error.message, id=frame.id)
        except Denied as error:
            return await self._refuse("limit", error.message, id=frame.id)
        except StoreError as error:
            return await self._refuse("unavailable", error.message, id=frame.id)
        except EverlogError as error:
            return await self._refuse("internal", error.message, id=frame.id)
        except ConnectionClosed:
            raise
        except Exception:
            log.exception("Command %s failed", frame.id)
            return await self._refuse("internal", UNEXPLAINED, id=frame.id)
        done = wire.Ack(id=frame.id, thread=frame.thread, version=ack.version, seq=ack.seq)
        return await self._socket.write(encode(done))

    # ------------------------------------------------------------------------- following

    async def _open(self, frame: wire.Open, group: asyncio.TaskGroup) -> None:
        thread = frame.thread
        again = self._opened.pop(thread, None)
        if again is not None:
            again.cancel()
        elif not await self._join(thread):
            return
        self._opened[thread] = group.create_task(self._follow(frame))

    async def _join(self, thread: str) -> bool:
        """Say to the runtime that the thread is looked at; False if it may not be."""
        code: RefusalCode = "limit"
        message = f"at most {MAX_THREADS} threads may be open"
        if len(self._opened) < MAX_THREADS:
            try:
                await self._edge.runtime.connected(thread, self._user)
                return True
            except Refused as error:
                code, message = error.code, error.message
        await self._refuse(code, message, field="thread", thread=thread)
        return False

    async def _close(self, thread: str) -> None:
        follower = self._opened.pop(thread, None)
        if follower is not None:
            follower.cancel()
            await self._left([thread])

    async def _left(self, threads: list[str]) -> None:
        for thread in threads:
            try:
                await self._edge.runtime.disconnected(thread, self._user)
            except Exception:
                log.exception("Leaving thread %s failed", thread)

    async def _foreign(self, thread: str) -> None:
        """Refuse a thread that somebody else began after it was opened here."""
        message = "this conversation belongs to somebody else"
        await self._refuse("forbidden", message, field="thread", thread=thread)

    async def _follow(self, frame: wire.Open) -> None:
        """Send a thread's events after the client's cursor, for ever."""
        delivery: Delivery | None = None
        self._edge.followers += 1
        try:
            cursor = await self._start(frame)
            delivery = Delivery(frame.thread, cursor, self._edge.cache)
            await self._pump(delivery)
        except (ConnectionClosed, StoreClosed):
            pass
        except StoreError as error:  # the client comes again, from where it was
            log.warning("Thread %s cannot be read: %s", frame.thread, error)
            await self._socket.close(CloseCode.INTERNAL, "the log cannot be read now")
        except Exception:
            log.exception("Following thread %s failed", frame.thread)
            await self._socket.close(CloseCode.INTERNAL, "internal error")
        finally:
            self._edge.followers -= 1
            if delivery is not None:
                self._edge.behind.pop(delivery, None)

    async def _start(self, frame: wire.Open) -> int:
        """Return the version to go on after; a cursor that means nothing here is reset."""
        store, thread = self._edge.store, frame.thread
        if frame.after == 0:
            return 0
        if frame.incarnation is not None and frame.incarnation != store.incarnation:
            reason = "incarnation"
        elif frame.after > await store.stream_version(thread_stream(thread)):
            reason = "ahead"
        else:
            return frame.after
        state = await projection.load(store, thread) or projection.empty(thread)
        reset = wire.Reset(
            thread=thread, version=state.version, reason=reason, state=msgspec.Raw(encode(state))
        )
        await self._socket.write(encode(reset))
        return state.version

    async def _pump(self, delivery: Delivery) -> None:
        store, write = self._edge.store, self._socket.write
        stream, behind = thread_stream(delivery.thread), self._edge.behind
        behind[delivery] = None
        live = False
        while True:
            events = await store.fetch(
                after=delivery.cursor, stream=stream, limit=FETCH, fresh=not live
            )
            if not events:
                if not live:
                    live = True
                    await write(encode(wire.Live(thread=delivery.thread, version=delivery.cursor)))
                behind.pop(delivery, None)
                await store.wait(after=delivery.cursor, stream=stream)
                behind[delivery] = None
                continue
            owners = self._edge.owners  # who began it is told by the first events, just read
            if delivery.cursor == 0 and not await owners.allows(
                delivery.thread, self._user, fresh=False
            ):
                return await self._foreign(delivery.thread)
            for data in delivery.frames(events):
                await write(data)
            if len(events) == FETCH:
                await asyncio.sleep(0)  # a long catch-up from memory leaves room for others


def _carry_out(runtime: Runtime, frame: wire.Command, user: str) -> Awaitable[commands.Ack]:
    """Give a command to the runtime; the fields of a frame and of its command are the same."""
    fields = msgspec.structs.asdict(frame)
    match frame:
        case wire.Post():
            return runtime.post(commands.PostCommand(**fields), user)
        case wire.Stop():
            return runtime.stop(commands.StopCommand(**fields), user)
        case wire.Rename():
            return runtime.rename(commands.RenameCommand(**fields), user)
        case wire.Delete():
            return runtime.delete(commands.DeleteCommand(**fields), user)
        case wire.Feedback():
            return runtime.feedback(commands.FeedbackCommand(**fields), user)
