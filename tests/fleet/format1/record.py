"""Makes the files of this folder: `python -m tests.fleet.format1.record`.

The code of commit FORMAT_1 writes the data into a real Redis. They are recorded once:
a change of this script cannot change the data of that commit. `redis.json` has all keys
and their values, as text in latin-1.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fleet.earlier_version import running, unpack
from tests.fleet.redis_server import RedisServer

HERE = Path(__file__).parent
HEAD_BYTES = 17
KEEP_SECONDS, SOON_SECONDS = 3600, 300
"""Every key that the bridge writes expires; it ignores a counter that does not."""

FILES = {
    "snapshot.json": "bridge:shelf:talk:CA1",
    "plan.json": "bridge:shelf:plan:CA1",
    "order.json": "bridge:shelf:order:0123456789abcdef",
    "status.json": "bridge:shelf:status:CA1",
    "next_step.json": "bridge:next:CA2",
}

WRITE = """
from pathlib import Path
from bridge.app.outbound import CallStatus, OutboundOrder
from bridge.call.checkpoint import Safekeeping
from bridge.core.history import HistoryItem, Playing
from bridge.fleet import CallEntry, Capacity, NextStep, Then
from bridge.fleet.formats import encode
from bridge.fleet.plan import AnsweredBy, Earlier, Left, Plan
from bridge.fleet.redis import Pace, redis_registry

AGES = 3e9  # seconds: values must not have expired when a test reads them
pace = Pace(instance=AGES, lease=AGES)
opened = redis_registry(url, lambda: Capacity(20, 3), pace=pace)
registry = await opened.__aenter__()
format = registry.format()
assert format == 1

snapshot = Earlier(
    history=(
        HistoryItem("u1", "user", "A table for two, please.", at=1.5),
        HistoryItem("f1", "tool_call", call_id="c1", name="book", arguments='{"n":2}'),
        HistoryItem("o1", "tool_output", "booked: Gr\\u00fc\\u00df Gott", call_id="c1"),
        HistoryItem("s1", "system", "The caller is a regular."),
        HistoryItem("a1", "assistant", "It is", "It is booked.", True, 4.25),
    ),
    playing=(
        Playing("a2", ((0, "Any"), (1600, "thing else?")), 4000, 800, False),
        Playing("a3", ((0, "Bye."),), 800, 0, True, True),
    ),
    at=1800000000.125,
    streams=2,
    handed_over=True,
    quiet=True,
    agent="Booking",
    parameters={"From": "+14155550100", "To": "+14155550101"},
    seconds=61.5,
    cost=0.25,
    input_tokens=1200,
    output_tokens=340,
    transfers=1,
    messages=(Left("Call me back.", "Ada", "+14155550100"),),
    notes={"table": 7, "asked": ["window", None, 1.5], "deep": {"er": True}},
    word="Nobody answered.",
)
await Safekeeping(registry, "CA1", lambda: 0, lambda: snapshot).keep(AGES)
plan = Plan("Hello.", "message", "Your table is booked.")
await registry.put("plan:CA1", plan.kept(format), AGES)
order = OutboundOrder(
    to="+14155550102", from_number="+14155550101", id="0123456789abcdef",
    route="bookings", parameters={"table": "7"}, greeting="Hello.", machine="message",
    message="Your table is booked.", ring_seconds=25, longest_seconds=600,
)
await registry.put(f"order:{order.id}", encode(order, 0), AGES)
status = CallStatus("CA1", "in-progress", 2, 31)
await registry.put("status:CA1", encode(status, format), AGES)
done = CallStatus("CA3", "completed", 3, 62)
await registry.put("final:CA3", encode(done, format), AGES)
await AnsweredBy.MACHINE_END_BEEP.keep(registry, "CA1")
await registry.put("ended:CA1", b"1800000001.5", AGES)
await registry.put("route:CA1", b"bookings", AGES)
await registry.put("resumed:CA1", b"2", AGES)
await registry.put("refused:CA1", b"1", AGES)
await registry.put("late-ticket:CA1", b"1", AGES)
assert await registry.first("ticket:abc", AGES)
await registry.count("cost:2027-01-15", AGES, 1.25)
await registry.count("let_in:CA1", AGES)
assert await registry.let_in("calls:0f0f", "CA1", AGES, 10)
assert await registry.let_in("hour:0f0f", "CA1", AGES, 10)
await registry.opened(CallEntry("CA1", "MZ1", 1800000000.0))
await registry.opened(CallEntry("CA2", "MZ2", 1800000002.0))
step = NextStep(
    Then.TRANSFER, "+14155550103", "+14155550101", 30, "de-DE", "Einen Moment."
)
await registry.closed(CallEntry("CA2", "MZ2", 1800000002.0), step)

from tests.telemetry.test_trace import a_whole_call
result = str(a_whole_call(Path(folder)).path)
"""


def stored(server: RedisServer) -> dict[str, Any]:
    """The data in Redis: text, [[member, score], ...] or {field: text}."""
    found: dict[str, Any] = {}
    client: Any = server.client
    for key in sorted(client.keys("*")):
        match client.type(key):
            case b"string":
                value: Any = client.get(key).decode("latin-1")
            case b"hash":
                fields = client.hgetall(key).items()
                value = {k.decode(): v.decode("latin-1") for k, v in fields}
            case b"zset":
                members = client.zrange(key, 0, -1, withscores=True)
                value = [[member.decode(), score] for member, score in members]
            case other:
                raise ValueError(f"a type that keys.py does not name: {other}")
        found[key.decode()] = value
    return found


def load(server: RedisServer) -> None:
    """Puts the recorded data into Redis. Members and beats expire SOON_SECONDS from
    now: a time that is further ahead is none that a bridge has written."""
    client: Any = server.client
    until = round((time.time() + SOON_SECONDS) * 1000)
    for key, value in json.loads((HERE / "redis.json").read_text("utf-8")).items():
        if isinstance(value, str):
            client.set(key, value.encode("latin-1"))
        elif isinstance(value, dict):
            fields = {name: it.encode("latin-1") for name, it in value.items()}
            if key == "bridge:instances":
                fields = {
                    name: b"%d %b" % (until, it.partition(b" ")[2])
                    for name, it in fields.items()
                }
            client.hset(key, mapping=fields)
        else:
            lasts = key.startswith("bridge:in:")
            client.zadd(key, {it: until if lasts else score for it, score in value})
        client.expire(key, KEEP_SECONDS)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder)
        server.start()
        try:
            async with running(unpack(folder / "source")) as earlier:
                trace = await earlier.run(WRITE, url=server.url, folder=name)
                (HERE / "trace.jsonl").write_bytes(Path(trace).read_bytes())
                found = stored(server)
        finally:
            server.stop()
    text = json.dumps(found, indent=1) + "\n"
    (HERE / "redis.json").write_text(text, "utf-8")
    for file, key in FILES.items():
        value = found[key].encode("latin-1")[HEAD_BYTES:]
        (HERE / file).write_bytes(value)


if __name__ == "__main__":
    asyncio.run(main())
