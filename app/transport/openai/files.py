"""``/v1/files``: what batches read and write. The log says what they are, objects hold it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from app.events import catalogue as c
from app.events.ids import uuid7
from app.events.objects import Objects
from app.transport.auth import Principal, authenticate
from app.transport.openai.api import Api, json
from app.transport.openai.errors import ApiError, refusal
from app.transport.openai.library import File, Library, Shelf, file_id
from app.transport.openai.multipart import Begin, End, Form
from app.transport.openai.paging import page

__all__ = ["Files", "shown"]

MAX_FIELD = 4096
"""Most bytes of a form's field that is no file."""
MAX_FIELDS = 64
"""Most fields of a form, however often and whatever they are called."""
PIECE_SECONDS = 60.0
"""Longest time until the next piece of a form comes."""
MAX_NAME = 255
MAX_LIST = 10_000
"""Most files of a page; OpenAI's, and what it is without a ``limit``."""
PURPOSE = "batch"


class Files:
    """The endpoints under ``/v1/files``."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @property
    def _shelf(self) -> Shelf:
        return self._api.source.shelf

    @property
    def _objects(self) -> Objects:
        return self._api.source.objects

    async def create(self, request: Request) -> Response:
        """Store a file."""
        self._api.source.calls.admit()
        principal = await authenticate(request)
        form = Form(request.headers.get("content-type"))
        upload = _Upload(form, request.stream(), self._api.source.config.api.max_file)
        file = uuid7()
        key = f"files/{file}"
        fields = await upload.fields()
        if upload.name is None:
            raise refusal("file", "file is missing", code="missing_required_parameter")
        stored = await self._objects.put(key, upload.content())
        try:
            fields |= await upload.fields()
            if fields.get("purpose") != PURPOSE:
                raise refusal("purpose", f"purpose must be {PURPOSE!r}: files are for batches")
            if not stored.size:
                raise refusal("file", "the file is empty")
            created = c.FileCreated(
                file=file,
                name=upload.name[:MAX_NAME] or "input.jsonl",
                purpose=PURPOSE,
                bytes=stored.size,
                sha256=stored.sha256 or "",
                object=key,
                owner=principal.actor,
            )
            library = await self._shelf.change(lambda _: [created], actor=principal.actor)
        except BaseException:
            with contextlib.suppress(Exception):
                await asyncio.shield(self._objects.delete(key))
            raise
        unused = [name for name in fields if name != "purpose"]
        return json(library.files[file].shown(), unused=unused)

    async def list(self, request: Request) -> Response:
        """Files of the sender, latest first."""
        principal = await authenticate(request)
        library = await self._shelf.look()
        purpose = request.query_params.get("purpose")
        found = [
            file.shown()
            for file in library.files.values()
            if shown(file.owner, principal) and purpose in (None, file.purpose)
        ]
        return json(page(found, request.query_params, most=MAX_LIST, usual=MAX_LIST))

    async def retrieve(self, request: Request) -> Response:
        """What a file is."""
        return json((await self._find(request)).shown())

    async def content(self, request: Request) -> Response:
        """What is in it, or where it can be fetched."""
        file = await self._find(request)
        if await self._objects.stat(file.object) is None:
            raise ApiError(404, f"the content of {file_id(file.id)} is gone", code="not_found")
        if seconds := self._api.source.config.objects.presign_seconds:
            url = await self._objects.presign(
                file.object, seconds=seconds, filename=file.name, mime="application/jsonl"
            )
            if url is not None:
                return RedirectResponse(url, headers={"cache-control": "no-store"})
        return StreamingResponse(
            self._objects.get(file.object, sha256=file.sha256),
            media_type="application/jsonl",
            headers={"content-length": str(file.bytes)},
        )

    async def delete(self, request: Request) -> Response:
        """Forget it."""
        principal = await authenticate(request)
        file = await self._find(request)

        def decide(library: Library) -> Sequence[c.Payload]:
            if library.reader(file.id) is not None:
                raise ApiError(409, "a batch that has not ended reads this file", code="in_use")
            return [c.FileDeleted(file=file.id)] if file.id in library.files else []

        decide(await self._shelf.look())
        # The content first: who is cut short here, or finds its place away, can ask again.
        await self._objects.delete(file.object)
        await self._shelf.change(decide, actor=principal.actor)
        return json({"id": file_id(file.id), "object": "file", "deleted": True})

    async def _find(self, request: Request) -> File:
        principal = await authenticate(request)
        public: str = request.path_params["id"]
        file = (await self._shelf.look()).file(public)
        if file is None or not shown(file.owner, principal):
            raise ApiError(404, f"there is no file {public!r}", param="id", code="not_found")
        return file


def shown(owner: str, principal: Principal) -> bool:
    """Whether somebody may see what belongs to ``owner``."""
    return owner == principal.actor or principal.may("admin")


class _Upload:
    """A form with one file, read as it comes.

    Attributes:
        name: Of the file; None as long as it has not begun.

    """

    def __init__(self, form: Form, stream: AsyncIterator[bytes], most: int) -> None:
        self.name: str | None = None
        self._form, self._most, self._fields = form, most, 0
        self._parts = self._read(stream)

    async def _read(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Begin | bytes | End]:
        while (data := await _next(stream)) is not None:
            for part in self._form.feed(data):
                yield part
        if not self._form.ended:
            raise ApiError(400, "the form ends in its middle", code="invalid_form")

    async def fields(self) -> dict[str, str]:
        """Fields up to the file, or to the end."""
        found: dict[str, str] = {}
        field = ""
        async for part in self._parts:
            if isinstance(part, Begin):
                self._fields += 1
                if self._fields > MAX_FIELDS:
                    message = f"a form has at most {MAX_FIELDS} fields"
                    raise ApiError(400, message, code="invalid_form")
                if part.name == "file":
                    if self.name is not None:
                        raise refusal("file", "one file at a time")
                    self.name = part.filename or ""
                    return found
                field = part.name[:64]
                found[field] = ""
            elif isinstance(part, bytes):
                found[field] += part.decode("utf-8", "replace")
                if len(found[field]) > MAX_FIELD:
                    raise refusal(field, f"{field} is too long")
        return found

    async def content(self) -> AsyncIterator[bytes]:
        """Content of the file."""
        size = 0
        async for part in self._parts:
            if isinstance(part, End):
                return
            if isinstance(part, bytes):
                size += len(part)
                if size > self._most:
                    message = f"the file is longer than {self._most:,} bytes (api.max_file)"
                    raise ApiError(413, message, param="file", code="too_long")
                yield part


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    """The next piece of a body; None: there is no more.

    Raises:
        ApiError: 408: it does not come.

    """
    try:
        async with asyncio.timeout(PIECE_SECONDS):
            return await anext(stream, None)
    except TimeoutError:
        message = f"nothing of the file came for {PIECE_SECONDS:g} seconds"
        raise ApiError(408, message, code="timeout") from None
