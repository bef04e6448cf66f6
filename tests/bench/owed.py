"""A caller who is owed sound: how long they hear nothing after each fault of a server.

    .venv/bin/python -m tests.bench.owed [--before DIR] [--only stuck,tool]

`bridge serve` in a process of its own, real sockets. The fake model leaves things out
as real servers have been reported to do. All scenes run at the same time, each in a
call of its own. Printed for each: seconds from the moment at which the caller is owed
sound to any sound (a tone counts), and to speech of the agent or a sentence of Twilio;
and what the agent was told that is false. `--before`: the same scenes with the bridge
of another work tree, such as `git worktree add --detach DIR c4e8c03`, the commit before
the watch.

Exits 1 if a scene of this tree is beyond its goals: 4 s to a sound, 10 s to speech
(13 s if the server refuses that the agent speaks of a tool of 12 s), and nothing false.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from bridge.sim.caller import Caller, CallRecord, PlacedCall, random_number
from bridge.sim.model import (
    Behaviour,
    BreakOff,
    CallTool,
    Fail,
    ModelServer,
    ModelSession,
    PlayRuler,
    SayText,
    Turn,
    TurnContext,
)
from bridge.sim.ruler import read_ruler
from bridge.sim.server_process import bridge_process
from bridge.sim.twilio import steps
from bridge.sim.twilio.playout import SILENCE
from bridge.sim.voice import speak

ROOT = Path(__file__).resolve().parents[2]
AGENT = Path(__file__).with_name("owed_agent.py")

SOUND_GOAL, SPEECH_GOAL = 4.0, 10.0
WAIT_SECONDS = 45.0
"""A caller who has heard no speech for this long hangs up."""

GREETED, SILENT = "+15557650001", "+15557650002"
"""Numbers of the bridge: the agent greets the caller, or the caller speaks first."""

ROUTES = f"""
defaults: {{greeting: ""}}
routes:
  - {{name: greeted, number: "{GREETED}", greeting: "Go."}}
  - {{name: silent, number: "{SILENT}"}}
