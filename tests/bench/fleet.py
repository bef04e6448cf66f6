"""The effect on callers of a killed instance, of a deploy, and of a Redis restart.

    .venv/bin/python -m tests.bench.fleet [kill|rolling|redis ...] [--quick]

HAProxy, Redis and the bridges of scripts/fleet.py are real processes; the fakes run in
this process. Caller and agent speak counted words (bridge/sim/counting.py), so lost and
repeated words are found. Exits 1 if a call is lost, or if a bridge does not exit with 0
after SIGTERM.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic

import aiohttp

from bridge.sim import counting
from bridge.sim.belief import percentile
from bridge.sim.caller import Caller, random_number
from bridge.sim.model import Behaviour, ModelServer
from scripts.fleet import Bridge, Fleet
from tests.bench.faults import markdown
from tests.support.counted_calls import (
    CALL_SECONDS,
    RAMP_SECONDS,
    WORDS,
    Conversation,
    CountedCalls,
    Verdict,
)

ROOT = Path(__file__).resolve().parent.parent.parent
AGENT = f"{ROOT / 'tests' / 'bench' / 'counter.py'}:AGENT"

INSTANCES = 3
RUNS = 20
CALLS_A_ROUND = 9
"""About three of them are on the killed instance."""
KILL_RAMP_SECONDS = 0.6
"""Between two calls of a round, so that a kill hits them in different phases."""
KILL_AFTER = (6.0, 16.0)
"""s after the first call of a round begins: greeting, questions, tool, answers."""
LOAD = 60
BACK_SECONDS = 4.0
"""Limit from the kill until the caller hears the agent again, p95 (issue 4)."""
DRAIN_SECONDS = 5.0
REDIS_AWAY_SECONDS = 2.0
TOOL_TURN = 2

BEHAVIOUR = Behaviour(
    answer=counting.CountingAgent(WORDS, frozenset({TOOL_TURN})),
    recogniser=counting.recognise,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one measurement: its row of the table, remarks, pass or fail."""

    row: tuple[str, ...]
    remarks: tuple[str, ...]
    good: bool


COLUMNS = (
    "what",
    "calls (hit)",
    "lost",
    "agent heard again p50/p95/max s",
    "words lost/repeated",
    "caller's words missed in the gap",
    "questions unanswered",
    "conversation intact",
)


def outcome(what: str, verdicts: Sequence[Verdict], extra: Sequence[str]) -> Outcome:
    """`verdicts` are those of all calls; times only count calls that lost a stream."""
    hit = [it for it in verdicts if it.gaps]
    lost = [it.lost for it in verdicts if it.lost]
    back = _unheard(verdicts)
    times = "-"
    if back:
        p50, p95 = percentile(back, 50), percentile(back, 95)
        times = f"{p50:.2f} / {p95:.2f} / {back[-1]:.2f}"
    counts = Counter(text for it in verdicts for text in it.wrong)
    intact = sum(not it.wrong and not it.lost for it in verdicts)
    words = [sum(len(it.heard.lost) for it in verdicts)]
    words.append(sum(len(it.heard.repeated) for it in verdicts))
    row = (
        what,
        f"{len(verdicts)} ({len(hit)})",
        str(len(lost)),
        times,
        " / ".join(map(str, words)),
        str(sum(len(it.caller_missed) for it in hit)),
        str(sum(it.unanswered for it in verdicts)),
        f"{intact}/{len(verdicts)}",
    )
    remarks = [f"{count}x call lost: {why}" for why, count in Counter(lost).items()]
    away = sorted(gap.end - gap.begin for it in hit for gap in it.gaps)
    if away:
        p50, p95 = percentile(away, 50), percentile(away, 95)
        remarks.append(f"no stream for {p50:.2f} / {p95:.2f} / {away[-1]:.2f} s")
    remarks += _slow(hit)
    remarks += [f"{n}x conversation: {text}" for text, n in counts.most_common(6)]
    return Outcome(row, (*remarks, *extra), not lost)


def _unheard(verdicts: Sequence[Verdict]) -> list[float]:
    return sorted(gap.unheard for it in verdicts for gap in it.gaps)


def _slow(hit: Sequence[Verdict]) -> list[str]:
    """A line for each gap after which the agent was heard later than BACK_SECONDS."""
    slow = []
    for it in hit:
        for gap in it.gaps:
            if gap.unheard > BACK_SECONDS:
                slow.append(
                    f"agent heard after {gap.unheard:.1f} s; before the gap the agent "
                    f"was silent for {gap.agent_since:.1f} s, the caller for "
                    f"{gap.caller_since:.1f} s (missed: "
                    f"{counting.text(it.caller_missed) or 'nothing'})"
                )
    return slow


# --- measuring ----------------------------------------------------------------------


def fleet_of(model: ModelServer) -> Fleet:
    return Fleet(
        bridges=INSTANCES,
        model_url=model.url,
        drain_seconds=DRAIN_SECONDS,
        env={"BRIDGE_AGENT": AGENT, "BRIDGE_GREETING": "Greet them."},
    )


