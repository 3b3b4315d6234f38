"""Command group ``keys``: API keys are made, listed and revoked."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from app.cli.console import clean, console, emit, styled
from app.cli.options import json_option, with_settings
from app.cli.root import everlog
from app.errors import EverlogError, InputError
from app.settings import Loaded

if TYPE_CHECKING:
    from app.events.logstore import LogStore
    from app.transport.keys_api import KeyRow

T = TypeVar("T")
_PER = {"s": 60.0, "sec": 60.0, "min": 1.0, "m": 1.0, "h": 1 / 60, "hour": 1 / 60}
_SPAN = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
DAY = 86_400 * 10**9
PATIENCE = 10.0


@everlog.group()
def keys() -> None:
    """Make, list and revoke API keys.

    A server that listens on a loopback address needs none; any other does (see server.auth).
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help="chat, api, read or admin; several by commas. By default chat,api.",
)
@click.option("--rate", metavar="N/min", help="Most requests; also N/s and N/h.")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Most requests at once.")
@click.option("--expires", metavar="WHEN", help="After 12h, 30d, 8w, or on a date: 2027-01-31.")
@click.option(
    "--user",
    metavar="USER",
    help="Whose conversations it opens; by default its own. `local` is who needs no key.",
)
@json_option()
@with_settings
def create(
    loaded: Loaded,
    name: str,
    scopes: tuple[str, ...],
    rate: str | None,
    concurrency: int | None,
    expires: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Make an API key. It is shown once: the log keeps only its hash."""
    import asyncio

    wanted = {
        "name": name,
        "scopes": [part for given in scopes for part in given.split(",") if part]
        or ["chat", "api"],
        "rate": _rate(rate),
        "concurrency": concurrency,
        "expires": _when(expires),
        "user": user,
    }
    made = asyncio.run(_create(loaded, wanted))
    if as_json:
        return emit(made)
    click.echo(f"{made.secret}", nl=True)
    note = f"✓ key {made.name} ({', '.join(made.scopes)}); it is not shown again"
    click.echo(styled(note, "good"), err=True)
    return None


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those revoked or expired.")
@json_option()
@with_settings
def list_keys(loaded: Loaded, everything: bool, as_json: bool) -> None:
    """List API keys."""
    import asyncio

    rows = [r for r in asyncio.run(_list(loaded)) if everything or r.state == "valid"]
    if as_json:
        emit({"items": rows})
    elif not rows:
        click.echo("There are no keys. Make one with: everlog keys create NAME")
    else:
        _show(rows)


@keys.command()
@click.argument("key")
@json_option()
@with_settings
def revoke(loaded: Loaded, key: str, as_json: bool) -> None:
    """Make a key useless, by its name or id: everywhere, within a second, and for ever."""
    import asyncio

    done = asyncio.run(_revoke(loaded, key))
    if as_json:
        emit(done)
    else:
        click.echo(styled("✓ ", "good") + f"key {done.name} ({done.id}) is revoked")


# ------------------------------------------------------------------------------- reading


def _rate(given: str | None) -> float | None:
    """Requests a minute."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(\w+))?", given.strip())
    if found is None or (found[2] or "min") not in _PER:
        raise InputError(f"{given!r} is not like 60/min, 5/s or 1000/h", field="--rate")
    return float(found[1]) * _PER[found[2] or "min"]


def _when(given: str | None) -> int | None:
    """Nanoseconds since the epoch."""
    if given is None:
        return None
    span = re.fullmatch(r"(\d+)([mhdw])", given.strip())
    if span is not None:
        return time.time_ns() + int(span[1]) * _SPAN[span[2]] * 10**9
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise InputError(
            f"{given!r} is neither like 30d nor like 2027-01-31", field="--expires"
        ) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return int(at.timestamp()) * 10**9


def _moment(ns: int, now: int) -> str:
    """Return the day, and when it is near the minute, in UTC."""
    at = datetime.fromtimestamp(ns // 10**9, UTC)
    return f"{at:%Y-%m-%d %H:%M}" if ns - now < 2 * DAY else f"{at:%Y-%m-%d}"


def _show(rows: list[KeyRow]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "id", "state", "scopes", "rate", "at once", "expires", "user"):
        table.add_column(name, justify="right" if name in ("rate", "at once") else "left")
    now = time.time_ns()
    for row in rows:
        table.add_row(
            row.name,
            row.id,
            row.state,
            ",".join(row.scopes),
            f"{row.rate:g}/min" if row.rate else "",
            str(row.concurrency or ""),
            _moment(row.expires, now) if row.expires else "",
            clean(row.user),
        )
    console().print(table)


# ------------------------------------------------------------------------------- working


async def _list(loaded: Loaded) -> list[KeyRow]:
    from app.cli.access import reading
    from app.transport.keys import load
    from app.transport.keys_api import row

    async with reading(loaded) as store:
        return [row(key) for key in (await load(store)).all]


async def _create(loaded: Loaded, wanted: dict[str, Any]) -> KeyRow:
    from app.transport import keys as log
    from app.transport.keys_api import row

    log.check(**wanted)  # before a database is made for it

    async def here(store: LogStore) -> KeyRow:
        made = await log.create(store, **wanted)
        return row(made.key, made.secret)

    return await _do(loaded, here, "POST", "/api/keys", wanted)


async def _revoke(loaded: Loaded, key: str) -> KeyRow:
    from urllib.parse import quote

    from app.cli.access import database
    from app.transport import keys as log
    from app.transport.keys_api import row

    database(loaded)

    async def here(store: LogStore) -> KeyRow:
        return row(await log.revoke(store, key))

    return await _do(loaded, here, "DELETE", f"/api/keys/{quote(key, safe='')}", None)


async def _do(
    loaded: Loaded,
    here: Callable[[LogStore], Awaitable[KeyRow]],
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> KeyRow:
    """Do it in the log; a server that has a SQLite log open is asked to do it."""
    from app.events.open import open_store
    from app.events.url import parse_url
    from app.transport.control import find

    settings = loaded.config.database
    database = parse_url(settings.url)
    if database.kind == "memory":
        raise InputError("a log in memory keeps no keys", field="database.url")
    control = find(database)
    if control is not None:
        import asyncio

        done = await asyncio.to_thread(_ask, control.url + path, control.token, method, body)
        if done is not None:
            return done
    async with open_store(settings.url, synchronous=settings.synchronous) as store:
        return await here(store)


def _ask(url: str, token: str, method: str, body: dict[str, Any] | None) -> KeyRow | None:
    """Ask the server; None if there is none any more."""
    import urllib.error
    import urllib.request

    import msgspec

    from app.transport.keys_api import KeyRow
    from app.transport.problem import Problem

    data = None if body is None else msgspec.json.encode(body)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return msgspec.json.decode(answer.read(), type=KeyRow)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 401:  # another server listens there now
                return None
            found = msgspec.json.decode(error.read(), type=Problem)
        if found.field:
            raise InputError(found.detail, field=found.field) from None
        raise EverlogError(found.detail, hint="List them with: everlog keys list") from None
    except OSError:
        return None
