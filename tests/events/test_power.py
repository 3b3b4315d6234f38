"""Power cuts: `full` loses nothing acknowledged, `normal` at most the last commits.

The store's own settings, migrations, statements and checkpoints run on a simulated disk.
"""

from __future__ import annotations

import random
from contextlib import suppress

import apsw
import pytest

from app.events.envelope import Event, NewEvent
from app.events.leaf import leaves
from app.events.ledger import Batch, Ledger
from app.events.migrate import apply
from app.events.migration import migrations
from app.events.sqlite import checkpoint, execute_all
from app.events.sqlite_sql import (
    INSERT_LOG,
    PRAGMAS,
    integrity,
    look_up,
    read_state,
    select_events,
    select_leaves,
    write_batch,
)
from app.events.store import Append
from tests.events.disk import Disk, PowerCut

ROUNDS = 120


class Log:
    """The store's synchronous half, opened on a simulated disk as `SqliteBackend` opens it."""

    def __init__(self, disk: Disk, synchronous: str) -> None:
        self.conn = apsw.Connection("log.db", vfs=disk.name)
        # A disk in memory has no shared memory for the WAL index: keep it in the connection.
        self.conn.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        execute_all(self.conn, [p.format(synchronous=synchronous.upper()) for p in PRAGMAS])
        apply(self.conn, migrations())
        self.conn.execute(INSERT_LOG, ("incarnation", 0))
        self.ledger = Ledger()
        self.ledger.restore(read_state(self.conn))

    def append(self, rng: random.Random) -> Batch:
        """Plan a batch; `write_batch` makes it durable."""
        appends = [
            Append(
                stream=f"thread/{rng.randrange(4)}",
                events=[
                    NewEvent(
                        type="test.ping", data=rng.randbytes(rng.randrange(900)).hex().encode()
                    )
                ],
            )
            for _ in range(rng.randrange(1, 12))
        ]
        missing = self.ledger.missing(appends)
        self.ledger.learn(missing, look_up(self.conn, missing))
        return self.ledger.plan(appends, 1)

    def events(self) -> list[Event]:
        events = select_events(self.conn, 0, 1 << 60, None, None, 1 << 30)
        salts = self.conn.execute("SELECT salt FROM event ORDER BY seq").fetchall()
        stored = select_leaves(self.conn, 0, 1 << 60)
        assert leaves(events, [salt for (salt,) in salts]) == stored
        return events


def life(disk: Disk, synchronous: str, rng: random.Random) -> tuple[list[Event], list[Event]]:
    """Run until the power fails; what was acknowledged, and what was being written."""
    acknowledged: list[Event] = []
    writing: list[Event] = []
    with suppress(PowerCut, apsw.Error):
        log = Log(disk, synchronous)
        disk.cut_after = disk.operations + rng.randrange(1, 250)
        while True:
            batch = log.append(rng)
            writing = batch.events
            write_batch(log.conn, batch)
            acknowledged += batch.events
            writing = []
            if rng.random() < 0.2:
                checkpoint(log.conn, rng.choice(("PASSIVE", "TRUNCATE")))
    assert disk.off
    return acknowledged, writing


def survive(seed: int, synchronous: str) -> int:
    """Cut the power, reboot, check the log; how many acknowledged events were lost."""
    rng = random.Random(seed)
    first = Disk(f"first-{synchronous}-{seed}")
    acknowledged, writing = life(first, synchronous, rng)
    second = first.reboot(f"second-{synchronous}-{seed}", rng)
    log = Log(second, synchronous)
    found = log.events()
    assert found == (acknowledged + writing)[: len(found)]  # a prefix: nothing torn, no hole
    assert integrity(log.conn) == []
    write_batch(log.conn, log.append(rng))  # and it goes on
    after = log.events()
    assert [event.seq for event in after] == list(range(1, len(after) + 1))
    log.conn.close()
    first.unregister()
    second.unregister()
    return max(0, len(acknowledged) - len(found))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """`apsw` reports the exception of a cut in a callback besides raising it."""
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: None)


def test_full_loses_nothing_acknowledged() -> None:
    assert [seed for seed in range(ROUNDS) if survive(seed, "full")] == []


def test_normal_may_lose_the_last_commits_but_stays_whole() -> None:
    """That it does lose some shows that this disk would catch a store that forgets to sync."""
    lost = [survive(seed, "normal") for seed in range(ROUNDS)]
    assert any(lost)
