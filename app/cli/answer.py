"""The client side of ``ask``: post, follow the run that answers, and sum it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import msgspec

from app.cli.replay import Screen, Script
from app.cli.root import EXIT_INTERRUPTED
from app.errors import EverlogError, InputError
from app.events.catalogue import Usage
from app.events.ids import is_id, uuid7
from app.events.lifecycle import TERMINAL
from app.projections.state import ThreadState, apply, empty
from app.transport.client import Client
from app.transport.items import to_event
from app.transport.protocol import Item, Reset

__all__ = ["Answer", "answer"]

STOP_SECONDS = 5.0
PATIENCE = 60.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` prints.

    ``finish_reason`` is ``stop`` or ``length`` of the last request, else how it or the run ended
    (``cancelled``, ``failed``, ``stopped``, ``interrupted``); without any request it is ``stop``.
    """

    thread: str
    request: str | None
    text: str
    finish_reason: str
    usage: Usage | None
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether it ended as it should."""
        return self.finish_reason in ("stop", "length")


async def answer(
    url: str,
    given: str | None,
    text: str,
    params: dict[str, Any],
    show: Callable[[str, str], None],
    *,
    notes: bool = False,
    key: str | None = None,
) -> Answer:
    """Ask the server at ``url`` and return the whole answer; ``show`` gets it as it comes.

    Args:
        url: Of the server.
        given: Conversation to go on with: an id, or a unique beginning of one; None: a new one.
        text: What to ask.
        params: Sampling parameters by name.
        show: Takes text and its style.
        notes: Also show what the service did beside it.
        key: An API key, where the server needs one.

    Raises:
        EverlogError: There is no server, or it refuses.

    """
    async with Client(url, patience=PATIENCE, token=key) as client:
        thread = await _resolve(url, given, key) if given else uuid7()
        message = uuid7()
        ack = await client.post(thread, text, message=message, params=params or None)
        watch = asyncio.ensure_future(_watch(client, thread, message, ack.version - 1, show, notes))
        try:
            return await asyncio.shield(watch)
        except asyncio.CancelledError:  # Ctrl-C: closing a socket stops nothing, so say it
            async with asyncio.timeout(STOP_SECONDS):
                await client.stop(thread)
                await watch
            raise SystemExit(EXIT_INTERRUPTED) from None
        finally:
            watch.cancel()


async def _resolve(url: str, given: str, key: str | None) -> str:
    """Return the id of the one conversation of the server that begins with ``given``."""
    if is_id(given):
        return given
    import urllib.request

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}/api/threads?limit=200", headers=headers)

    def fetch() -> bytes:
        with urllib.request.urlopen(request, timeout=10) as response:
            body: bytes = response.read()
            return body

    items = msgspec.json.decode(await asyncio.to_thread(fetch))["items"]
    found = [item["id"] for item in items if item["id"].startswith(given)]
    if not found:
        raise InputError(
            f"There is no conversation {given!r} among the latest",
            field="--thread",
            hint="List them with: everlog threads",
        )
    if len(found) > 1:
        raise InputError(
            f"{given!r} begins the ids of {len(found)} conversations",
            field="--thread",
            hint=f"Give more characters; the latest are {', '.join(found[:3])}",
        )
    return str(found[0])


async def _watch(
    client: Client,
    thread: str,
    message: str,
    after: int,
    show: Callable[[str, str], None],
    notes: bool,
) -> Answer:
    """Follow the thread after a version, to the end of the run that answers ``message``."""
    state, script, screen = empty(thread), Script(), Screen(show)
    run: str | None = None
    async with aclosing(client.follow(thread, after=after)) as items:
        async for item in items:
            if isinstance(item, Reset):
                raise EverlogError(
                    "The server's log was replaced while it answered", hint="Ask again."
                )
            if not isinstance(item, Item):
                continue
            event = to_event(item, thread)
            apply(state, event)
            if item.type == "run.started" and state.runs[-1].message == message:
                run = item.run
            if item.run == run:
                for beat in script.beats(event):
                    if notes or beat.kind != "note":
                        screen.show(beat)
            if run is not None and _ended(state, run):
                screen.end()
                return _answer(state, run)
    raise EverlogError("The server ended the conversation")


def _ended(state: ThreadState, run: str) -> bool:
    """Whether the run has ended, and its requests, which may outlive it."""
    found = state.index.runs.get(run)
    return (
        found is not None
        and found.ended is not None
        and all(r.state in TERMINAL for r in state.requests if r.run == run)
    )


def _answer(state: ThreadState, run: str) -> Answer:
    ended = state.index.runs[run]
    messages = [m for m in state.messages if m.run == run and m.role == "assistant"]
    text = "\n\n".join(m.content for m in messages if m.status != "removed" and m.level != "error")
    requests = [r for r in state.requests if r.run == run]
    last = requests[-1] if requests else None
    reason = "stop"
    if ended.status not in ("completed", "interrupted"):
        reason = ended.status
    elif last is not None:
        reason = last.reason or last.state
    elif ended.status == "interrupted":
        reason = "interrupted"
    error = ended.error.message if ended.error else (last.message if last else ended.reason)
    return Answer(
        thread=state.id,
        request=last.id if last else None,
        text=text,
        finish_reason=reason,
        usage=last.usage if last else None,
        error=None if reason in ("stop", "length") else error,
    )