"""

HELLO = speak("Hello.").mulaw()
LOUD = HELLO * 60
"""A loud background: the server hears speech all the time."""

SAYS = PlayRuler(500)
OLD = "The caller has been silent"
"""Beginning of what the agent is told of a silent caller: here, always false."""


# --- the scenes -----------------------------------------------------------------------

Moment = Callable[[CallRecord, ModelSession], float | None]
"""Since when the caller is owed sound; None: not yet."""


def ready(record: CallRecord, session: ModelSession) -> float | None:
    """The greeting is due."""
    return session.configured_at


def turn(number: int = 1) -> Moment:
    """The caller has said so many things."""

    def moment(record: CallRecord, session: ModelSession) -> float | None:
        spoken = record.spoken
        return spoken[number - 1].ended_at if len(spoken) >= number else None

    return moment


def result(record: CallRecord, session: ModelSession) -> float | None:
    """The first result of a tool has reached the model."""
    for at, event in session.received:
        if event.get("item", {}).get("type") == "function_call_output":
            return at
    return None


def played(ms: int) -> Moment:
    """The caller has heard so much of the agent."""

    def moment(record: CallRecord, session: ModelSession) -> float | None:
        first = next(speech(record, 0.0), None)
        return None if first is None else first + ms / 1000

    return moment


@dataclass(frozen=True, slots=True)
class Scene:
    """A call in which a server leaves the caller without sound."""

    behaviour: Behaviour
    owed: Moment
    script: Sequence[steps.Step] = ()
    number: str = SILENT
    speech_goal: float = SPEECH_GOAL


def says_hello(**behaviour: object) -> Scene:
    """The caller says a word, and the server does not do what it should."""
    made = Behaviour(fallback=[SAYS], user_texts=["Hello?"])
    return Scene(_with(made, behaviour), turn(), [steps.SayStep(HELLO)])


def greets(*turns: Turn, **behaviour: object) -> Scene:
    """The answers to the greeting, one after the other."""
    made = Behaviour(turns=turns, fallback=[SAYS])
    return Scene(_with(made, behaviour), ready, number=GREETED)


def breaks_off(why: str) -> Scene:
    behaviour = Behaviour(turns=[[PlayRuler(800), BreakOff(why)]], fallback=[SAYS])
    return Scene(behaviour, played(800), number=GREETED)


def calls(*seconds: float, words: int = 1) -> Turn:
    """Calls of a tool, together, that take so many seconds."""
    given = "It is 42. " * words
    return [CallTool("look_up", {"seconds": it, "result": given}) for it in seconds]


def ignores_requests(event: dict[str, Any]) -> dict[str, Any]:
    """What a dead server understands of a client event."""
    if event.get("type") == "response.create":
        return {"type": "session.update", "session": {"type": "realtime"}}
    return event


def refuses_interim(event: dict[str, Any]) -> dict[str, Any]:
    """A server that takes no parameters of a response."""
    if event.get("type") == "response.create" and event.get("response"):
        return {**event, "response": {"tool_choice": "unknown"}}
    return event


def noise() -> Scene:
    """The server finds no words in what has stopped the agent."""
    behaviour = Behaviour(
        turns=[[PlayRuler(6000)]],
        fallback=[SAYS],
        unanswered_turns=frozenset({1}),
        recogniser=lambda audio: " ",
    )
    script = [steps.HearStep(1000), steps.SayStep(HELLO)]
    return Scene(behaviour, turn(), script, GREETED)


def goes_on(*, ends: bool) -> Scene:
    """The server does not end a turn, and the caller goes on after the answer to it."""
    behaviour = Behaviour(
        fallback=[SAYS],
        stuck_turns=frozenset({1} if ends else {1, 2}),
        commit_keeps_speech=True,
    )
    script = [steps.SayStep(HELLO), steps.WaitStep(7.5), steps.SayStep(HELLO)]
    return Scene(behaviour, turn(2), script)


def result_behind(said: bytes, seconds: float) -> Scene:
    """A tool's result comes while the server hears a turn that it does not end."""
    behaviour = Behaviour(
        turns=[calls(seconds)],
        fallback=[SAYS],
        stuck_turns=frozenset({1}),
        commit_keeps_speech=True,
    )
    script = [steps.WaitStep(0.5), steps.SayStep(said)]
    return Scene(behaviour, result, script, GREETED)


def refuses_output() -> Scene:
    def step(heard: TurnContext) -> Turn:
        if heard.number == 1:
            return calls(0.2, words=50)
        items = [it for it in heard.conversation if it.kind != "function_call"]
        knows = any("It is 42" in it.text for it in items)
        return [SAYS] if knows else [PlayRuler(UNKNOWING_MS)]

    behaviour = Behaviour(answer=step, longest_output=200)
    return Scene(behaviour, result, number=GREETED)


UNKNOWING_MS = 440
"""Length of an answer that does not know the result of the tool."""


def _with(behaviour: Behaviour, changes: dict[str, object]) -> Behaviour:
    kept = {name: getattr(behaviour, name) for name in behaviour.__dataclass_fields__}
    return Behaviour(**{**kept, **changes})


