"""Objects: the same promises in a directory and in S3 (moto's server, over HTTP)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import threading
import tracemalloc
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.config import Config, DatabaseConfig, ObjectsConfig
from app.errors import InputError
from app.events import s3 as s3_module
from app.events.objects import (
    DirectoryObjects,
    ObjectError,
    ObjectMissing,
    Objects,
    open_objects,
)
from app.events.s3 import PART, S3Objects
from tests.support.s3 import CREDENTIALS, s3_server


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@contextlib.asynccontextmanager
async def bucket(
    endpoint: str, name: str = "logs", prefix: str = "a/b"
) -> AsyncIterator[S3Objects]:
    objects = S3Objects(name, prefix, endpoint=endpoint, path_style=True)
    client = await objects._open()
    await client.create_bucket(Bucket=name)
    try:
        yield objects
    finally:
        await objects.aclose()


@pytest.fixture(params=["directory", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Objects]:
    if request.param == "directory":
        yield DirectoryObjects(tmp_path / "objects")
        return
    endpoint = request.getfixturevalue("endpoint")
    name = f"logs-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:16]}"
    async with bucket(endpoint, name) as objects:
        yield objects


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 100_000, PART, PART + 1, 2 * PART + 12_345])
async def test_what_is_put_is_got(objects: Objects, size: int) -> None:
    data = os.urandom(size)
    chunks = [data[i : i + 300_000] for i in range(0, size, 300_000)]
    stored = await objects.put("x/y.bin", stream(*chunks))
    assert (stored.key, stored.size, stored.sha256) == ("x/y.bin", size, digest(data))
    assert await objects.read("x/y.bin", sha256=digest(data)) == data
    found = await objects.stat("x/y.bin")
    assert found is not None
    assert found.size == size
    assert found.sha256 in (None, digest(data))


async def test_bytes_and_known_hashes(objects: Objects) -> None:
    data = os.urandom(PART + 5)
    assert (await objects.put("one", data, sha256=digest(data))).sha256 == digest(data)
    with pytest.raises(ObjectError, match="not the expected one"):
        await objects.put("two", data, sha256=digest(b"other"))
    with pytest.raises(ObjectError, match="not the expected one"):
        await objects.put("three", b"small", sha256=digest(b"other"))
    assert [stored.key async for stored in objects.list()] == ["one"]


async def test_a_damaged_object_is_noticed_at_its_end(objects: Objects) -> None:
    await objects.put("x", b"what it is")
    with pytest.raises(ObjectError, match="x is damaged"):
        await objects.read("x", sha256=digest(b"what it was"))


async def test_a_failing_source_stores_nothing(objects: Objects) -> None:
    async def failing() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(PART)
        raise RuntimeError("the client went away")

    await objects.put("x", b"before")
    for key in ("x", "y"):
        with pytest.raises(RuntimeError):
            await objects.put(key, failing())
    assert await objects.read("x") == b"before"
    assert [stored.key async for stored in objects.list()] == ["x"]
    if isinstance(objects, S3Objects):
        client = await objects._open()
        left = await client.list_multipart_uploads(Bucket=objects._bucket)
        assert "Uploads" not in left
    elif isinstance(objects, DirectoryObjects):
        assert list((objects.root / ".parts").iterdir()) == []


async def test_missing_objects(objects: Objects) -> None:
    assert await objects.stat("none/x") is None
    with pytest.raises(ObjectMissing, match="none/x is not in"):
        await objects.read("none/x")
    await objects.delete("none/x")
    assert [stored async for stored in objects.list()] == []


async def test_delete_and_list(objects: Objects) -> None:
    for key in ("b/2", "a", "b/1", "b-1", "c/d/e"):
        await objects.put(key, key.encode())
    assert [stored.key async for stored in objects.list()] == ["a", "b-1", "b/1", "b/2", "c/d/e"]
    assert [(s.key, s.size) async for s in objects.list("b/")] == [("b/1", 3), ("b/2", 3)]
    await objects.delete("b/1")
    assert [stored.key async for stored in objects.list("b")] == ["b-1", "b/2"]
    assert await objects.read("b/2") == b"b/2"


@pytest.mark.parametrize(
    "key", ["", "/x", "x/", "x//y", "../x", "x/../y", ".hidden", "a b", "x\0", "ü", "x" * 600]
)
async def test_malformed_keys_reach_nothing(objects: Objects, key: str) -> None:
    with pytest.raises(ValueError, match="malformed object key"):
        await objects.put(key, b"x")
    with pytest.raises(ValueError, match="malformed object key"):
        await objects.read(key)
    with pytest.raises(ValueError, match="malformed object key"):
        await objects.delete(key)


async def test_memory_is_bounded(tmp_path: Path) -> None:
    objects, total = DirectoryObjects(tmp_path), 12 * PART

    async def large() -> AsyncIterator[bytes]:
        for _ in range(total >> 20):
            yield bytes(1 << 20)

    tracemalloc.start()
    try:
        await objects.put("large", large())
        assert sum([len(chunk) async for chunk in objects.get("large")]) == total
        assert tracemalloc.get_traced_memory()[1] < 2 * PART
    finally:
        tracemalloc.stop()


async def test_writers_at_once_leave_one_whole_object(objects: Objects) -> None:
    bodies = [bytes([i]) * 200_000 for i in range(4)]
    await asyncio.gather(*(objects.put("same", stream(body)) for body in bodies))
    assert await objects.read("same") in bodies


# ------------------------------------------------------------------------------------------ S3


async def test_names_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is synced whose entries changed, also those above a new one."""
    synced: list[Path] = []
    sync = os.fsync

    def noting(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink())
        sync(file)

    monkeypatch.setattr("app.events.objects.os.fsync", noting)
    objects = DirectoryObjects(tmp_path / "new" / "objects")
    await objects.put("archive/life/1.zst", b"x")
    root = objects.root
    assert {tmp_path, root.parent, root, root / "archive", root / "archive/life"} <= set(synced)
    synced.clear()
    await objects.delete("archive/life/1.zst")
    await objects.delete("archive/none/1.zst")
    assert synced == [root / "archive/life"]


