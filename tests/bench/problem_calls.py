"""Ten calls, each with one problem, and what the top of their pictures says of them.

    python -m tests.bench.problem_calls FOLDER [--blind]

Places the calls over real sockets, at the same time, and writes a page of each into the
folder. Prints each cause, and the first problems that the picture names. With `--blind`
the pages are numbered at random, and the causes are written to `causes.json` alone:
someone who reads the pages names the causes first.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.realtime import RealtimeAgent
from rich.console import Console
from rich.table import Table

from bridge.app.routes import Route
from bridge.model.session_settings import SessionSettings
from bridge.picture import files, page, reading
from bridge.picture.problems import problems
from bridge.picture.view import CallView
from bridge.sim.model import Behaviour, CallTool, SayText, Turn
from bridge.sim.realtime import faults
from bridge.sim.twilio import steps
from bridge.sim.twilio.network import Network
from bridge.sim.voice import speak
from tests.e2e.bridge import RunningBridge, bridge
from tests.support.waiting import until

NETWORK = Network(60, 60, 30, 5)
LISTEN = steps.ListenStep(quiet_seconds=0.8, timeout=15)
HANG_UP = steps.HangUpStep()
HELLO = speak("Hello, when are you open on Saturday?").mulaw()
WAIT = speak("Wait a moment please, I have another question.").mulaw()
SHORT: Turn = [SayText("We are open from nine to five.")]
LONG: Turn = [
    SayText(
        "On Saturday we are open from ten in the morning until two in the afternoon, "
        "and in December until four, except on Christmas Eve."
    )
]


@function_tool
async def order_lookup(number: str) -> str:
    """Looks up an order."""
    await asyncio.sleep(4)
    return f"order {number} arrives on Monday"


@function_tool
async def price_of(item: str) -> str:
    """The price of an item."""
    raise KeyError(item)


async def no_prices(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    """Trips at a price."""
    return GuardrailFunctionOutput(output, tripwire_triggered="dollars" in output)


AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="shop", instructions="Help.", tools=[order_lookup, price_of]
)
GUARDED: RealtimeAgent[Any] = RealtimeAgent(
    name="shop",
    instructions="Help.",
    output_guardrails=[OutputGuardrail(no_prices, name="no_prices")],
)

Act = Callable[[RunningBridge], Awaitable[None]]


async def nothing(place: RunningBridge) -> None:
    """The call goes its way."""


async def lose_the_model(place: RunningBridge) -> None:
    await until(lambda: bool(place.model.sessions), 30)
    await until(
        lambda: sum(it.sent_ms for it in place.session.items.values()) > 1500, 30
    )
    place.model.inject(faults.drop)


@dataclass(frozen=True, slots=True)
class Scene:
    """A call with a problem. `named`: words of the problem that names its cause."""

    behaviour: Behaviour
    named: str
    script: Sequence[steps.Step] = (steps.SayStep(HELLO), LISTEN, HANG_UP)
    agent: RealtimeAgent[Any] = field(default_factory=lambda: AGENT)
    session: dict[str, Any] = field(default_factory=dict)
    act: Act = nothing


OVER = (
    steps.SayStep(HELLO),
    steps.HearStep(1200),
    steps.SayStep(WAIT),
    LISTEN,
    HANG_UP,
)

SCENES = {
    "interruption switched off": Scene(
        Behaviour(turns=[LONG, SHORT]),
        "interrupt_response is off",
        OVER,
        session={"turn_detection": {"type": "server_vad", "interrupt_response": False}},
    ),
    "slow tool": Scene(
        Behaviour(turns=[[CallTool("order_lookup", {"number": "7"})], SHORT]),
        "in the tool order_lookup",
        (steps.SayStep(HELLO), steps.WaitStep(6), LISTEN, HANG_UP),
    ),
    "failing tool": Scene(
        Behaviour(turns=[[CallTool("price_of", {"item": "tea"})], SHORT]),
        "The tool price_of failed",
    ),
    "lost model": Scene(
        Behaviour(turns=[LONG, SHORT], speed=1.5),
        "The connection to the model was lost",
        act=lose_the_model,
    ),
    "lost line": Scene(
        Behaviour(turns=[LONG, SHORT]),
        "The caller's line was lost",
        (steps.SayStep(HELLO), steps.HearStep(1200), steps.DropStep(), LISTEN, HANG_UP),
    ),
    "guardrail": Scene(
        Behaviour(turns=[[SayText("That is forty dollars, please." * 4)], SHORT]),
        "A guardrail stopped the agent",
        agent=GUARDED,
    ),
    "answer without sound": Scene(
        Behaviour(turns=[[], SHORT]),
        "had no sound",
    ),
    "wrong language of transcription": Scene(
        Behaviour(turns=[SHORT], recogniser=lambda _: "Здравствуйте, когда вы открыты"),
        "the wrong language of transcription",
    ),
    "flood of keys": Scene(
        Behaviour(turns=[LONG], fallback=SHORT),
        "keys were pressed in",
        (
            steps.SayStep(HELLO),
            steps.HearStep(800),
            steps.PressStep("5" * 30, gap_seconds=0.1),
            LISTEN,
            HANG_UP,
        ),
    ),
    "caller on hold": Scene(
        Behaviour(turns=[SHORT, LONG]),
        "the caller was on hold or muted",
        (
            steps.SayStep(HELLO),
            LISTEN,
            steps.GapStep(9000, "dtx"),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ),
    ),
}


async def place_call(scene: Scene, folder: Path) -> CallView:
    """Places the call of a scene. Its view."""
    route = Route(session=SessionSettings.read(scene.session))
    behaviour = scene.behaviour
    async with bridge(
        behaviour, agent=scene.agent, route=route, record_dir=folder
    ) as place:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(place.caller(network=NETWORK).call(scene.script))
            await scene.act(place)
        await until(lambda: not place.server.calls, 10)
    [trace] = folder.glob("*.zst")
    return reading.view(trace)


async def place_all(folder: Path, chosen: dict[str, Scene]) -> dict[str, CallView]:
    folders = {name: folder / name.replace(" ", "_") for name in chosen}
    async with asyncio.TaskGroup() as tasks:
        calls = {
            name: tasks.create_task(place_call(scene, folders[name]))
            for name, scene in chosen.items()
        }
    return {name: call.result() for name, call in calls.items()}


def is_named(scene: Scene, view: CallView) -> bool:
    """The problem that names the cause is one of the first two."""
    return any(scene.named in it.title for it in problems(view)[:2])


def write_blind(views: dict[str, CallView], folder: Path) -> None:
    names = list(views)
    random.SystemRandom().shuffle(names)
    for number, name in enumerate(names, 1):
        content = page.page(views[name]).encode()
        files.write_private(folder / f"{number}{files.PAGE_SUFFIX}", content)
    causes = {str(number): name for number, name in enumerate(names, 1)}
    files.write_private(folder / "causes.json", json.dumps(causes, indent=1).encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blind", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        views = asyncio.run(place_all(Path(temporary), SCENES))
    if given.blind:
        write_blind(views, given.folder)
        return 0
    table = Table("cause", "named", "the first problems", box=None)
    good = 0
    for name, view in views.items():
        path = given.folder / f"{name.replace(' ', '_')}{files.PAGE_SUFFIX}"
        files.write_private(path, page.page(view).encode())
        named = is_named(SCENES[name], view)
        good += named
        first = "\n".join(it.title for it in problems(view)[:3]) or "-"
        table.add_row(name, "yes" if named else "NO", first)
    Console(width=160).print(table, f"{good} of {len(views)} are named at the top.")
    return 0 if good == len(views) else 1


if __name__ == "__main__":
    sys.exit(main())
