"""The built UI: files of ``app/transport/static``, compressed beforehand, cached by name."""

from __future__ import annotations

import hashlib
import mimetypes
import re
from pathlib import Path

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from app.transport.problem import problem

__all__ = ["ROOT", "StaticFiles"]

ROOT = Path(__file__).parent / "static"

#: esbuild's ``name-HASH.ext``: such a name never means other bytes.
_HASHED = re.compile(r"[-.][0-9A-Za-z]{8,}\.\w+$")

_ENCODINGS = (("br", ".br"), ("gzip", ".gz"))

_NOT_BUILT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Everlog</title>
<h1>Everlog is running; its web page is not built yet</h1>
<p>Run <code>make install</code> in the source folder, then reload this page.
<p>The API is at <a href="/api/info">/api/info</a>; in a terminal, try
<code>everlog ask "Hello"</code>.
"""


class StaticFiles:
    """Serves one folder.

    Args:
        root: The folder with ``index.html``; it may be missing.

    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    async def page(self, request: Request) -> Response:
        """The single page of the UI.

        Its links are relative, as a proxy may serve it below any path; so there are two of it.
        """
        name = "thread.html" if "thread" in request.path_params else "index.html"
        response = await self._file(request, self._root / name)
        if response is None:
            return Response(_NOT_BUILT, status_code=503, media_type="text/html")
        return response

    async def file(self, request: Request) -> Response:
        """A file named by the path parameter ``path``."""
        name = request.path_params["path"]
        path = _inside(self._root, name)
        response = await self._file(request, path) if path is not None else None
        if response is None:
            return problem(404, f"there is no file {name}")
        return response

    async def _file(self, request: Request, path: Path) -> Response | None:
        accepted = request.headers.get("accept-encoding", "")
        found = await to_thread.run_sync(_read, path, accepted)
        if found is None:
            return None
        data, encoding = found
        headers = {"Vary": "Accept-Encoding"}
        if encoding:
            headers["Content-Encoding"] = encoding
        if _HASHED.search(path.name):
            headers["Cache-Control"] = "public, max-age=31536000, immutable"
        else:
            headers["Cache-Control"] = "no-cache"
            headers["ETag"] = tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return Response(data, headers=headers, media_type=kind)


def _inside(root: Path, name: str) -> Path | None:
    """Path of a file below ``root``; None for a name that leads out of it."""
    root = root.resolve()
    try:
        path = (root / name).resolve()
    except ValueError:  # a NUL
        return None
    return path if path.is_relative_to(root) else None


def _read(path: Path, accepted: str) -> tuple[bytes, str | None] | None:
    """Bytes of a file in the best encoding the client accepts; None if there is no such file."""
    if not path.is_file():
        return None
    offered = {part.partition(";")[0].strip() for part in accepted.split(",")}
    for encoding, suffix in _ENCODINGS:
        packed = path.with_name(path.name + suffix)
        if encoding in offered and packed.is_file():
            return packed.read_bytes(), encoding
    return path.read_bytes(), None
