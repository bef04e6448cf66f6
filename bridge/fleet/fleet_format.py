"""The fleet format that this instance writes (formats.py), and the copies of stored
values under the names of that format (keys.py).
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis

from bridge.fleet import formats, keys
from bridge.fleet.ignored import Ignored
from bridge.fleet.redis_client import FAILURES, parts, reason_of
from bridge.fleet.written_values import value_of

log = structlog.get_logger()

CHUNK_KEYS = 50
"""Keys of one request to copy values."""

SCAN_KEYS = 1000
"""Keys that Redis looks at for one answer of SCAN."""


class FleetFormat:
    """The format in use, as the beats of the other instances decide it."""

    def __init__(
        self,
        client: Redis,
        limit: float,
        pause: float,
        reached: asyncio.Event,
        ignored: Ignored,
    ) -> None:
        """`limit`: seconds for one answer of Redis. `pause`: seconds between two passes
        over the stored values. `reached` is set while Redis can be reached."""
        self.current = formats.OLDEST
        """The format to write; the oldest one until the other instances are known."""
        # Any: the types of redis-py leave the answers of commands open.
        self._redis: Any = client
        self._limit = limit
        self._pause = pause
        self._reached = reached
        self._ignored = ignored
        self._changed = asyncio.Event()
        self._differ = False
        """Live instances announce different formats."""
        self._differ_since = 0.0

    def names(self, key: str) -> tuple[str, ...]:
        """The names under which `key` is read: first the one that is written."""
        return keys.names(key, self.current)

    def claimed(self, key: str) -> tuple[str, ...]:
        """The names under which `acquire` and `count` write `key`: first the one that
        decides."""
        return keys.claimed(key, self.current)

    def as_written(self, key: str, text: bytes) -> bytes:
        """The text of a key as the format in use has it."""
        value = value_of(text)
        if value is None or not key.startswith(keys.SNAPSHOT):
            return text
        rewritten = formats.rewritten(value, "CallSnapshot", self.current)
        return text.removesuffix(value) + rewritten

    def note(self, others: Sequence[int]) -> None:
        """Sets the format to write from those that the other instances announce. One
        line in the log when the formats begin to differ, one when they agree again."""
        format = formats.common(others)
        if format != self.current:
            self.current = format
            self._changed.set()
        announced = (formats.FORMAT, *others)
        low, high = min(announced), max(announced)
        differ = low != high
        if differ == self._differ:
            return
        now = time.monotonic()
        if differ:
            # A version reads its own format and the one before.
            write = log.info if high - low == 1 else log.warning
            write(
                "fleet_formats_differ",
                oldest=low,
                newest=high,
                writes=self.current,
            )
            self._differ_since = now
        else:
            seconds = round(now - self._differ_since, 3)
            log.info("fleet_formats_agree", format=high, seconds=seconds)
        self._differ = differ

    def redis_found(self) -> None:
        """Redis may have got values meanwhile whose names are not those in use."""
        self._changed.set()

    async def follow(self) -> None:
        """Copies stored values to the names of the format in use, when that changes and
        when Redis is reached. Does not return."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            # The second pass is for values that were being written during the first.
            passes, failures = 2, 0
            while passes:
                await self._reached.wait()
                try:
                    copied = await self._copy_values()
                except FAILURES as error:
                    failures += 1
                    if failures == 2:  # the loss of Redis is logged elsewhere
                        log.warning("fleet_values_not_copied", why=reason_of(error))
                else:
                    passes -= 1
                    if copied:
                        format = self.current
                        log.info("fleet_values_copied", values=copied, format=format)
                await asyncio.sleep(self._pause)

    async def _copy_values(self) -> int:
        """The number of values that got the name of the format in use."""
        to = self.current
        prefix = keys.STORE if to == 1 else keys.STORE_1
        cursor, copied = 0, 0
        async with asyncio.timeout(self._limit):
            for script in keys.READ, keys.COPY:
                await self._redis.script_load(script.text)
        while True:
            async with asyncio.timeout(self._limit):
                cursor, found = await self._redis.scan(
                    cursor, match=f"{prefix}*", count=SCAN_KEYS
                )
            names = list(self._names_in(found))
            for some in parts(names, CHUNK_KEYS):
                copied += await self._copy(some, to)
            if not int(cursor):
                return copied

    def _names_in(self, found: Iterable[bytes]) -> Iterator[str]:
        for name in found:
            try:
                yield name.decode()
            except UnicodeDecodeError:  # of another program: ours are UTF-8
                self._ignored.note(keys.STORE, "name")

    async def _copy(self, sources: Sequence[str], to: int) -> int:
        pipe = self._redis.pipeline(transaction=False)
        for source in sources:
            pipe.execute_command("EVALSHA", keys.READ.sha, 1, source)
            pipe.pttl(source)
        async with asyncio.timeout(self._limit):
            found = await pipe.execute()
        how, moved = "move" if to == 1 else "copy", []
        for source, answer, left in zip(sources, found[::2], found[1::2], strict=True):
            text = self._ignored.without(answer, [source])
            if text is None or left <= 0:
                continue  # popped or expired meanwhile, or not a value of the bridge
            key = source if to == 1 else keys.from_format_1(source)
            target = keys.names(key, to)[0]
            written = self.as_written(key, text)
            pipe.execute_command(
                "EVALSHA", keys.COPY.sha, 2, target, source, written, left, how
            )
            moved.append((target, source))
        async with asyncio.timeout(self._limit):
            answers = await pipe.execute()
        return sum(map(self._ignored.without, answers, moved))
