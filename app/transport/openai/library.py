"""Files and batches: the fold of their stream, what may happen to them, and how clients see them.

`Library` is pure; `Shelf` keeps one up to date with the log and changes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from app.events import catalogue as c
from app.events.codec import decode, new
from app.events.envelope import Event
from app.events.ids import public_id, public_request
from app.events.store import Append, Appended, Conflict, EventStore, StoreError

__all__ = ["ENDED", "STREAM", "TYPES", "Batch", "File", "Library", "Shelf", "batch_id", "file_id"]

STREAM = "batches"
"""The stream of all files and batches: few events, and one order for all that happens to them."""
TYPES = tuple(type for type in c.CATALOGUE if type.startswith(("file.", "batch.")))
ENDED = frozenset({"completed", "failed", "cancelled", "expired"})
"""States of batches that nothing follows."""
NS = 10**9


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file. ``created`` is in seconds since the epoch; ``object`` is the key of its object."""

    id: str
    name: str
    purpose: str
    bytes: int
    sha256: str
    object: str
    owner: str
    created: int

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        return {
            "id": file_id(self.id),
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch.

    Attributes:
        id: Its UUID.
        owner: The actor whose it is.
        input: The file with its lines.
        endpoint: What the lines ask for.
        window: The time they have, as it was said.
        expires: Its end, in ns since the epoch.
        metadata: Its sender's.
        state: As OpenAI has them.
        node: Who runs it; None: nobody yet.
        total: How many lines there are; 0 before they have been counted.
        completed: How many have ended well.
        failed: How many have ended badly.
        output: File with the results of those.
        error: File with the results of these.
        errors: Why it failed.
        times: When it came into its states, in seconds since the epoch.

    """

    id: str
    owner: str
    input: str
    endpoint: str
    window: str
    expires: int
    metadata: dict[str, Any]
    state: str = "validating"
    node: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output: str | None = None
    error: str | None = None
    errors: list[c.LineError] = []
    times: dict[str, int] = {}

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ENDED

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        errors = [
            {"code": e.code, "line": e.line, "message": e.message, "param": e.param}
            for e in self.errors
        ]
        states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
        return {
            "id": batch_id(self.id),
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": file_id(self.input),
            "completion_window": self.window,
            "status": self.state,
            "output_file_id": self.output and file_id(self.output),
            "error_file_id": self.error and file_id(self.error),
            "created_at": self.times["validating"],
            "expires_at": self.expires // NS,
            **{f"{state}_at": self.times.get(state) for state in (*states, "cancelled")},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata or None,
        }


def file_id(file: str) -> str:
    """Id of a file that clients see."""
    return public_id("file-", file)


def batch_id(batch: str) -> str:
    """Id of a batch that clients see."""
    return public_id("batch_", batch)


class Library:
    """All files and batches, oldest first; ``version`` is how far the fold is."""

    def __init__(self) -> None:
        self.version = 0
        self.files: dict[str, File] = {}
        self.batches: dict[str, Batch] = {}

    def apply(self, event: Event) -> None:
        """Fold one event of the stream."""
        self.version = event.version
        payload = decode(event)
        now = event.time // NS
        match payload:
            case c.FileCreated():
                self.files[payload.file] = _file(payload, now)
            case c.FileDeleted():
                self.files.pop(payload.file, None)
            case c.BatchCreated():
                self.batches[payload.batch] = _batch(payload, now)
            case c.BatchClaimed():
                self._change(payload.batch, node=payload.node)
            case c.BatchStarted():
                self._enter(payload.batch, "in_progress", now, total=payload.total)
            case c.BatchProgressed(completed=completed, failed=failed):
                self._change(payload.batch, completed=completed, failed=failed)
            case c.BatchCancelling():
                self._enter(payload.batch, "cancelling", now)
            case c.BatchFinalizing():
                self._enter(payload.batch, "finalizing", now)
            case c.BatchEnded():
                kept = ("completed", "failed", "output", "error", "errors")
                changes = {name: getattr(payload, name) for name in kept}
                self._enter(payload.batch, payload.state, now, **changes)

    def _change(self, id: str, **changes: Any) -> None:
        batch = self.batches.get(id)
        if batch is not None and not batch.ended:
            self.batches[id] = msgspec.structs.replace(batch, **changes)

    def _enter(self, id: str, state: str, now: int, **changes: Any) -> None:
        batch = self.batches.get(id)
        if batch is not None:
            self._change(id, state=state, times={**batch.times, state: now}, **changes)

    def file(self, public: str) -> File | None:
        """A file by the id that clients see."""
        return self.files.get(public_request(public)) if public.startswith("file-") else None

    def batch(self, public: str) -> Batch | None:
        """A batch by the id that clients see."""
        return self.batches.get(public_request(public)) if public.startswith("batch_") else None

    def reader(self, file: str) -> Batch | None:
        """A batch that has not ended and reads this file."""
        return next((b for b in self.batches.values() if b.input == file and not b.ended), None)


def _file(created: c.FileCreated, now: int) -> File:
    return File(
        id=created.file,
        name=created.name,
        purpose=created.purpose,
        bytes=created.bytes,
        sha256=created.sha256,
        object=created.object,
        owner=created.owner,
        created=now,
    )


def _batch(created: c.BatchCreated, now: int) -> Batch:
    return Batch(
        id=created.batch,
        owner=created.owner,
        input=created.input,
        endpoint=created.endpoint,
        window=created.window,
        expires=created.expires,
        metadata=created.metadata,
        times={"validating": now},
    )


class Shelf:
    """The library as the log has it, and changes to it."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self._library = Library()
        self._one = asyncio.Lock()

    async def look(self) -> Library:
        """The library with all that is committed now.

        Raises:
            StoreError: The log cannot be read.

        """
        async with self._one:
            while True:
                events = await self.store.fetch(after=self._library.version, stream=STREAM)
                for event in events:
                    self._library.apply(event)
                if not events:
                    return self._library

    async def change(
        self, decide: Callable[[Library], Sequence[c.Payload]], *, actor: str = "system"
    ) -> Library:
        """Append what ``decide`` returns for the library as it is; returns the library after it.

        It is asked again if something else happened meanwhile. Nothing is appended if there is
        nothing, or if it raises.

        Raises:
            StoreError: The log cannot be read or written.

        """
        while True:
            library = await self.look()
            version = library.version
            payloads = decide(library)
            if not payloads:
                return library
            events = [new(payload, actor=actor) for payload in payloads]
            append = Append(stream=STREAM, events=events, expected=version)
            outcome = await self.store.append(append)
            if isinstance(outcome, Appended):
                return await self.look()
            if not isinstance(outcome, Conflict):
                raise StoreError(f"the log refused it: {outcome}")
