"""A view from a trace: what is odd in a trace does no harm."""

from pathlib import Path

import pytest

from bridge.picture import reading
from bridge.picture.problems import problems
from bridge.telemetry.trace import TraceFormatError
from tests.support.traces import rewrite, text_of, written
from tests.telemetry.test_trace import TracedCall, a_whole_call


def test_a_whole_call(tmp_path: Path) -> None:
    call = a_whole_call(tmp_path)
    assert call.path is not None
    view = reading.view(call.path)

    assert (view.call_sid, view.stream_sid) == ("CA1", "MZ1")
    assert view.replays_as_recorded
    assert len(view.caller) == len(view.agent) == int(view.length_ms * 8)


def test_a_trace_of_another_version_is_named(tmp_path: Path) -> None:
    """The picture shows what this version decides: the reader must know that."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    text = text_of(call.path)
    assert '"kind":"dial"' in text or '"kind":"switch"' in text
    rewrite(call.path, text.replace('"out":{"kind":"switch"', '"out":{"kind":"dance"'))
    view = reading.view(call.path)

    assert not view.replays_as_recorded
    assert "Another version" in " ".join(it.title for it in problems(view))


@pytest.mark.parametrize("odd", ['{"kind":"dance"}', '{"kind":"end_call"}'])
def test_a_line_of_another_version_is_an_error(tmp_path: Path, odd: str) -> None:
    call = a_whole_call(tmp_path)
    assert call.path is not None
    rewrite(call.path, text_of(call.path).replace('{"kind":"tick"}', odd))

    with pytest.raises(TraceFormatError, match="another version, or damaged"):
        reading.view(call.path)


def test_a_timestamp_of_the_far_future_takes_no_memory(tmp_path: Path) -> None:
    """A stream that is not Twilio's may claim any time."""
    call = TracedCall(tmp_path)
    call.start()
    call.frames(100)
    call.model("session.updated", session={"audio": {"input": {}, "output": {}}})
    call.timestamp = 2**53 - 1000
    call.frames(20)
    call.timestamp = 120
    call.says(1000)
    call.mark("m1")
    call.frames(400)
    call.trace.close()
    written()

    assert call.path is not None
    view = reading.view(call.path)
    assert view.length_ms < 60_000


def test_a_stream_that_was_lost_is_no_caller_on_hold(tmp_path: Path) -> None:
    """The picture does not say that the caller was muted."""
    call = TracedCall(tmp_path)
    call.start()
    call.frames(2000)
    from bridge.core.inputs import StreamLost, Tick

    call.gives(StreamLost())
    call.at += 12
    call.gives(Tick())
    call.trace.close()
    written()

    assert call.path is not None
    view = reading.view(call.path)
    assert [gap.kind for gap in view.gaps] == ["stream"]
    assert not [it for it in problems(view) if "on hold" in it.title]
