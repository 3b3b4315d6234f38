"""One batch, run on this node: its lines become requests, their ends become files.

Nothing is kept but in the log. The requests of a line have ids made of the batch's and the line's
number, and each is appended only if its stream is empty. So whoever runs a batch again, after a
crash or on another node, finds what was queued before and what became of it, and no line is run
twice. The files are made in the order of the lines, from what the log has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from app.events import catalogue as c
from app.events.codec import new
from app.events.envelope import request_stream
from app.events.objects import ObjectError, ObjectMissing, Objects
from app.events.store import NO_STREAM, Append, Appended, Conflict, StoreError
from app.transport.openai import errors, lines
from app.transport.openai.api import MAX_BODY, Api
from app.transport.openai.call import Call
from app.transport.openai.errors import ApiError
from app.transport.openai.library import Batch, Library, Shelf, batch_id
from app.transport.openai.lines import Line
from app.transport.openai.results import Results, texts

__all__ = ["MAX_LINES", "Run", "Taken"]

log = logging.getLogger(__name__)

MAX_LINES = 50_000
"""Most lines of a batch; OpenAI's."""
MAX_ERRORS = 100
"""Most lines that cannot be read of which it is told why."""
AHEAD = 8
"""Results that wait for earlier ones, for each request that may be under way."""
REPORT_SECONDS = 1.0
"""Least time between two events that say how far it is, if a hundredth was done meanwhile."""
SLOW_REPORT_SECONDS = 15.0
"""The same if it was less."""

LOST = c.LineError(code="file_missing", message="the input file is gone")
REVOKED = c.LineError(code="invalid_api_key", message="the API key of this batch was revoked")

Result = dict[str, Any]


class Taken(Exception):
    """Another node runs this batch now, or it has ended."""


