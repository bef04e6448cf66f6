"""The fake Twilio's buffer, tested against its documented rules and a byte-by-byte
model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sim.twilio.playout import BUFFER_LIMIT, SILENCE, Playout

AGENT = bytes(range(1, 251)) * 64  # 2 s of audio in which each position is unique


def test_audio_is_heard_at_one_times_speed_however_fast_it_came() -> None:
    """A second of audio in one message takes a second to play."""
    playout = Playout()

    playout.media(AGENT[:8000], 10.0)

    assert [playout.played(t) for t in (10.0, 10.25, 10.9999, 11.0, 99.0)] == [
        0,
        2000,
        7999,
        8000,
        8000,
    ]


def test_messages_join_into_one_run_and_a_late_one_starts_another() -> None:
    """A gap in the agent's audio is heard where it was, and nowhere else."""
    playout = Playout()

    playout.media(AGENT[:800], 1.0)
    playout.media(AGENT[800:1600], 1.05)
    playout.media(AGENT[1600:2400], 1.5)

    assert [(run.start, len(run.audio)) for run in playout.heard.runs] == [
        (1.0, 1600),
        (1.5, 800),
    ]
    line = playout.heard.timeline(0.9, 1.7)
    assert line[:800] == bytes([SILENCE]) * 800
    assert line[800:2400] == AGENT[:1600]
    assert line[2400:4800] == bytes([SILENCE]) * 2400
    assert line[4800:5600] == AGENT[1600:2400]


def test_mark_is_echoed_when_the_audio_before_it_is_over() -> None:
    """A mark is echoed when its audio has been heard, not when it was sent."""
    playout = Playout()
    playout.media(AGENT[:4000], 5.0)
    playout.mark("goodbye", 5.1)
    playout.media(AGENT[:4000], 5.2)

    assert playout.next_due == 5.5
    assert playout.due(5.499) == []
    assert playout.due(5.5) == ["goodbye"]
    assert playout.due(6.0) == []
    assert playout.marks[0].played and playout.marks[0].echoed_at == 5.5


def test_mark_on_an_empty_buffer_is_echoed_at_once() -> None:
    """A mark without audio before it is echoed at once."""
    playout = Playout()

    playout.mark("start", 3.0)

    assert playout.next_due == 3.0
    assert playout.due(3.0) == ["start"]
    assert playout.next_due is None


def test_clear_flushes_the_audio_and_echoes_all_waiting_marks() -> None:
    """After a clear no byte of the old answer is heard."""
    playout = Playout()
    playout.media(AGENT[:1600], 2.0)
    playout.mark("first", 2.0)
    playout.media(AGENT[:8000], 2.0)
    playout.mark("second", 2.0)
    playout.mark("third", 2.0)

    flushed = playout.clear(2.3)

    assert flushed == 9600 - 2400
    assert playout.due(2.3) == ["first", "second", "third"]
    assert [mark.played for mark in playout.marks] == [True, False, False]
    assert playout.played(2.3) == playout.played(60.0) == 2400
    assert playout.clears[0].position == 2400
    assert playout.over_at == 2.3


def test_audio_after_a_clear_is_played_at_once() -> None:
    """New audio plays at once, and its run has its position in what was sent."""
    playout = Playout()
    playout.media(AGENT[:8000], 2.0)
    playout.clear(2.1)

    playout.media(AGENT[:160], 2.1)

    last = playout.heard.runs[-1]
    assert (last.start, last.received_from, last.played_from) == (2.1, 8000, 800)


def test_clear_of_nothing_changes_nothing() -> None:
    """A clear of an empty buffer has no effect."""
    playout = Playout()

    assert playout.clear(1.0) == 0
    assert playout.due(1.0) == []
    assert playout.media(AGENT[:160], 1.0)


def test_at_most_ten_minutes_are_buffered() -> None:
    """Audio sent to a full buffer is never heard (31931)."""
    playout = Playout()

    assert playout.media(bytes(BUFFER_LIMIT), 0.0)
    assert not playout.media(b"x", 0.0)
    assert playout.media(bytes(8000), 1.0)
    assert (playout.received, playout.refused) == (BUFFER_LIMIT + 8000, 1)


def test_end_of_the_stream_leaves_the_rest_unheard() -> None:
    """Bytes that wait when the stream ends are counted as unheard."""
    playout = Playout()
    playout.media(AGENT[:8000], 0.0)
    playout.mark("goodbye", 0.0)

    assert playout.end(0.75) == 2000
    assert playout.heard.audio() == AGENT[:6000]
    assert playout.marks == []


def test_time_does_not_go_back() -> None:
    """A time that goes back raises an error."""
    playout = Playout()
    playout.media(b"x", 2.0)

    with pytest.raises(ValueError, match="back"):
        playout.clear(1.9)


