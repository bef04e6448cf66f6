"""Listen to all events of a call, keep numbers of them, and make the model forget.

Offline:  .venv/bin/bridge demo --agent examples/listener.py:agent
For real: BRIDGE_AGENT=examples/listener.py:agent

One subscription gets all events: those of the SDK's session, what was said and heard,
and the bridge's own. docs/agent.md lists them. A listener that is slow or raises misses
events; the call continues.
"""

import re
from collections import Counter
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge import BackgroundResult, CallEvent, LiveCall, background_result

CARD = re.compile(r"\d(?:[ -]?\d){12,18}")


def agent(call: LiveCall) -> RealtimeAgent[Any]:
    """The agent of one call, and its listeners."""
    counts: Counter[str] = Counter()
    heard_ms: list[int] = []  # of answers that the caller interrupted
    topics: list[str] = []
    # `notes` are for your data, and part of the call's report (examples/reports.py).
    call.notes.update(counts=counts, heard_ms=heard_ms, topics=topics)

    async def everything(event: CallEvent) -> None:
        counts[event.type] += 1

    async def cut(event: CallEvent) -> None:
        heard_ms.append(event.data["heard_ms"])

    async def forget_cards(event: CallEvent) -> None:
        """After this, the model no longer knows the number."""
        without = CARD.sub("[a card number]", event.data["text"])
        if without != event.data["text"]:
            call.update_history(correct={event.data["item"]: without})

    call.on(everything)
    call.on(cut, "audio_interrupted")
    call.on(forget_cards, "caller_said")

    @function_tool
    def note_topic(topic: str) -> BackgroundResult:
        """Note what the call is about, as soon as it is clear."""
        topics.append(topic)
        return background_result("noted")  # the agent does not speak about it

    return RealtimeAgent(
        name="watched",
        instructions="You are on the phone. Help with whatever is asked, briefly.",
        tools=[note_topic],
    )