class Run:
    """Runs a batch.

    Args:
        api: The server.
        shelf: Files and batches.
        objects: Where files are.
        batch: As it is.
        node: This node.
        limit: Most lines under way at once.

    """

    def __init__(
        self, api: Api, shelf: Shelf, objects: Objects, batch: Batch, *, node: str, limit: int
    ) -> None:
        self.batch = batch
        self._api, self._shelf, self._objects = api, shelf, objects
        self._node, self._limit = node, limit
        self._cancelled = batch.state == "cancelling"
        self._expired = self._revoked = False
        self._open: set[Call] = set()
        self._completed = self._failed = 0

    @property
    def over(self) -> bool:
        """Whether nothing new may begin."""
        return self._cancelled or self._expired or self._revoked

    async def cancel(self) -> None:
        """End it: what is under way is cancelled."""
        if not self._cancelled:
            self._cancelled = True
            await self._cut()

    async def revoke(self) -> None:
        """End it as failed: whoever began it may do nothing any more."""
        if not self._revoked:
            self._revoked = True
            await self._cut()

    async def run(self) -> None:
        """Run it to its end.

        Raises:
            Taken: Somebody else does.
            StoreError: The log or the objects failed; it can be run again.

        """
        if self.batch.state == "validating" and not await self._begin():
            return
        good, bad = Results(), Results()
        with contextlib.closing(good), contextlib.closing(bad):
            helpers = [asyncio.create_task(each) for each in (self._report(), self._expire())]
            lost: list[c.LineError] = []
            try:
                async with contextlib.aclosing(self._results()) as results:
                    async for result in results:
                        (good if lines.answered(result) else bad).add(result)
            except ObjectMissing:
                lost.append(LOST)
            except ObjectError as error:
                lost.append(self._unreadable(error))
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
            await self._end(good, bad, [*lost, REVOKED] if self._revoked else lost)

    # ---------------------------------------------------------------------------- begin

    async def _begin(self) -> bool:
        """Look at all lines; returns whether they can be run."""
        errors, total = await self._validate()
        if errors:
            ended = c.BatchEnded(batch=self.batch.id, state="failed", errors=errors)
            await self._change(ended)
            return False
        await self._change(c.BatchStarted(batch=self.batch.id, total=total))
        return True

    async def _validate(self) -> tuple[list[c.LineError], int]:
        """What is wrong with the lines, and how many there are."""
        errors: list[c.LineError] = []
        first: dict[str, int] = {}
        total = 0
        try:
            async for number, text in self._texts():
                total += 1
                error = _fault(text, number, self.batch.endpoint, first)
                if error is not None:
                    errors.append(error)
                if len(errors) == MAX_ERRORS:
                    return errors, total
                if total > MAX_LINES:
                    message = f"a batch has at most {MAX_LINES:,} lines"
                    return [c.LineError(code="too_many_tasks", message=message)], total
                if not total % 100:
                    await asyncio.sleep(0)
        except ObjectMissing:
            errors.append(LOST)
        except ObjectError as error:
            errors.append(self._unreadable(error))
        if not total and not errors:
            errors.append(c.LineError(code="empty_file", message="the input file has no lines"))
        return errors, total

    def _unreadable(self, error: ObjectError) -> c.LineError:
        """Why nothing more comes of a batch whose file cannot be read; else it is tried again."""
        if not self.over and time.time_ns() < self.batch.expires:
            raise error
        return c.LineError(code="file_unreadable", message="the input file cannot be read")

    async def _texts(self) -> AsyncGenerator[tuple[int, bytes], None]:
        file = (await self._shelf.look()).files.get(self.batch.input)
        if file is None:
            raise ObjectMissing("the input file is gone")
        async for each in texts(self._objects, file, most=MAX_BODY):
            yield each

    # ---------------------------------------------------------------------------- lines

    async def _results(self) -> AsyncGenerator[Result, None]:
        """Results in the order of the lines; as many lines under way as may be."""
        free = asyncio.Semaphore(self._limit)
        waiting: deque[asyncio.Task[Result | None]] = deque()
        try:
            async for number, text in self._texts():
                try:
                    line = lines.read(text, number, url=self.batch.endpoint)
                except ApiError:  # of a batch that was cancelled before its lines were looked at
                    continue
                await free.acquire()
                task = asyncio.create_task(self._line(line))
                task.add_done_callback(lambda _: free.release())
                waiting.append(task)
                while waiting and (waiting[0].done() or len(waiting) >= AHEAD * self._limit):
                    result = await waiting.popleft()
                    if result is not None:
                        yield result
            while waiting:
                result = await waiting.popleft()
                if result is not None:
                    yield result
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _line(self, line: Line) -> Result | None:
        """Run a line; returns its result, or None if it was cancelled."""
        try:
            result = await self._done(line)
        except StoreError:
            raise
        except Exception as error:  # else the batch would be tried again, and again
            log.exception("line %d of batch %s failed", line.number, self.batch.id)
            result = lines.failure(f"{self.batch.id}/{line.number}", line, errors.of(error))
        if result is not None:
            good = lines.answered(result)
            self._completed += good
            self._failed += not good
        return result

    async def _done(self, line: Line) -> Result | None:
        batch, name = self.batch, f"{self.batch.id}/{line.number}"
        about = {"batch": batch_id(batch.id), "line": line.number, "custom_id": line.custom_id}
        try:
            planned = lines.plan(
                line,
                self._api.choose,
                created=batch.times["validating"],
                deadline=batch.expires,
                origin=about,
            )
            names = [_request(batch.id, line.number, i) for i in range(len(planned.requests))]
            requests = lines.named(planned.requests, names)
            scoring = await self._api.scoring(requests, ids=planned.ids)
        except ApiError as error:
            return lines.failure(name, line, error)
        answer = planned.answer(requests, scoring.get("spell"), scoring.get("prompts", ()))
        if not await self._queue(requests):
            return self._undone(name, line)

        async def feed(index: int, payload: c.Payload) -> None:
            answer.feed(index, payload)

        call = Call(self._api.store, requests, actor=batch.owner, detached=True, queued_before=True)
        try:
            with self._under_way(call):
                if self.over:
                    await call.cancel()
                await call.follow(feed)
        except ApiError as error:
            if self.over and error.code in ("cancelled", "timeout"):
                return self._undone(name, line)
            if error.code == "timeout" and time.time_ns() >= batch.expires:
                return self._undone(name, line, expired=True)
            return lines.failure(name, line, error, names[0])
        return lines.success(name, line, names[0], answer.body())

    def _undone(self, name: str, line: Line, *, expired: bool = False) -> Result | None:
        if self._cancelled and not expired:
            return None
        if self._revoked and not expired:
            return lines.undone(name, line, REVOKED.code, REVOKED.message)
        message = "the line was not done before the end of the batch's completion_window"
        return lines.undone(name, line, "batch_expired", message)

    async def _queue(self, requests: list[c.RequestQueued]) -> bool:
        """Append what is not in the log yet; False: nothing is, and nothing new may begin."""
        store = self._api.store
        if self.over:
            streams = [request_stream(each.request) for each in requests]
            if not any([await store.stream_version(stream) for stream in streams]):
                return False
        appends = [
            Append(
                stream=request_stream(each.request),
                events=[new(each, actor=self.batch.owner, request=each.request)],
                expected=NO_STREAM,
            )
            for each in requests
        ]
        for outcome in await store.append_many(appends):
            if not isinstance(outcome, Appended | Conflict):
                raise StoreError(f"the log refused the request: {outcome}")
        return True

    @contextlib.contextmanager
    def _under_way(self, call: Call) -> Iterator[None]:
        self._open.add(call)
        try:
            yield
        finally:
            self._open.discard(call)

    # ------------------------------------------------------------------------------ end

    async def _expire(self) -> None:
        await asyncio.sleep(max(0.0, self.batch.expires / 1e9 - time.time()))
        self._expired = True
        await self._cut()

    async def _cut(self) -> None:
        for call in list(self._open):
            await call.cancel()

    async def _report(self) -> None:
        """Say in the log now and then how far it is."""
        said, at = self.batch.completed + self.batch.failed, time.monotonic()
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            done, now = self._completed + self._failed, time.monotonic()
            total = (await self._shelf.look()).batches[self.batch.id].total
            if done > said and (done - said >= total / 100 or now - at > SLOW_REPORT_SECONDS):
                said, at = done, now
                progressed = c.BatchProgressed(
                    batch=self.batch.id, completed=self._completed, failed=self._failed
                )
                with contextlib.suppress(StoreError, Taken):  # whoever matters will notice
                    await self._change(progressed)

    async def _end(self, good: Results, bad: Results, lost: list[c.LineError]) -> None:
        id = self.batch.id
        if not self.over and not lost:
            await self._change(c.BatchFinalizing(batch=id))
        files: list[c.FileCreated] = []
        ids: dict[str, str] = {}
        for kind, results in (("output", good), ("error", bad)):
            file = str(uuid.uuid5(uuid.UUID(id), kind))
            name = f"{batch_id(id)}_{kind}.jsonl"
            created = await results.store(self._objects, self.batch, file, name)
            if created is not None:
                files.append(created)
                ids[kind] = file
        state = "cancelled" if self._cancelled else "expired" if self._expired else "completed"
        ended = c.BatchEnded(
            batch=id,
            state="failed" if lost else state,
            errors=lost,
            completed=self._completed,
            failed=self._failed,
            output=ids.get("output"),
            error=ids.get("error"),
        )
        await self._change(*files, ended)

    async def _change(self, *payloads: c.Payload) -> None:
        """Append this, if the batch is ours.

        Raises:
            Taken: It is not.

        """

        def decide(library: Library) -> tuple[c.Payload, ...]:
            batch = library.batches.get(self.batch.id)
            if batch is None or batch.ended or batch.node != self._node:
                raise Taken
            if batch.state == "cancelling" and _begins(payloads):
                return ()  # it ends instead
            return payloads

        await self._shelf.change(decide)


def _begins(payloads: tuple[c.Payload, ...]) -> bool:
    return isinstance(payloads[0], c.BatchStarted | c.BatchFinalizing)


def _fault(text: bytes, number: int, endpoint: str, first: dict[str, int]) -> c.LineError | None:
    """What is wrong with a line; ``first`` has the number of each ``custom_id`` so far."""
    try:
        if len(text) > MAX_BODY:
            raise ApiError(400, f"the line is longer than {MAX_BODY} bytes", code="too_long")
        line = lines.read(text, number, url=endpoint)
    except ApiError as error:
        code = error.code or "invalid_request"
        return c.LineError(code=code, message=error.message, line=number, param=error.param)
    other = first.setdefault(line.custom_id, number)
    if other == number:
        return None
    message = f"custom_id {line.custom_id!r} is that of line {other} too"
    return c.LineError(code="duplicate_custom_id", message=message, line=number, param="custom_id")


def _request(batch: str, line: int, index: int) -> str:
    """Id of a line's request: the same whoever makes it."""
    return str(uuid.uuid5(uuid.UUID(batch), f"{line}/{index}"))