def scenes() -> dict[str, Scene]:
    written, rate = SayText("Hello!", written=True), "Rate limit reached."
    told = f"{rate} Please try again in 1.8s."
    stuck = frozenset({1})
    return {
        "greeting: only text": greets([written]),
        "greeting: completed, empty": greets([]),
        "greeting: twice without sound": greets([written], []),
        "greeting: never any sound": greets(fallback=[written]),
        "incomplete: max_output_tokens": breaks_off("max_output_tokens"),
        "incomplete: content_filter": breaks_off("content_filter"),
        "turn: no response.created": says_hello(unanswered_turns=stuck),
        "turn: the same, and an error": says_hello(
            unanswered_turns=stuck, turn_errors=True
        ),
        "turn: response.created after 4.2 s": says_hello(begins_late=4.2),
        "turn: dead server, also when asked": says_hello(
            unanswered_turns=stuck, hears=ignores_requests
        ),
        "greeting: dead server": greets(hears=ignores_requests),
        "rate limit: 166 ms, then 1.8 s": greets(
            [Fail(message="Please try again in 166ms.")], [Fail(message=told)]
        ),
        "rate limit: no time, three times": greets(*[[Fail(message=rate)]] * 3),
        "rate limit: in 6 s": greets([Fail(message="Please try again in 6s.")]),
        "rate limit: in 12 s": greets([Fail(message="Please try again in 12s.")]),
        "rate limit: for ever": greets(fallback=[Fail(message=rate)]),
        "VAD stuck": says_hello(stuck_turns=stuck),
        "VAD stuck, the caller goes on": goes_on(ends=True),
        "VAD stuck for ever, the caller goes on": goes_on(ends=False),
        "VAD stuck, a tool's result": result_behind(HELLO, 2.0),
        "VAD stuck in noise, a tool's result": result_behind(LOUD, 3.0),
        "false interruption": noise(),
        "two tools, 0.5 s apart": greets(calls(0.2, 0.7)),
        "two tools, 20 s apart": greets(calls(0.2, 20.0)),
        "a tool of 12 s": greets(calls(12.0)),
        "a tool of 12 s, refused meanwhile": replace(
            greets(calls(12.0), hears=refuses_interim), speech_goal=13.0
        ),
        "an answer that begins after 8 s": says_hello(think_seconds=8.0),
        "tool output refused": refuses_output(),
    }


# --- what the caller hears ------------------------------------------------------------


def _played(record: CallRecord, since: float) -> Iterator[tuple[float, memoryview]]:
    """What was played after `since`: (time, audio)."""
    now = monotonic()
    for run in record.runs():
        skipped = max(round((since - run.start) * 8000), 0)
        until = max(round((now - run.start) * 8000), 0)
        yield run.start + skipped / 8000, memoryview(bytes(run.audio))[skipped:until]


def sounds(record: CallRecord, since: float) -> Iterator[float]:
    """Times at which the caller hears a sound."""
    for start, audio in _played(record, since):
        yield from (start + n / 8000 for n, it in enumerate(audio) if it != SILENCE)


RULER_SYNC, RULER_BLOCK, BLOCKS = 0xB5, 8, 6


def speech(record: CallRecord, since: float) -> Iterator[float]:
    """Times at which the caller hears the agent: its audio is ruler audio."""
    for start, audio in _played(record, since):
        for n in range(len(audio) - BLOCKS * RULER_BLOCK):
            if all(audio[n + RULER_BLOCK * it] == RULER_SYNC for it in range(BLOCKS)):
                yield start + n / 8000


@dataclass(slots=True)
class Heard:
    """What a caller heard, in seconds since they were owed sound; None: never."""

    sound: float | None = None
    speech: float | None = None
    by_twilio: bool = False
    """The speech is a sentence of Twilio's, such as the apology."""
    false: list[str] = field(default_factory=list)

    def is_good(self, scene: Scene) -> bool:
        if self.sound is None or self.speech is None or self.false:
            return False
        return self.sound <= SOUND_GOAL and self.speech <= scene.speech_goal


def measured(record: CallRecord, session: ModelSession, since: float) -> Heard:
    sound, spoken = next(sounds(record, since), None), next(speech(record, since), None)
    heard = Heard()
    if record.said_by_twilio:
        asked = [it.at for it in record.requests if it.path.endswith("/voice/next")]
        first = min(asked, default=monotonic())
        if spoken is None or first < spoken:
            spoken, heard.by_twilio = first, True
    both = [it for it in (sound, spoken) if it is not None]
    heard.sound = min(both) - since if both else None
    heard.speech = None if spoken is None else spoken - since
    told = [it.text for it in session.items.values() if it.role == "system"]
    heard.false = [it for it in told if it.startswith(OLD)]
    if any(it == UNKNOWING_MS for it in read_ruler(record.heard).heard_ms.values()):
        heard.false.append("an answer that does not know the result")
    return heard