def calls_to(fleet: Fleet) -> CountedCalls:
    def caller() -> Caller:
        return Caller(
            webhook_url=fleet.voice_url,
            from_number=random_number(),
            max_seconds=CALL_SECONDS,
        )

    return CountedCalls(caller)


def conversations(model: ModelServer) -> list[Conversation]:
    return [session.conversation for session in model.sessions]


async def calls_of(bridge: Bridge) -> float:
    """The number of calls of an instance, from its metrics."""
    limit = aiohttp.ClientTimeout(2.0)
    async with (
        aiohttp.ClientSession(timeout=limit) as http,
        http.get(f"{bridge.url}/metrics") as answer,
    ):
        for line in (await answer.text()).splitlines():
            if line.startswith("bridge_calls_active "):
                return float(line.split()[1])
    return 0.0


async def kill(runs: int) -> Outcome:
    """kill -9 of an instance that has calls, repeated until `runs` calls were hit."""
    random = Random(4)
    verdicts: list[Verdict] = []
    async with ModelServer(BEHAVIOUR) as model, fleet_of(model) as fleet:
        calls = calls_to(fleet)
        while (
            sum(bool(it.gaps) for it in verdicts) < runs and len(verdicts) < 10 * runs
        ):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(calls.place(CALLS_A_ROUND, 3, KILL_RAMP_SECONDS))
                tasks.create_task(_kill_one(fleet, random.uniform(*KILL_AFTER)))
            verdicts = calls.verdicts(conversations(model))
    p95 = percentile(_unheard(verdicts), 95)
    extra = [f"p95 is {p95:.2f} s; the limit is {BACK_SECONDS:g} s"]
    return outcome("kill -9", verdicts, extra)


async def _kill_one(fleet: Fleet, after: float) -> None:
    """Kills the instance with the most calls and starts it again."""
    await asyncio.sleep(after)
    counts = [(await calls_of(bridge), bridge) for bridge in fleet.bridges]
    _, fullest = max(counts, key=lambda each: each[0])
    await fullest.kill()
    await fullest.start()
    await fleet.all_up()


async def rolling(calls: int) -> Outcome:
    """Each instance is ended by SIGTERM and started again, one after another."""
    codes: list[int] = []

    async def restart(fleet: Fleet) -> None:
        await asyncio.sleep(calls * RAMP_SECONDS + 4.0)
        for bridge in fleet.bridges:
            codes.append(await bridge.terminate())
            await bridge.start()
            await fleet.all_up()

    async with ModelServer(BEHAVIOUR) as model, fleet_of(model) as fleet:
        placed = calls_to(fleet)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(placed.place(calls, turns=10))
            tasks.create_task(restart(fleet))
    verdicts = placed.verdicts(conversations(model))
    result = outcome("rolling restart", verdicts, [f"exit codes {codes}"])
    good = result.good and codes == [0] * INSTANCES
    return Outcome(result.row, result.remarks, good)


async def redis(calls: int) -> Outcome:
    """Redis is stopped and started again while calls run and new calls arrive."""
    async with ModelServer(BEHAVIOUR) as model, fleet_of(model) as fleet:
        placed = calls_to(fleet)

        async def restart() -> None:
            # Half of the calls arrive while Redis is stopped or just started.
            await asyncio.sleep(calls * RAMP_SECONDS / 2)
            await fleet.restart_redis(REDIS_AWAY_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(placed.place(calls, turns=3))
            tasks.create_task(restart())
        logs = [_events_of(bridge.log) for bridge in fleet.bridges]
    verdicts = placed.verdicts(conversations(model))
    return outcome("Redis restarted", verdicts, [f"log: {dict(it)}" for it in logs])


def _events_of(log: Path) -> Counter[str]:
    """Counts the events of a bridge's log that are fleet events, warnings or errors."""
    events: Counter[str] = Counter()
    for line in log.read_text("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            events["no JSON"] += 1
            continue
        event, level = str(entry.get("event")), str(entry.get("level"))
        about_fleet = event.startswith(("fleet_", "redis_"))
        if about_fleet or level in ("warning", "error", "critical"):
            events[f"{level} {event}"] += 1
    return events


async def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("kill", "rolling", "redis")
    parser.add_argument("what", nargs="*", choices=[*names, []], help="default: all")
    parser.add_argument("--runs", type=int, default=RUNS, help="calls hit by a kill")
    parser.add_argument(
        "--calls", type=int, default=LOAD, help="calls of `rolling` and `redis`"
    )
    parser.add_argument("--quick", action="store_true", help="3 hit calls, 9 calls")
    chosen = parser.parse_args(arguments)
    runs, calls = (3, 9) if chosen.quick else (chosen.runs, chosen.calls)
    outcomes = []
    began = monotonic()
    for what in chosen.what or names:
        measure = {"kill": kill, "rolling": rolling, "redis": redis}[what]
        outcomes.append(await measure(runs if what == "kill" else calls))
        print(f"{what}: {monotonic() - began:.0f} s", file=sys.stderr)
    print(markdown([it.row for it in outcomes], COLUMNS))
    print()
    for each in outcomes:
        for remark in each.remarks:
            print(f"{each.row[0]}: {remark}")
    return 0 if all(it.good for it in outcomes) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
