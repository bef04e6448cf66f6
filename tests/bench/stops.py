"""Belief error on networks that stop, in simulated time: many calls in seconds.

    .venv/bin/python -m tests.bench.stops --calls 40

The core, a network that loses packets, a Twilio and a model with a VAD, all on one
virtual clock, so the load of the machine changes nothing. `bridge sim accuracy --stops`
measures the same over real sockets, in real time. Exits 1 beyond P95_MS or WORST_MS.
"""

import argparse
import base64
import heapq
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import Any

from bridge.core import realtime_events, twilio_messages
from bridge.core.commands import Command, Switch, ToCaller, ToModel
from bridge.core.conversation import Conversation
from bridge.core.inputs import Dialled, FromModel, FromPhone, Input, Tell, Tick
from bridge.core.rules import Rules
from bridge.core.sessions import FIRST_CONNECTION
from bridge.sim.belief import percentile
from bridge.sim.ruler import read_ruler, ruler
from bridge.sim.scenes import (
    LEFT,
    LOSSY_NETWORKS,
    NETWORKS,
    SCENES,
    SOONEST,
    Scene,
    hole,
    label,
)
from bridge.sim.twilio.network import Network, NetworkLink
from bridge.sim.twilio.playout import Playout

P95_MS = 25.0
WORST_MS = 100.0

FRAME = 0.02
QUIET, LOUD = (base64.b64encode(bytes([it]) * 160).decode() for it in (0xFF, 0x55))
SPEECH_SECONDS = 0.6
VAD_START_FRAMES = 2
VAD_END_FRAMES = 25
"""Frames of 20 ms after which the server hears a turn begin, and end (500 ms)."""
MODEL_SECONDS = 0.3
"""From a request to the first audio of the response."""
SERVER_DELAY = 0.01
INTERRUPTIONS = 8


@lru_cache(maxsize=64)
def audio_of(number: int, ms: int) -> bytes:
    return ruler(number, ms)


@dataclass
class Item:
    number: int
    ms: int
    sent: int = 0
    truncated_ms: int | None = None
    deleted: bool = False

    @property
    def name(self) -> str:
        return f"item{self.number}"

    @property
    def believed_ms(self) -> float:
        if self.deleted:
            return 0.0
        return self.sent / 8 if self.truncated_ms is None else float(self.truncated_ms)


@dataclass
class Error:
    """One item that was not heard as the model believes."""

    ms: float
    cut: bool
    where: str
    item: Item
    heard_ms: float


@dataclass(order=True)
class Due:
    at: float
    order: int
    act: Callable[[], None] = field(compare=False)


