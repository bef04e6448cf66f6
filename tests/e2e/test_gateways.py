"""What gateways do to a session (docs/models.md; `python -m tests.bench.gateways` shows
it with the gateways themselves): the caller notices nothing."""

import json

from bridge.sim.model import Behaviour, Direction, ModelSession, PlayRuler, SayText
from bridge.sim.realtime import faults
from bridge.sim.realtime.client_events import Json
from bridge.sim.realtime.context import SessionContext
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.5, timeout=10)
HANG_UP = steps.HangUpStep()


def without_session_created(context: SessionContext) -> None:
    """Nothing is sent before the client's first event."""

    def on_event(session: ModelSession, direction: Direction, event: Json) -> None:
        if direction == "received":
            session.out.muted = False

    assert isinstance(context, ModelSession)
    context.out.muted = True
    context.observe(on_event)


async def test_a_gateway_that_loses_session_created() -> None:
    """Portkey drops what the model sends before its client is connected: the greeting
    is heard."""
    behaviour = Behaviour(fallback=[PlayRuler(400)])
    async with bridge(behaviour, greeting="Go.") as place:
        place.model.inject_next(without_session_created)
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    assert read_ruler(record.heard).heard_ms == {1: 400}
    assert len(place.model.sessions) == 1


async def test_a_gateway_that_reports_the_end_of_the_session() -> None:
    """LiteLLM sends an `error` without event_id and code, then closes with 1011: the
    call goes on in a new session, which knows the conversation."""
    end = {"type": "error", "error": {"type": "server_error", "message": "closed"}}

    def lose(session: SessionContext) -> None:
        faults.saying(json.dumps(end))(session)
        faults.closing(1011, "upstream websocket closed with code 1006")(session)

    behaviour = Behaviour(
        turns=[[SayText("Hello, the front desk.")]], fallback=[PlayRuler(400)]
    )
    async with bridge(behaviour, greeting="Go.") as place:

        def on_event(session: ModelSession, direction: Direction, event: Json) -> None:
            """The first session is lost when the caller's next turn begins."""
            first = session is place.model.sessions[0]
            started = event["type"] == "input_audio_buffer.speech_started"
            if first and started and direction == "sent":
                lose(session)

        place.model.inject_next(lambda it: it.observe(on_event))  # type: ignore[attr-defined]
        script = [LISTEN, steps.SayStep(HELLO), LISTEN, HANG_UP]
        record = await place.caller().call(script)
        await place.empty()

    assert len(place.model.sessions) == 2
    known = " ".join(item.text for item in place.session.conversation)
    assert "Hello, the front desk." in known
    assert record.ended_by == "caller"
