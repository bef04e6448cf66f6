"""The metrics that operators rely on: named in the README, fed by Notes."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)

from bridge.core.commands import Note
from bridge.core.limits import HITS

REFUSALS = (
    "signature",
    "account",
    "ticket_missing",
    "ticket_forged",
    "ticket_expired",
    "ticket_used",
    "other_call",
    "token",
    "origin",
)
"""Why a request or a stream was refused as not being whose it should be."""

_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_HUMAN = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """One set per process; a registry of its own, so that a test sees only its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.calls_limit = Gauge(
            "bridge_calls_limit",
            "Calls that this instance takes at a time",
            registry=self.registry,
        )
        self.calls_active = Gauge(
            "bridge_calls_active", "Calls with an open stream", registry=self.registry
        )
        self.calls = Counter(
            "bridge_calls",
            "Calls that have ended, by how",
            ["outcome"],
            registry=self.registry,
        )
        self.caller_to_model = Histogram(
            "bridge_caller_to_model_seconds",
            "From reading a message of the caller's to having sent it to the model",
            buckets=_FAST,
            registry=self.registry,
        )
        self.model_to_caller = Histogram(
            "bridge_model_to_caller_seconds",
            "From reading an event of the model's to having sent it to Twilio",
            buckets=_FAST,
            registry=self.registry,
        )
        self.first_audio = Histogram(
            "bridge_first_audio_seconds",
            "From the end of the caller's turn (or the model being ready to greet) to "
            "the first audio of the answer",
            buckets=_HUMAN,
            registry=self.registry,
        )
        self.clear = Histogram(
            "bridge_clear_seconds",
            "From an interruption to Twilio's echo behind the clear: a round trip",
            buckets=_HUMAN,
            registry=self.registry,
        )
        self.interruptions = Counter(
            "bridge_interruptions",
            "Answers cut short, by the caller or on the agent's side",
            registry=self.registry,
        )
        self.unheard = Counter(
            "bridge_unheard_seconds",
            "Audio that the model made and nobody heard",
            registry=self.registry,
        )
        self.reconnects = Counter(
            "bridge_model_reconnects",
            "Sessions of the model that took the place of another, by why",
            ["why"],
            registry=self.registry,
        )
        for why in ("lost", "closed", "answer_late", "mute", "roll_over"):
            self.reconnects.labels(why)
        self.resumes = Counter(
            "bridge_resumes",
            "Calls that went on in another stream, by what had become of the first",
            ["why"],
            registry=self.registry,
        )
        for why in ("line", "lost", "moved", "transfer"):
            self.resumes.labels(why)
        self.protocol_errors = Counter(
            "bridge_protocol_errors",
            "Messages that could not be used, by the side that sent them",
            ["side"],
            registry=self.registry,
        )
        for side in ("caller", "model"):
            self.protocol_errors.labels(side)
        self.limit_hits = Counter(
            "bridge_limit_hits",
            "Times that a limit kept somebody from using more than their share",
            ["limit"],
            registry=self.registry,
        )
        for limit in HITS:
            self.limit_hits.labels(limit)
        self.refusals = Counter(
            "bridge_refusals",
            "Requests and streams that were not let in, by why",
            ["why"],
            registry=self.registry,
        )
        for why in REFUSALS:
            self.refusals.labels(why)
        self.draining = Gauge(
            "bridge_draining",
            "1 once the instance takes no more calls, as it is about to stop",
            registry=self.registry,
        )
        self.instances_lost = Counter(
            "bridge_instances_lost",
            "Instances that ended without leaving the fleet, each counted by one other",
            registry=self.registry,
        )
        self.registry_up = Gauge(
            "bridge_registry_up",
            "1 while what the instances share can be reached; alone there is nothing",
            registry=self.registry,
        )
        self.registry_up.set(1)

    def hit(self, limit: str) -> None:
        """A limit was reached: one of bridge.core.limits.HITS."""
        self.limit_hits.labels(limit).inc()

    def refused(self, why: str) -> None:
        """Somebody was not let in: one of REFUSALS."""
        self.refusals.labels(why).inc()

    def note(self, note: Note) -> None:
        """Counts what a Note tells."""
        data = note.data
        match note.name:
            case "first_audio":
                self.first_audio.observe(_number(data["seconds"]))
            case "clear_confirmed":
                self.clear.observe(_number(data["seconds"]))
            case "interrupted":
                self.interruptions.inc()
            case "said":
                unheard_ms = _number(data["received_ms"]) - _number(data["heard_ms"])
                self.unheard.inc(max(unheard_ms, 0.0) / 1000)
            case "late_audio":
                self.unheard.inc(_number(data["bytes"]) / 8000)
            case "model_back":
                self.reconnects.labels(data["why"]).inc()
            case "line_back":
                self.resumes.labels("line").inc()
            case "call_resumed":
                self.resumes.labels(data["why"]).inc()
            case "limit_hit":
                self.hit(str(data["limit"]))
            case "protocol_error":
                self.protocol_errors.labels(data["side"]).inc()
            case _:
                pass


def _number(value: object) -> float:
    assert isinstance(value, int | float), value
    return float(value)