async def test_pages_of_a_long_list(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "PAGE", 10)
    async with bucket(endpoint, "many", "") as objects:
        for i in range(25):
            await objects.put(f"k{i:05}", b"1")
        assert [stored.key async for stored in objects.list("k")] == [f"k{i:05}" for i in range(25)]


async def test_presigned(endpoint: str) -> None:
    async with bucket(endpoint, "presigned") as objects:
        await objects.put("x", b"for the browser")
        url = await objects.presign("x", seconds=60, filename='ü "1".txt', mime="text/plain")
        assert url is not None

        def fetch() -> tuple[bytes, str, str]:
            with urllib.request.urlopen(url) as answer:
                headers = answer.headers
                return answer.read(), headers["Content-Disposition"], headers["Content-Type"]

        body, disposition, mime = await asyncio.to_thread(fetch)
        assert body == b"for the browser"
        assert disposition == "attachment; filename*=UTF-8''%C3%BC%20%221%22.txt"
        assert mime.startswith("text/plain")
    assert await DirectoryObjects(Path("x")).presign("x", seconds=60) is None


async def test_refusals_of_s3_say_what_to_do(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = S3Objects("nosuch", endpoint=endpoint, path_style=True)
    for attempt in (objects.put("x", b"1"), objects.read("x")):
        with pytest.raises(ObjectError, match="no bucket 'nosuch'") as caught:
            await attempt
        assert "objects.url" in str(caught.value.hint)
    await objects.aclose()
    for name in CREDENTIALS:
        if "KEY" in name:
            monkeypatch.delenv(name)
    objects = S3Objects("nosuch", endpoint=endpoint, path_style=True)
    with pytest.raises(ObjectError, match="no AWS credentials") as caught:
        await objects.put("x", b"1")
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.hint)
    await objects.aclose()