class SimulatedCall:
    """A caller who interrupts each answer, in simulated time."""

    def __init__(
        self,
        scene: Scene,
        network: Network,
        seed: int,
        *,
        server_responds: bool = True,
        trace: bool = False,
    ) -> None:
        self.random = Random(f"{scene.name} {label(network)} {seed}")
        self.scene, self.server_responds = scene, server_responds
        self.behaviour = scene.behaviour(self.random)
        self.network = replace(network, seed=self.random.getrandbits(32))
        self.up, self.down = self.network.up(), self.network.down()
        self.trace = trace
        self.now = self.began = 10.0
        self.heap: list[Due] = []
        self.order = 0
        self.twilio = Playout(None)
        self.echo_at: float | None = None
        self.items: list[Item] = []
        self.response = 0
        self.generating: list[Item] | None = None
        self.speaks_until = 0.0
        self.loud = self.quiet = 0
        self.server_hears = False
        self.answers_heard = 0
        self.interruptions = 0
        self.wait_for_item: int | None = None
        self.over = False
        self.waits: list[float] = []
        self.wanted_at: float | None = None
        self.sid = "MZ"
        self.talk = Conversation(now=self.now, rules=Rules(resumes_after_noise=False))
        self.connection = FIRST_CONNECTION

    # --- the schedule ---

    def at(self, when: float, act: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, Due(max(when, self.now), self.order, act))

    def run(self) -> list[Error]:
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"callSid": "CA", "mediaFormat": form}
        self.hear({"event": "start", "streamSid": self.sid, "start": start})
        self.gives(Dialled(FIRST_CONNECTION))
        detection = {"type": "server_vad", "interrupt_response": True}
        detection["create_response"] = self.server_responds
        pcmu = {"format": {"type": "audio/pcmu"}}
        audio = {"input": {**pcmu, "turn_detection": detection}, "output": pcmu}
        self.session = {"audio": audio}
        self.event("session.updated", session=self.session)
        self.frame_number = 0
        self.at(self.now + FRAME, self.send_frame)
        self.at(self.now + self.random.uniform(0.5, 1.5), self.speak)
        while self.heap and not self.over:
            deadline = self.talk.deadline
            if deadline is not None and deadline < self.heap[0].at:
                self.now = max(self.now, deadline)
                self.gives(Tick())
                continue
            due = heapq.heappop(self.heap)
            self.now = due.at
            due.act()
        return self.judge()

    # --- the caller, at Twilio ---

    def speak(self) -> None:
        self.speaks_until = self.now + SPEECH_SECONDS
        self.wait_for_item = len(self.items)

    def send_frame(self) -> None:
        loud = self.now <= self.speaks_until
        media = {
            "timestamp": str(20 * self.frame_number),
            "payload": LOUD if loud else QUIET,
        }
        self.frame_number += 1
        self.to_bridge({"event": "media", "streamSid": self.sid, "media": media})
        self.at(self.began + (self.frame_number + 1) * FRAME, self.send_frame)
        self.listen()

    def listen(self) -> None:
        """The caller hears the answer begin, and interrupts it some time later."""
        if self.wait_for_item is None or not self.speaks_until < self.now:
            return
        heard = self.twilio.heard
        if not heard.runs or heard.runs[-1].start < self.speaks_until:
            return
        if self.twilio.buffered(self.now) == 0:
            return
        self.wait_for_item = None
        net = self.network
        trip = (net.up_ms + net.down_ms + 2 * net.jitter_ms) / 1000
        latest = self.scene.seconds + hole(self.behaviour) - LEFT - trip
        if self.interruptions < INTERRUPTIONS:
            self.interruptions += 1
            wait = self.random.uniform(SOONEST, max(SOONEST, latest))
            self.at(self.now + wait, self.speak)
        else:
            seconds = self.scene.seconds + self.scene.stall_seconds
            self.at(self.now + seconds + 8.0, self.finish)

    def finish(self) -> None:
        self.over = True

    def to_bridge(self, message: dict[str, Any]) -> None:
        text = json.dumps(message)
        self.at(self.up.arrival(self.now), lambda: self.hear_text(text))

    def hear(self, message: dict[str, Any]) -> None:
        self.hear_text(json.dumps(message))

    def hear_text(self, text: str) -> None:
        if self.trace and '"mark"' in text:
            print(f"{self.now:9.3f} up   {text}")
        self.gives(FromPhone(twilio_messages.decode(text)))

    def at_twilio(self, message: dict[str, Any]) -> None:
        if self.trace and message["event"] != "media":
            played_ms = self.twilio.played(self.now) / 8
            print(f"{self.now:9.3f} at twilio {message} played {played_ms}")
        if message["event"] == "media":
            self.twilio.media(base64.b64decode(message["media"]["payload"]), self.now)
        elif message["event"] == "mark":
            self.twilio.mark(message["mark"]["name"], self.now)
        else:
            self.twilio.clear(self.now)
        self.echo()

    def echo(self) -> None:
        for name in self.twilio.due(self.now):
            self.to_bridge(
                {"event": "mark", "streamSid": self.sid, "mark": {"name": name}}
            )
        due = self.twilio.next_due
        if due is not None and due != self.echo_at:
            self.echo_at = due
            self.at(due, self.echo)

    # --- the model ---

    def append(self, payload: str) -> None:
        audio = base64.b64decode(payload)
        for start in range(0, len(audio), 160):
            loud = audio[start : start + 1] == b"\x55"
            self.loud, self.quiet = (self.loud + 1, 0) if loud else (0, self.quiet + 1)
            if self.loud >= VAD_START_FRAMES and not self.server_hears:
                self.server_hears = True
                self.at(self.now + SERVER_DELAY, self.started)
            if self.quiet >= VAD_END_FRAMES and self.server_hears:
                self.server_hears = False
                self.at(self.now + SERVER_DELAY, self.stopped)

    def started(self) -> None:
        if self.trace:
            print(f"{self.now:9.3f} speech_started")
        self.event("input_audio_buffer.speech_started", item_id="u", audio_start_ms=0)
        if self.generating is not None:
            for _ in range(self.scene.late_deltas):
                self.delta()
            self.end("cancelled")

    def stopped(self) -> None:
        if self.trace:
            print(f"{self.now:9.3f} speech_stopped")
        self.event("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=0)
        self.event("input_audio_buffer.committed", item_id=f"u{self.now}")
        self.wanted_at = self.now
        if self.server_responds:
            self.create()
        else:
            self.gives(Tell("system", "answer", True))

    def create(self) -> None:
        if self.generating is not None:
            return
        if self.wanted_at is not None:
            self.waits.append(self.now - self.wanted_at)
            self.wanted_at = None
        self.response += 1
        self.generating = [
            Item(len(self.items) + n, ms) for n, ms in enumerate(self.scene.items_ms, 1)
        ]
        self.items += self.generating
        self.generated = 0.0
        self.event("response.created", response={"id": f"r{self.response}"})
        for item in self.generating:
            self.event(
                "response.output_item.added",
                response_id=f"r{self.response}",
                item={"id": item.name, "type": "message"},
            )
        self.stalled = False
        self.next_delta(self.response, self.now + MODEL_SECONDS)

    def next_delta(self, response: int, when: float) -> None:
        def act() -> None:
            if response != self.response or self.generating is None:
                return
            stall = self.behaviour.stall
            if stall and not self.stalled and self.generated >= stall[0]:
                self.stalled = True
                self.next_delta(response, self.now + stall[1])
                return
            seconds = self.delta()
            if seconds:
                self.next_delta(response, self.now + seconds / self.scene.speed)
            else:
                self.end("completed")

        self.at(when, act)

    def delta(self) -> float:
        """Sends the next delta; returns its seconds, 0 if nothing is left."""
        for item in self.generating or []:
            left = item.ms - item.sent // 8
            if not left:
                continue
            ms = min(left, self.scene.delta_ms)
            if not item.sent and self.scene.first_delta_ms:
                ms = self.scene.first_delta_ms
            audio = audio_of(item.number, item.ms)[item.sent : item.sent + 8 * ms]
            item.sent += len(audio)
            self.generated += ms / 1000
            self.event(
                "response.output_audio.delta",
                response_id=f"r{self.response}",
                item_id=item.name,
                delta=base64.b64encode(audio).decode(),
            )
            if item.sent == 8 * item.ms:
                self.done(item)
            return ms / 1000
        return 0.0

    def done(self, item: Item) -> None:
        self.event(
            "response.output_audio.done",
            response_id=f"r{self.response}",
            item_id=item.name,
        )

    def end(self, status: str) -> None:
        self.generating = None
        response = {"id": f"r{self.response}", "status": status}
        self.event("response.done", response=response)

    def event(self, type: str, **fields: Any) -> None:
        event = realtime_events.decode(json.dumps({"type": type, **fields}))
        self.gives(FromModel(self.connection, event))

    def gives(self, given: Input) -> None:
        self.obey(self.talk.handle(given, self.now))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Switch):
                self.connection = command.connection
                continue
            if isinstance(command, ToCaller):
                message = json.loads(command.text)
                self.send_down(self.down, message)
            elif isinstance(command, ToModel):
                self.model_takes(json.loads(command.text))

    def send_down(self, link: NetworkLink, message: dict[str, Any]) -> None:
        at = link.arrival(self.now)
        if self.trace and message["event"] != "media":
            print(f"{self.now:9.3f} down {message} arrives {at:.3f}")
        elif self.trace:
            size = len(message["media"]["payload"]) * 3 // 32
            print(f"{self.now:9.3f} down media {size} ms arrives {at:.3f}")
        self.at(at, lambda: self.at_twilio(message))

    def model_takes(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "input_audio_buffer.append":
            self.append(event["audio"])
        elif kind == "response.create":
            self.at(self.now + SERVER_DELAY, self.create)
        elif kind == "session.update":
            self.event("session.updated", session=self.session)
        elif kind.startswith("conversation.item."):
            if self.trace:
                print(f"{self.now:9.3f} to model {event}")
            self.corrected(kind, event)

    def corrected(self, kind: str, event: dict[str, Any]) -> None:
        for item in self.items:
            if item.name != event.get("item_id"):
                continue
            if kind == "conversation.item.delete":
                item.deleted = True
            elif kind == "conversation.item.truncate":
                ms = event["audio_end_ms"]
                known_ms = item.believed_ms
                assert ms <= known_ms, f"{ms} is longer than {known_ms}"
                item.truncated_ms = ms

    def judge(self) -> list[Error]:
        heard = read_ruler(self.twilio.heard.audio(self.now)).heard_ms
        errors = []
        for item in self.items:
            ms = heard.get(item.number, 0.0)
            where = f"{self.scene.name} {label(self.network)} item {item.number}"
            cut = 0 < ms < item.sent / 8
            errors.append(Error(item.believed_ms - ms, cut, where, item, ms))
        return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10, help="calls for each cell")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first call")
    parser.add_argument("--requested", action="store_true", help="the bridge requests")
    parser.add_argument("--networks", default="0,1,2,3,4,5,6,7,8", help="by number")
    parser.add_argument("--trace", help="scene/network number/seed, to see one call")
    asked = parser.parse_args()
    networks = (*NETWORKS, *LOSSY_NETWORKS)
    responds = not asked.requested
    if asked.trace:
        name, number, seed = asked.trace.split("/")
        scene = next(it for it in SCENES if it.name == name)
        network = networks[int(number)]
        call = SimulatedCall(
            scene, network, int(seed), server_responds=responds, trace=True
        )
        for error in call.run():
            print(error)
        return 0
    broken = False
    for number in map(int, asked.networks.split(",")):
        network = networks[number]
        errors: list[tuple[Error, str]] = []
        waits: list[float] = []
        for scene in SCENES:
            for seed in range(asked.seed, asked.seed + asked.calls):
                call = SimulatedCall(scene, network, seed, server_responds=responds)
                where = f"{scene.name}/{number}/{seed}"
                errors += [(it, where) for it in call.run()]
                waits += call.waits
        cut = sorted(abs(it.ms) for it, _ in errors if it.cut)
        p95 = percentile(cut, 95)
        worst = sorted(errors, key=lambda it: -abs(it[0].ms))[:4]
        waits.sort()
        print(
            f"{label(network):40} cut {len(cut):5} p50 {percentile(cut, 50):5.1f} "
            f"p95 {p95:6.1f} max {max(cut):6.1f} all max {abs(worst[0][0].ms):6.1f} "
            f">25: {sum(it > 25 for it in cut)}, >100: {sum(it > 100 for it in cut)} "
            f"wait p95 {percentile(waits, 95):.2f} max {waits[-1]:.2f}"
        )
        for error, where in worst:
            if abs(error.ms) > 40:
                print(
                    f"    {where}: item {error.item.number} {error.ms:+.1f}, "
                    f"believed {error.item.believed_ms}, heard {error.heard_ms} "
                    f"of {error.item.sent / 8}"
                )
        broken = broken or p95 > P95_MS or max(cut) > WORST_MS
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
