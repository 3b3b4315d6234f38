"""The archive that a server keeps by itself, hour by hour."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from app.config import ArchiveConfig
from app.events.archive import Archived, archive_streamed, archive_threads, hot_threads
from app.events.logstore import LogStore
from app.events.moves import ArchiveBusy
from app.events.store import StoreClosed, StoreError

__all__ = ["Archiver"]

log = logging.getLogger(__name__)

DAY = 24 * 3600 * 10**9

LEAST = 1_000
"""Fewer streamed events wait for more, so that segments do not become many and small."""

SOON = 60.0
"""Seconds after the start until the first run."""

HOURLY = 3600.0
"""Seconds between two runs."""


class Archiver:
    """Archives what is old enough, now and then.

    Of several nodes on one log, one at a time does it; the others find the archive busy.

    Args:
        store: The log, with objects attached.
        config: Ages; with both 0 nothing is ever done.
        clock: Gives nanoseconds since the epoch.

    """

    def __init__(
        self, store: LogStore, config: ArchiveConfig, *, clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._after = 0  # streamed events up to here are archived

    async def run(self) -> None:
        """Archive until cancelled."""
        if not (self._config.after_days or self._config.threads_after_days):
            return
        await asyncio.sleep(SOON)
        while True:
            try:
                await self.once()
            except StoreClosed:
                raise
            except ArchiveBusy as error:
                log.debug("not archiving now: %s", error.message)
            except StoreError as error:
                log.error("archiving failed, trying again in an hour: %s", error.message)
            await asyncio.sleep(HOURLY)

    async def once(self) -> None:
        """Archive what is due now.

        Raises:
            ArchiveBusy: Another process does.
            StoreError: The object store or the database failed.

        """
        now, store, config = self._clock(), self._store, self._config
        if config.after_days:
            before = now - int(config.after_days * DAY)
            done = await archive_streamed(store, before=before, after=self._after, least=LEAST)
            self._after = done.until
            _tell(done)
        if config.threads_after_days:
            before = now - int(config.threads_after_days * DAY)
            _tell(await archive_threads(store, await hot_threads(store), before=before))


def _tell(done: Archived) -> None:
    if done.events:
        log.info("archived %d events in %d segments", done.events, len(done.segments))