async def play(placed: PlacedCall, scene: Scene, sessions: list[ModelSession]) -> Heard:
    """The call, until the caller has heard speech, or has waited too long."""
    record = placed.record
    script = [*scene.script, steps.WaitStep(10 * WAIT_SECONDS)]
    since: float | None = None
    limit = monotonic() + 2 * WAIT_SECONDS
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(placed.run(script))
        while not call.done() and monotonic() < limit:
            await asyncio.sleep(0.2)
            if not sessions:
                continue
            if since is None:
                since = scene.owed(record, sessions[0])
                limit = limit if since is None else since + WAIT_SECONDS
            elif next(speech(record, since), None) is not None:
                await asyncio.sleep(SAYS.ms / 1000 + 0.3)
                break
        placed.end("caller")
    return Heard() if since is None else measured(record, sessions[0], since)


# --- all of them ----------------------------------------------------------------------


async def run(root: Path, chosen: dict[str, Scene]) -> dict[str, Heard]:
    """All scenes, against the bridge in this work tree."""
    calls: dict[str, asyncio.Task[Heard]] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as routes:
        routes.write(ROUTES)
        routes.flush()
        more = {
            "PYTHONPATH": str(root),
            "BRIDGE_INSECURE": "1",
            "BRIDGE_AGENT": f"{AGENT}:AGENT",
            "BRIDGE_ROUTES": routes.name,
        }
        async with (
            ModelServer() as model,
            bridge_process(model.url, more=more) as process,
            asyncio.TaskGroup() as tasks,
        ):
            for name, scene in chosen.items():
                # Each call has the next session, and the behaviour of its scene.
                model.behaviour = scene.behaviour
                known = len(model.sessions)
                caller = Caller(
                    webhook_url=process.webhook_url,
                    from_number=random_number(),
                    to_number=scene.number,
                )
                sessions: list[ModelSession] = []
                work = play(PlacedCall(caller), scene, sessions)
                calls[name] = tasks.create_task(work)
                async with asyncio.timeout(20):
                    while len(model.sessions) == known:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                sessions.append(model.sessions[-1])
            model.behaviour = Behaviour(fallback=[SAYS])  # of sessions that follow
    return {name: task.result() for name, task in calls.items()}


def shown(heard: Heard) -> list[str]:
    def seconds(it: float | None) -> str:
        return "never" if it is None else f"{max(it, 0.0):.1f}"

    speech = "Twilio, " if heard.by_twilio else ""
    return [
        seconds(heard.sound),
        speech + seconds(heard.speech),
        str(len(heard.false) or "-"),
    ]


def printed(results: dict[str, dict[str, Heard]], chosen: dict[str, Scene]) -> str:
    """A table in Markdown."""
    columns = ["any sound", "speech", "false"]
    head = [f"{tree}: {it}" for tree in results for it in columns]
    lines = [["scene", *head, ""], ["---"] * (len(head) + 2)]
    for name, scene in chosen.items():
        cells = [cell for tree in results.values() for cell in shown(tree[name])]
        good = results["after"][name].is_good(scene)
        lines.append([name, *cells, "" if good else "beyond the goal"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    reads = argparse.ArgumentParser(description="Silence after faults of the server.")
    reads.add_argument("--before", type=Path, help="another work tree to compare with")
    reads.add_argument("--only", default="", help="parts of the scenes' names")
    given = reads.parse_args()
    parts = given.only.split(",")
    chosen = {
        name: it for name, it in scenes().items() if any(part in name for part in parts)
    }
    trees = {"before": given.before.resolve()} if given.before else {}
    results = {
        tree: asyncio.run(run(root, chosen))
        for tree, root in {**trees, "after": ROOT}.items()
    }
    sys.stdout.write(printed(results, chosen) + "\n")
    after = results["after"]
    return 0 if all(after[name].is_good(it) for name, it in chosen.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
