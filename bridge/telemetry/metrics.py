"""The Prometheus metrics that operators rely on; the README lists them. Notes of calls
update most of them."""

import math
from collections.abc import Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)

from bridge.agent.finished_tools import OUTCOMES
from bridge.core.commands import Note
from bridge.core.limits import HITS

REFUSALS = (
    "signature",
    "method",
    "path",
    "account",
    "fields",
    "repeated",
    "ticket_missing",
    "ticket_forged",
    "ticket_expired",
    "ticket_used",
    "other_call",
    "token",
    "fleet_message",
    "origin",
    "not_local",
)
"""Reasons for which a request or a stream is refused: its sender could not prove the
right to connect. (A limit, in HITS, stops a sender that has the right.)"""

REDIS_KEYS = (
    *("call", "calls", "next", "store", "count", "members"),
    *("instances", "era", "words", "requests", "other"),
)
"""Kinds of keys in Redis (bridge/fleet/keys.py). "other": it is not known which."""

_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_HUMAN = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)

_TOOLS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)

MAX_TOOL_NAMES = 50
"""Limit of tool names that have metrics of their own: the first ones that end. Names
come from users' code and from MCP servers."""

MAX_TOOL_NAME_CHARS = 64
"""A longer name counts as OTHER_TOOL: the Realtime API allows none."""

OTHER_TOOL = "other"
"""The `tool` of names beyond the limits, and of names that the model has made up."""

REPEATS = ("answered", "waited", "unknown")
"""What became of a webhook whose signature was seen before: it got the first answer; it
got 503, because the first one was still being answered. "unknown": Redis was away, so
the webhook was accepted, although another instance may have answered it."""


