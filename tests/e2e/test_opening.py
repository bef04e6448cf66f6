"""How a call begins: recordings, a greeting that cannot be cut. Over real sockets."""

import wave
from pathlib import Path

from bridge.app.recordings import recording
from bridge.app.route_types import Notice, RouteGreeting
from bridge.app.routes import Route
from bridge.audio.g711 import sound as mulaw_of
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import WAIT, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=12)


async def test_a_notice_that_cannot_be_cut() -> None:
    """The caller hears it to its end, though they speak and press a key in it, and
    though the server itself cancels what a caller interrupts; then they are answered.
    """
    behaviour = Behaviour(turns=[[PlayRuler(2500)], [PlayRuler(500)]], speed=1.2)
    route = Route(greeting=RouteGreeting("This call is recorded.", interruptible=False))
    async with bridge(behaviour, route=route) as place:
        script = [
            steps.HearStep(400),
            steps.SayStep(WAIT),
            *(LISTEN, steps.ListenStep(0.5, 12), steps.HangUpStep()),
        ]
        record = await place.caller().call(script)
        await place.empty()

    assert read_ruler(record.heard).heard_ms == {1: 2500, 2: 500}
    assert not record.clears
    assert place.session.caller_turns == 1, "what they said meanwhile was kept"


async def test_recordings_begin_a_call(tmp_path: Path) -> None:
    """The caller hears the notice to its end, and the greeting until they interrupt it;
    the model knows the words that were heard."""
    samples = b"".join(n.to_bytes(2, "little") for n in range(3000, 11_000))
    path = str(tmp_path / "hello.wav")
    with wave.open(path, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(samples * 2)
    words = "one two three four five six seven eight"
    route = Route(
        notice=Notice(path, "This call is recorded."),
        greeting=RouteGreeting(file=path, words=words),
    )
    async with bridge(Behaviour(turns=[[PlayRuler(500)]]), route=route) as place:
        script = [steps.HearStep(2500), steps.SayStep(WAIT), LISTEN]
        record = await place.caller().call([*script, steps.HangUpStep()])
        await place.empty()

    sound = mulaw_of([recording(path)])
    assert record.heard.startswith(sound + sound[:2400])
    assert read_ruler(record.heard).heard_ms == {1: 500}
    notice, greeting = (
        next(it for it in place.session.conversation if it.text.startswith(begins))
        for begins in ("This call", "one")
    )
    assert notice.text == "This call is recorded."
    assert words.startswith(greeting.text.strip())
    assert greeting.text != words
