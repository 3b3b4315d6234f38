"""How far spans have been exported: one row beside the read models. Blocks; call it in a thread."""

from __future__ import annotations

import msgspec

from app.projections.database import Connection, Where, connect
from app.projections.rows import Table

__all__ = ["Keeper"]

NAME = "otlp"


class _Place(msgspec.Struct):
    name: str
    incarnation: str
    seq: int


PLACE = Table("telemetry", _Place, key=("name",))


class Keeper:
    """Remembers the place, and sees to it that one process exports at a time.

    Args:
        where: As `app.projections.views.Views.open` takes it; None remembers nothing.

    """

    def __init__(self, where: Where | None) -> None:
        self._where = where
        self._connection: Connection | None = None

    @property
    def lost(self) -> bool:
        """Whether another process may export meanwhile."""
        return self._where is not None and (self._connection is None or not self._connection.usable)

    def lead(self) -> bool:
        """Try to become the process that exports; whether this one is it.

        Raises:
            Trouble: The database is away.

        """
        if self._where is None or not self.lost:
            return True
        self.close()
        connection = connect(self._where)
        try:
            if connection.lead("telemetry") is False:
                connection.close()
                return False
            if PLACE.name not in connection.tables(PLACE.name):
                with connection.transaction():
                    connection.create(PLACE, "")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return True

    def load(self, incarnation: str) -> int | None:
        """The last event of this log that was exported; None: it never was."""
        if self._connection is None:
            return None
        place = self._connection.load(PLACE, "", (NAME,))
        return place.seq if place is not None and place.incarnation == incarnation else None

    def save(self, incarnation: str, seq: int) -> None:
        """Remember a place."""
        if self._connection is not None:
            with self._connection.transaction():
                self._connection.upsert(PLACE, "", [_Place(NAME, incarnation, seq)])

    def close(self) -> None:
        """Let others lead. Never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