class Metrics:
    """The metrics of one process. Each set has its own registry, so that a test sees
    only its own counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_calls()
        self._add_delays()
        self._add_answers()
        self._add_tools()
        self._add_continuations()
        self._add_errors()
        self._add_records()
        self._add_fleet()

    def _add_calls(self) -> None:
        self.calls_limit = self._gauge(
            "bridge_calls_limit",
            "Largest number of calls that this instance accepts at the same time",
        )
        self.calls_active = self._gauge(
            "bridge_calls_active", "Calls that run on this instance, SIP calls too"
        )
        self.calls = self._counter(
            "bridge_calls",
            "Calls that have ended, by outcome ({ended_by}_{ended_why})",
            "outcome",
        )

    def _add_delays(self) -> None:
        self.caller_to_model = self._histogram(
            "bridge_caller_to_model_seconds",
            "Time in the bridge from reading a message of the caller's stream to "
            "writing it to the model",
            _FAST,
        )
        self.model_to_caller = self._histogram(
            "bridge_model_to_caller_seconds",
            "Time in the bridge from reading an event of the model to writing it to "
            "Twilio",
            _FAST,
        )
        self.first_audio = self._histogram(
            "bridge_first_audio_seconds",
            "Time from the end of the caller's turn (for a greeting: from the moment "
            "the model is ready) to the first audio of the answer",
            _HUMAN,
        )
        self.clear = self._histogram(
            "bridge_clear_seconds",
            "Time from an interruption to Twilio's echo of the mark behind the clear: "
            "one round trip",
            _HUMAN,
        )

        self.loop_lag = self._histogram(
            "bridge_loop_lag_seconds",
            "How late the event loop was, four times a second: while a function runs, "
            "the others wait",
            _LAGS,
        )

    def _add_answers(self) -> None:
        self.interruptions = self._counter(
            "bridge_interruptions",
            "Answers that the caller or the agent's side has interrupted",
        )
        self.unheard = self._counter(
            "bridge_unheard_seconds",
            "Seconds of audio that the model generated and the caller did not hear",
        )

    def _add_tools(self) -> None:
        self._tool_names = {OTHER_TOOL}
        self.tools = Counter(
            "bridge_tools",
            "Tool calls and handoffs that have ended, by the tool and by what became "
            "of them",
            ("tool", "outcome"),
            registry=self.registry,
        )
        self.tool_seconds = Histogram(
            "bridge_tool_seconds",
            "Time that a tool call or handoff took, its waiting for an approval not "
            "included",
            ("tool",),
            buckets=_TOOLS,
            registry=self.registry,
        )
        for outcome in OUTCOMES:
            self.tools.labels(OTHER_TOOL, outcome)

    def _add_continuations(self) -> None:
        self.reconnects = self._counter(
            "bridge_model_reconnects",
            "Model sessions that replaced an earlier session of the same call, by the "
            "reason",
            "why",
            ("lost", "closed", "answer_late", "mute", "roll_over"),
        )
        self.resumes = self._counter(
            "bridge_resumes",
            "Calls that continued in a new stream, by the reason for the end of the "
            "earlier stream",
            "why",
            ("stream", "lost", "moved", "transfer"),
        )

    def _add_errors(self) -> None:
        self.protocol_errors = self._counter(
            "bridge_protocol_errors",
            "Messages that the bridge could not use, by the side that sent them",
            "side",
            ("caller", "model"),
        )
        self.limit_hits = self._counter(
            "bridge_limit_hits",
            "Times that a limit was reached, by limit: a limit stops a sender that has "
            "the right to connect but uses too much",
            "limit",
            HITS,
        )
        self.refusals = self._counter(
            "bridge_refusals",
            "Requests and streams that were refused because their sender had no right "
            "to connect, by the reason",
            "why",
            REFUSALS,
        )
        self.repeats = self._counter(
            "bridge_repeated_webhooks",
            "Webhooks whose signature was seen before, or may have been, by what "
            "became of them",
            "result",
            REPEATS,
        )

        self.log_lines_lost = self._counter(
            "bridge_log_lines_lost",
            "Lines of the log and of stdout that could not be written: the disk is "
            "full, or the reader of the pipe is gone or does not read",
        )

    def _add_records(self) -> None:
        self.records_free = self._gauge(
            "bridge_records_disk_free_bytes",
            "Free bytes of the disk of BRIDGE_RECORD_DIR; NaN without that folder",
        )
        self.records_used = self._gauge(
            "bridge_records_bytes",
            "Bytes of all files in BRIDGE_RECORD_DIR, once a minute; NaN without it",
        )
        for gauge in (self.records_free, self.records_used):
            gauge.set(math.nan)  # 0 would mean: the disk is full
        self.traces_lost = self._counter(
            "bridge_traces_lost",
            "Traces that were not written to their end, by the reason; their calls go "
            "on",
            "why",
            ("disk_full", "slow", "size", "error"),
        )

    def _add_fleet(self) -> None:
        self.draining = self._gauge(
            "bridge_draining",
            "1 while the instance drains: it accepts no new calls and will stop",
        )
        self.fallback_on = self._gauge(
            "bridge_fallback_on",
            "1 while the fallback is switched on: new callers are not connected to the "
            "agent",
        )
        self.fallback_calls = self._counter(
            "bridge_fallback_calls",
            "Calls that were sent to the fallback because it is switched on",
        )
        self.instances_lost = self._counter(
            "bridge_instances_lost",
            "Instances that ended without leaving the fleet; exactly one other "
            "instance counts each",
        )
        self.registry_up = self._gauge(
            "bridge_registry_up",
            "1 while the shared registry (Redis) can be reached; always 1 without one",
        )
        self.registry_up.set(1)
        self.keys_ignored = self._counter(
            "bridge_redis_keys_ignored",
            "Times that a key or a message was found in Redis which the bridge cannot "
            "have written, and was ignored, by the kind of key",
            "key",
            REDIS_KEYS,
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)

    def _counter(
        self, name: str, text: str, label: str = "", values: Iterable[str] = ()
    ) -> Counter:
        """A counter for each value of `label`. Those of `values` are 0 from the start,
        so that the first increase of one is seen as an increase."""
        labels = [label] if label else []
        counter = Counter(name, text, labels, registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter

    def hit(self, limit: str) -> None:
        """Counts a limit that was reached: one of bridge.core.limits.HITS."""
        self.limit_hits.labels(limit).inc()

    def refused(self, why: str) -> None:
        """Counts a refused request or stream; `why` is one of REFUSALS."""
        self.refusals.labels(why).inc()

    def repeated(self, result: str) -> None:
        """Counts a repeated webhook; `result` is one of REPEATS."""
        self.repeats.labels(result).inc()

    def key_ignored(self, kind: str) -> None:
        """Counts a key of Redis that was ignored; `kind` is one of REDIS_KEYS."""
        self.keys_ignored.labels(kind).inc()

    def tool_finished(self, tool: str, outcome: str, seconds: float) -> None:
        """Counts a tool call. The number of names is bounded."""
        names = self._tool_names
        may_be_new = outcome != "unknown" and len(tool) <= MAX_TOOL_NAME_CHARS
        if tool not in names and may_be_new and len(names) <= MAX_TOOL_NAMES:
            names.add(tool)
            for each in OUTCOMES:
                self.tools.labels(tool, each)
        if tool not in names:
            tool = OTHER_TOOL
        self.tools.labels(tool, outcome).inc()
        self.tool_seconds.labels(tool).observe(seconds)

    def note(self, note: Note) -> None:
        """Updates the metrics that depend on this Note, if any."""
        data = note.data
        match note.name:
            case "first_audio":
                self.first_audio.observe(_number(data["seconds"]))
            case "clear_confirmed":
                self.clear.observe(_number(data["seconds"]))
            case "interrupted":
                self.interruptions.inc()
            case "said" if "heard_ms" in data:  # else no audio passes here
                unheard_ms = _number(data["received_ms"]) - _number(data["heard_ms"])
                self.unheard.inc(max(unheard_ms, 0.0) / 1000)
            case "late_audio":
                self.unheard.inc(_number(data["bytes"]) / 8000)
            case "tool_finished":
                tool, outcome = str(data["tool"]), str(data["outcome"])
                self.tool_finished(tool, outcome, _number(data["seconds"]))
            case "model_back":
                self.reconnects.labels(data["why"]).inc()
            case "stream_back":
                self.resumes.labels("stream").inc()
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