async def test_s3_that_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    objects = S3Objects("logs", endpoint=f"http://127.0.0.1:{port}", path_style=True)
    with pytest.raises(ObjectError, match="cannot be reached") as caught:
        await objects.put("x", b"1")
    assert "objects.endpoint" in str(caught.value.hint)
    await objects.aclose()


@contextlib.contextmanager
def cutting_proxy(endpoint: str, after: int, times: int) -> Iterator[str]:
    """A proxy that cuts the first ``times`` connections after so many bytes of answer."""
    target = endpoint.removeprefix("http://").split(":")
    left = [times]

    def pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                passed += len(data)
                if limit is not None and passed > limit:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                there = socket.create_connection((target[0], int(target[1])))
                limit = after if left[0] > 0 else None
                left[0] -= 1
                threading.Thread(target=pump, args=(client, there, None), daemon=True).start()
                threading.Thread(target=pump, args=(there, client, limit), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


async def test_a_download_goes_on_where_its_connection_broke(endpoint: str) -> None:
    data = os.urandom(3 << 20)
    async with bucket(endpoint, "broken") as objects:
        await objects.put("x", data)
    with cutting_proxy(endpoint, 700_000, times=3) as url:
        broken = S3Objects("broken", "a/b", endpoint=url, path_style=True)
        assert await broken.read("x", sha256=digest(data)) == data
        await broken.aclose()
    with cutting_proxy(endpoint, 100_000, times=100) as url:
        broken = S3Objects("broken", "a/b", endpoint=url, path_style=True)
        with pytest.raises(ObjectError, match="cannot be read whole"):
            await broken.read("x", sha256=digest(data))
        await broken.aclose()


async def test_an_upload_of_many_parts_is_aborted_when_refused(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "PART", 5 << 20)
    async with bucket(endpoint, "parts") as objects:
        with pytest.raises(ObjectError, match="not the expected one"):
            await objects.put("x", bytes(11 << 20), sha256=digest(b""))
        assert await objects.stat("x") is None


# ------------------------------------------------------------------------------------- opening


def config(url: str, database: str = "sqlite:///logs/everlog.db", **options: object) -> Config:
    return Config(
        database=DatabaseConfig(url=database),
        objects=ObjectsConfig(url=url, **options),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("url", "database", "name"),
    [
        ("", "sqlite:///logs/everlog.db", "logs/everlog.db.objects"),
        ("", "logs/everlog.db", "logs/everlog.db.objects"),
        ("", "postgresql://host/db", "everlog.objects"),
        ("things", "memory:", "things"),
        ("file:///data/things", "memory:", "/data/things"),
        ("s3://logs", "memory:", "s3://logs"),
        ("s3://logs/a/b/", "memory:", "s3://logs/a/b"),
    ],
)
async def test_urls(url: str, database: str, name: str) -> None:
    async with open_objects(config(url, database)) as objects:
        assert objects.name == name


async def test_objects_of_a_log_in_memory_go_with_it() -> None:
    async with open_objects(config("", "memory:")) as objects:
        await objects.put("x", b"1")
        folder = Path(objects.name)
        assert [stored.key async for stored in objects.list()] == ["x"]
    assert [stored async for stored in DirectoryObjects(folder).list()] == []


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "ftp://x/y", "file://x", "gs://b"])
async def test_malformed_urls_name_the_setting(url: str) -> None:
    with pytest.raises(InputError) as caught:
        async with open_objects(config(url)):
            pass
    assert caught.value.field == "objects.url"


async def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    objects = DirectoryObjects(tmp_path / "file" / "objects")
    with pytest.raises(ObjectError):
        await objects.put("x", b"1")
