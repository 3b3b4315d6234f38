"""What `everlog doctor` asks a Postgres database."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import msgspec

from app.errors import EverlogError

__all__ = ["Check", "ask_postgres", "postgres_checks"]

SKEW_SECONDS = 5.0
"""A larger difference between two clocks is worth a warning."""

SLOW_MS = 20.0
"""A round trip that takes longer makes every commit slow."""


class Check(msgspec.Struct, frozen=True):
    """One finding. ``warning``: it works, with a drawback; ``bad``: `everlog serve` will not."""

    name: str
    state: Literal["good", "warning", "bad"]
    finding: str
    hint: str | None = None


class Answers(msgspec.Struct):
    """What the server said. ``skew`` is how far its clock is ahead of ours, in seconds."""

    version: str
    number: int
    schema: str | None
    create: bool
    standby: bool
    skew: float
    trip_ms: float
    due: list[str]
    ssl: bool


_QUESTIONS = """
    SELECT current_setting('server_version'), current_setting('server_version_num')::int,
        current_schema(),
        current_schema() IS NOT NULL AND has_schema_privilege(current_schema(), 'CREATE'),
        pg_is_in_recovery(), extract(epoch FROM clock_timestamp())::float8,
        coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)"""


async def ask_postgres(dsn: str) -> Answers:
    """Connect and ask.

    Raises:
        EverlogError: It cannot be reached, or is of another version of Everlog.

    """
    from app.events import pg
    from app.events.migration import migrations
    from app.events.postgres_migrate import outstanding

    try:
        conn = await pg.connect(dsn)
        try:
            trips = []
            for _ in range(5):
                begun = time.perf_counter()
                await conn.fetchval("SELECT 1")
                trips.append(time.perf_counter() - begun)
            before = time.time()
            version, number, schema, create, standby, clock, ssl = await conn.fetchrow(_QUESTIONS)
            skew = clock - (before + time.time()) / 2
            due = [] if schema is None else await outstanding(conn, migrations("postgres"))
            trip = sorted(trips)[2] * 1e3
            names = [str(migration) for migration in due]
            return Answers(version, number, schema, create, standby, skew, trip, names, ssl)
        finally:
            await conn.close()
    except Exception as error:
        raise pg.startup_error(dsn, error) from error


def postgres_checks(ask: Callable[[], Answers], shown: str) -> list[Check]:
    """Return the findings about the server that ``shown`` names."""
    from app.events.pg import MINIMUM

    try:
        told = ask()
    except EverlogError as error:
        return [Check("database", "bad", error.message, error.hint)]
    found = [_reached(told, shown)]
    if told.number < MINIMUM:
        hint = "Everlog needs Postgres 15 or newer."
        found.append(Check("postgres", "bad", told.version, hint))
    else:
        found.append(Check("postgres", "good", told.version))
    found.append(_schema(told))
    ahead = "ahead" if told.skew > 0 else "behind"
    text = f"the server's is {abs(told.skew):.1f} s {ahead}"
    if abs(told.skew) > SKEW_SECONDS:
        found.append(Check("clocks", "warning", text, "Let both keep time by NTP."))
    else:
        found.append(Check("clocks", "good", text))
    return found


def _reached(told: Answers, shown: str) -> Check:
    how = "with TLS" if told.ssl else "without TLS"
    text = f"{shown} answers in {told.trip_ms:.1f} ms, {how}"
    if told.standby:
        return Check("database", "bad", f"{shown} is a standby", "Name the primary.")
    if told.trip_ms > SLOW_MS:
        return Check("database", "warning", text, "Every commit waits for that; move closer.")
    return Check("database", "good", text)


def _schema(told: Answers) -> Check:
    if told.schema is None:
        return Check("schema", "bad", "search_path names none that exists", "CREATE SCHEMA ...")
    if told.due and not told.create:
        text = f"may not make tables in {told.schema}, and lacks {', '.join(told.due)}"
        return Check("schema", "bad", text, f"GRANT CREATE ON SCHEMA {told.schema} TO ...")
    if told.due:
        text = f"{told.schema}: {len(told.due)} migrations are due; `everlog serve` applies them"
        return Check("schema", "good", text)
    return Check("schema", "good", f"{told.schema} is up to date")
