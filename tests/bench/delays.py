"""The bridge's delays: frame -> append, delta -> media, speech_started -> clear.

    .venv/bin/python -m tests.bench.delays

One call on an idle machine. The bridge runs in its own process, the fakes share this
process. The figures include the work of the fakes and of both sockets, so the bridge's
own delay is less. Exits 1 if a delay exceeds BOUNDS_MS.
"""

import asyncio
import sys

from bridge.sim.caller import Caller, random_number
from bridge.sim.load_delays import delays, down_delays, up_delays
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from bridge.sim.ruler import ruler
from bridge.sim.server_process import bridge_process
from bridge.sim.twilio import steps

ANSWERS = 8
INTERRUPTIONS = 40
BOUNDS_MS = {"p50": 1.0, "p99": 5.0, "clear": 2.0}


def speech() -> steps.Step:
    return steps.SayStep(ruler(1, 500))


async def main() -> int:
    turns: list[steps.Step] = [speech(), steps.ListenStep()] * ANSWERS
    barge_ins = [steps.HearStep(300), speech()] * INTERRUPTIONS
    async with (
        ModelServer(
            Behaviour(fallback=[PlayRuler(6000)]), record_appends=True
        ) as model,
        bridge_process(model.url) as bridge,
    ):
        caller = Caller(
            webhook_url=bridge.webhook_url,
            from_number=random_number(),
            keep_frame_times=True,
        )
        await caller.call(
            [speech(), steps.HearStep(300), steps.HangUpStep()]
        )  # to warm up
        heard = await caller.call([steps.WaitStep(1), *turns, steps.HangUpStep()])
        cut = await caller.call([speech(), *barge_ins, steps.HangUpStep()])
    _, session, interrupted = model.sessions
    up = delays([ms for _, ms in up_delays(heard, session, 1)])
    down = delays([ms for _, ms in down_delays(heard, session)])
    # The first turn of the caller interrupts no answer.
    pairs = zip(interrupted.speech_started_at[1:], cut.clears, strict=True)
    clears = delays([1000 * (clear.at - at) for at, clear in pairs])
    for name, way in (
        ("caller frame -> append", up),
        ("delta -> media", down),
        ("speech_started -> clear", clears),
    ):
        print(
            f"{name:>24}: p50 {way.p50:.2f} ms, p99 {way.p99:.2f} ms, "
            f"max {way.most:.2f} ms ({way.count})"
        )
    good = all(
        way.p50 < BOUNDS_MS["p50"] and way.p99 < BOUNDS_MS["p99"] for way in (up, down)
    )
    return 0 if good and clears.p99 < BOUNDS_MS["clear"] else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
