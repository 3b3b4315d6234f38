"""What a projection is: a name, a version, tables, and a pure fold of events into rows.

Read models need no migrations. A projection creates its tables itself, under a prefix that names
the generation (``history_3_thread``), and can fill them again from the log at any time. When its
tables or its fold change, its ``version`` is raised: the next start sees rows of another version,
drops them and folds the log into a new generation. A migration would have to turn old rows into
what the new fold would have made of the same events, which is the rebuild, but unproven.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from app.events.catalogue import Payload
from app.events.envelope import Event
from app.projections.reading import Burst, type_name
from app.projections.rows import Pieces, Rows, Table

__all__ = ["Projection", "handles"]

M = TypeVar("M", bound=Callable[..., None])


def handles(*payloads: type[Payload | Burst]) -> Callable[[M], M]:
    """Mark a method ``(self, rows, event, payload)`` as the fold of some payload types.

    Batches of tokens come as a `Burst`, with the first of its events; folding it must come to the
    same as folding one event after the other, whatever happens in other streams meanwhile.
    """

    def mark(method: M) -> M:
        method._handles = payloads  # type: ignore[attr-defined]
        return method

    return mark


class Projection:
    """Base of all projections. The fold is a function of the rows and the event alone.

    Attributes:
        name: Lower-case word; also how people name it on the command line.
        version: Raise it whenever the same events would give other rows.
        tables: Tables of rows.
        pieces: Table of growing texts, or None.
        every: `each` wants events of all types, also those without a fold.

    """

    name: ClassVar[str]
    version: ClassVar[int]
    tables: ClassVar[tuple[Table[Any], ...]]
    pieces: ClassVar[Pieces | None] = None
    every: ClassVar[bool] = False
    _methods: ClassVar[dict[type[Any], str]] = {}

    def __init_subclass__(cls) -> None:
        cls._methods = {
            payload: name
            for name, method in vars(cls).items()
            for payload in getattr(method, "_handles", ())
        }

    def __init__(self) -> None:
        self.folds: dict[type[Any], Callable[[Rows, Event, Any], None]] = {
            payload: getattr(self, name) for payload, name in self._methods.items()
        }
        self.types = frozenset(map(type_name, self.folds))

    def each(self, rows: Rows, event: Event) -> bool:
        """Fold what all events have in common, if ``every``; False: nothing else of this one.

        Of a burst it sees the first event only.
        """
        return True

    def prefix(self, generation: int) -> str:
        """Prefix of the table names of a generation."""
        return f"{self.name}_{generation}_"

    @property
    def all_tables(self) -> tuple[Table[Any], ...]:
        """All its tables, that of the pieces among them."""
        return self.tables if self.pieces is None else (*self.tables, self.pieces)