def test_frames_begin_on_the_grid_and_marks_wait_for_their_frames_end() -> None:
    """With whole frames, times differ by up to a frame."""
    playout = Playout(phase=0.005)
    playout.media(AGENT[:200], 1.000)
    playout.mark("end", 1.000)

    assert playout.next_due == pytest.approx(1.045)
    assert playout.played(1.015) == 80
    assert playout.due(1.0449) == []
    assert playout.due(1.045) == ["end"]
    assert [(r.start, len(r.audio)) for r in playout.heard.runs] == [(1.005, 200)]


def test_a_frame_begun_is_played_out_after_a_clear() -> None:
    """With whole frames, a clear takes effect at the end of the frame that plays."""
    playout = Playout(phase=0.0)
    playout.media(AGENT[:320], 1.0)
    playout.mark("in the frame", 1.0)

    flushed = playout.clear(1.005)

    assert flushed == 160
    assert playout.due(1.005) == ["in the frame"]
    assert not playout.marks[0].played
    assert playout.played(1.005) == 40
    assert playout.played(2.0) == 160
    assert playout.buffered(2.0) == 0


def test_new_audio_waits_for_the_end_of_a_begun_frame() -> None:
    """Two frames never play at the same time."""
    playout = Playout(phase=0.0)
    playout.media(AGENT[:80], 1.0)
    assert playout.played(1.0) == 0  # the frame has begun

    playout.media(AGENT[:80], 1.0)

    assert playout.due(1.1) == []
    assert [run.start for run in playout.heard.runs] == [1.0, 1.02]


def test_a_mark_after_a_clear_between_frames_is_echoed_at_once() -> None:
    """No audio plays or waits, so the mark is echoed at once."""
    playout = Playout(phase=0.0)
    playout.media(AGENT[:320], 1.005)
    playout.clear(1.010)

    playout.mark("fence", 1.010)

    assert playout.next_due == 1.010


# Events at byte-exact times: (bytes since the last event, kind, size).
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 700),
        st.sampled_from(["media", "media", "media", "mark", "mark", "clear", "due"]),
        st.integers(0, 900),
    ),
    max_size=40,
)
PHASES = st.none() | st.integers(0, 159).map(lambda byte: byte / 8000)


@given(events=EVENTS, phase=PHASES)
def test_every_byte_is_played_cleared_or_waiting(
    events: list[tuple[int, str, int]], phase: float | None
) -> None:
    """No audio appears or disappears, and each mark is echoed once, in order."""
    playout = Playout(phase)
    names: list[str] = []
    echoed: list[str] = []
    now = 0.0
    for step, (after, what, size) in enumerate(events):
        now += after / 8000
        match what:
            case "media":
                playout.media(AGENT[:size], now)
            case "mark":
                names.append(f"m{step}")
                playout.mark(names[-1], now)
            case "clear":
                playout.clear(now)
            case _:
                echoed += playout.due(now)
        waiting = playout.buffered(now)
        assert playout.received == playout.played(now) + playout.cleared + waiting
    echoed += playout.due(now + 60)

    assert echoed == names == [mark.name for mark in playout.marks]
    assert playout.buffered(now + 60) == 0
    assert len(playout.heard.audio()) == playout.played(now + 60)


@given(events=EVENTS)
def test_agrees_with_a_twilio_that_plays_byte_by_byte(
    events: list[tuple[int, str, int]],
) -> None:
    """The heard audio and the echo times are those of a byte-by-byte player."""
    playout = Playout()
    queue: list[int | str] = []
    heard: list[tuple[int, int]] = []
    echoes: list[tuple[str, int]] = []
    tick = 0

    def echo_head() -> None:
        while queue and isinstance(queue[0], str):
            echoes.append((str(queue.pop(0)), tick))

    def play_until(end: int) -> None:
        nonlocal tick
        while tick < end:
            if queue:
                heard.append((tick, int(queue.pop(0))))
            tick += 1
            echo_head()

    for step, (after, what, size) in enumerate([*events, (5 * 8000, "due", 0)]):
        play_until(tick + after)
        now = tick / 8000
        match what:
            case "media":
                queue += AGENT[:size]
                playout.media(AGENT[:size], now)
            case "mark":
                queue.append(f"m{step}")
                echo_head()
                playout.mark(f"m{step}", now)
            case "clear":
                echoes += [(each, tick) for each in queue if isinstance(each, str)]
                queue.clear()
                playout.clear(now)
            case _:
                playout.due(now)

    runs = playout.heard.runs
    assert heard == [
        (round(run.start * 8000) + index, byte)
        for run in runs
        for index, byte in enumerate(run.audio)
    ]
    assert echoes == [
        (mark.name, round(mark.echoed_at * 8000)) for mark in playout.marks
    ]
