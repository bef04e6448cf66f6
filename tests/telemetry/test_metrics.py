"""The metrics as Prometheus reads them: the names operators rely on, and the counts."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.commands import Note, protocol_error
from bridge.telemetry.metrics import MAX_TOOL_NAMES, Metrics
from tests.core.phone import Phone, notes


def exposed(metrics: Metrics) -> dict[str, float]:
    """Every sample of a scrape: name{labels} -> value."""
    found = {}
    text = generate_latest(metrics.registry).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_created") or family.name.startswith("process_"):
                continue  # creation times and process metrics are not counts
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = (
                sample.value
            )
    return found


def noted(*told: Note) -> dict[str, float]:
    metrics = Metrics()
    for note in told:
        metrics.note(note)
    return exposed(metrics)


def test_the_names_that_operators_rely_on() -> None:
    """A dashboard for one version also works with the next."""
    metrics = Metrics()
    metrics.calls.labels("caller_hung_up").inc()
    found = exposed(metrics)
    histograms = (
        "bridge_caller_to_model_seconds",
        "bridge_model_to_caller_seconds",
        "bridge_first_audio_seconds",
        "bridge_clear_seconds",
        "bridge_loop_lag_seconds",
    )

    for name in (
        "bridge_calls_active",
        'bridge_calls_total{outcome="caller_hung_up"}',
        "bridge_interruptions_total",
        "bridge_unheard_seconds_total",
        'bridge_protocol_errors_total{side="caller"}',
        'bridge_protocol_errors_total{side="model"}',
        *(f"{name}_count" for name in histograms),
        *(f"{name}_sum" for name in histograms),
        *(f'{name}_bucket{{le="+Inf"}}' for name in histograms),
    ):
        assert name in found, name


def test_every_metric_has_a_help_text() -> None:
    """A reader who sees /metrics for the first time understands each metric."""
    text = generate_latest(Metrics().registry).decode()

    for family in text_string_to_metric_families(text):
        assert family.name.startswith(("bridge_", "process_"))
        assert family.documentation, family.name


def test_a_set_of_metrics_sees_only_its_own() -> None:
    """Two instances in one process do not count each other's calls."""
    one, other = Metrics(), Metrics()
    one.calls_active.inc()

    assert exposed(one)["bridge_calls_active"] == 1
    assert exposed(other)["bridge_calls_active"] == 0


def test_waiting_times_of_callers_are_measured() -> None:
    """The time to the first audio, and the time to silence after a barge-in, are
    measured."""
    found = noted(
        Note("first_audio", {"seconds": 0.4}),
        Note("first_audio", {"seconds": 1.2}),
        Note("clear_confirmed", {"seconds": 0.15}),
    )

    assert found["bridge_first_audio_seconds_count"] == 2
    assert found["bridge_first_audio_seconds_sum"] == pytest.approx(1.6)
    assert found['bridge_first_audio_seconds_bucket{le="0.5"}'] == 1
    assert found["bridge_clear_seconds_sum"] == pytest.approx(0.15)


def test_unheard_audio_is_counted() -> None:
    """Audio that was paid for and not heard is counted, whether cut or late."""
    found = noted(
        Note("said", {"received_ms": 3000, "sent_ms": 3000, "heard_ms": 800}),
        Note("said", {"received_ms": 1000, "sent_ms": 1000, "heard_ms": 1000}),
        Note("late_audio", {"item": "i1", "bytes": 4000}),
    )

    assert found["bridge_unheard_seconds_total"] == pytest.approx(2.7)


def test_interruptions_and_protocol_errors() -> None:
    """Each interruption and each bad message counts, by the side that sent it."""
    found = noted(
        Note("interrupted", {"by": "caller"}),
        Note("interrupted", {"by": "guardrail"}),
        protocol_error("model", "event is no JSON"),
        protocol_error("model", "event is no JSON"),
    )

    assert found["bridge_interruptions_total"] == 2
    assert found['bridge_protocol_errors_total{side="model"}'] == 2
    assert found['bridge_protocol_errors_total{side="caller"}'] == 0


def test_notes_without_a_metric_are_ignored() -> None:
    """A Note that is only worth a log line changes no metric."""
    found = noted(Note("ready", {"held_ms": 1}), Note("fence_late"))

    assert found == pytest.approx(noted(), nan_ok=True)


def test_the_notes_of_a_real_call_count() -> None:
    """The core's Notes have the data that the metrics read: one barge-in, 0.5 of 2 s
    heard."""
    phone = Phone().talking()
    phone.barges_in()
    phone.model("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1)
    phone.frames(300)
    phone.created()
    phone.says(2000)
    phone.frames(500)
    phone.barges_in()
    phone.says(100)
    phone.frames(100)

    found = noted(*(note for note in phone.log if isinstance(note, Note)))

    assert notes(phone.log, "protocol_error") == []
    assert found["bridge_interruptions_total"] == 1
    assert found["bridge_first_audio_seconds_sum"] == pytest.approx(0.3)
    assert found["bridge_clear_seconds_count"] == 1
    assert found["bridge_unheard_seconds_total"] == pytest.approx(1.6, abs=0.03)


def finished(tool: str, outcome: str = "done", seconds: float = 0.3) -> Note:
    data: dict[str, str | float] = {"tool": tool, "outcome": outcome}
    return Note("tool_finished", {**data, "seconds": seconds})


def test_tools_are_counted_by_what_became_of_them() -> None:
    """With zeros for what did not, so that the next failure is seen as an increase."""
    found = noted(finished("book"), finished("book", "failed"), finished("find"))

    assert found['bridge_tools_total{outcome="done",tool="book"}'] == 1
    assert found['bridge_tools_total{outcome="failed",tool="book"}'] == 1
    assert found['bridge_tools_total{outcome="timeout",tool="book"}'] == 0
    assert found['bridge_tools_total{outcome="failed",tool="other"}'] == 0
    assert found['bridge_tool_seconds_count{tool="book"}'] == 2
    assert found['bridge_tool_seconds_bucket{le="0.25",tool="find"}'] == 0
    assert found['bridge_tool_seconds_bucket{le="0.5",tool="find"}'] == 1


def test_the_names_of_tools_are_bounded() -> None:
    """They come from users' code, from MCP servers and from the model."""
    names = [f"tool{n}" for n in range(MAX_TOOL_NAMES + 5)]
    made_up = [finished(f"x{n}", "unknown") for n in range(3)]
    found = noted(
        *made_up, finished("x" * 65), *map(finished, names), finished("tool0")
    )

    labels = {it for it in found if it.startswith("bridge_tool_seconds_count")}
    assert len(labels) == MAX_TOOL_NAMES + 1
    assert found['bridge_tool_seconds_count{tool="tool0"}'] == 2
    assert found['bridge_tool_seconds_count{tool="other"}'] == 3 + 1 + 5
    assert found['bridge_tools_total{outcome="unknown",tool="other"}'] == 3
