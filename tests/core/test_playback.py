"""The ledger with literal times: Twilio's clock in ms, ours 50 s ahead of it.

`line.at(ms)`: Twilio's frames have arrived up to that ms, and a message that arrives
now left Twilio within the 20 ms after it.
"""

import pytest

from bridge.core.playback import (
    MAX_PENDING_MARKS,
    MediaClock,
    Playback,
    Tally,
    Window,
)

A, B = ("a", 0), ("b", 0)
START = 50.0


class PlaybackScript:
    """A Playback, with the time set by a script."""

    def __init__(self) -> None:
        self.playback = Playback(START)
        self.now = START
        # One frame came 20 ms quicker than all others will: a line with that much
        # jitter, on which our own clock has nothing to add to Twilio's.
        self.playback.clock.frame(0, 20, START)

    def at(self, ms: int) -> "PlaybackScript":
        """The frame that ends there has just arrived."""
        self.now = START + ms / 1000
        self.playback.clock.frame(ms - 20, 20, self.now)
        return self

    def sends(self, ms: int, key: tuple[str, int] = A, end: bool = False) -> list[str]:
        """The names of the marks that were sent with it."""
        plan = self.playback.plan(key, 8 * ms, self.now)
        marks = [mark for mark, _ in plan if mark]
        last = self.playback.end_mark(self.now) if end else None
        return [*marks, last] if last else marks

    def comes_back(self, *names: str) -> None:
        for name in names:
            assert self.playback.echoed(name, self.now) is not None, name

    def clears(self) -> str:
        return self.playback.fence(self.now)

    def heard(self, key: tuple[str, int] = A) -> float:
        """In ms."""
        return self.playback.tally(key).heard / 8


# --- what is sent ---


def test_a_response_begins_in_small_pieces_with_a_mark_each() -> None:
    """The start of playing is known to a frame, though mark and audio drift apart on
    the way."""
    playback = Playback(START)

    plan = playback.plan(A, 8000, START)

    assert plan == [
        ("m1", 159),
        ("m2", 318),
        ("m3", 318),
        ("m4", 318),
        ("m5", 1584),
        ("m6", 1584),
        ("m7", 1584),
        ("m8", 1584),
        ("m9", 551),
    ]
    assert playback.sent == 8000


def test_a_delta_of_200_ms_stays_whole_while_much_is_queued() -> None:
    """A busy connection gets no extra messages: one message for one delta."""
    line = PlaybackScript().at(100)
    line.sends(1000)

    assert line.playback.plan(A, 1600, line.now) == [("m10", 1600)]
    assert line.playback.plan(A, 160, line.now) == [("m11", 160)]
    assert line.playback.plan(A, 160, line.now) == [(None, 160)]


def test_when_the_queue_may_be_dry_pieces_are_small_again() -> None:
    """A model that is barely fast enough is measured more closely."""
    line = PlaybackScript().at(100)
    line.sends(1000)

    line.at(1000)  # 100 ms are left by our clock: low
    assert line.playback.plan(A, 960, line.now) == [
        ("m10", 318),
        (None, 642),  # 139 ms are left again: enough
    ]
    line.at(1300)  # and now none
    assert line.playback.plan(A, 160, line.now) == [("m11", 159), ("m12", 1)]


def test_an_empty_delta_sends_nothing() -> None:
    """No audio and no mark."""
    playback = Playback(START)

    assert playback.plan(A, 0, START) == []
    assert playback.end_mark(START) is None


def test_the_end_of_an_item_has_one_mark() -> None:
    """One echo tells that a response was heard to its end."""
    line = PlaybackScript().at(100)
    line.sends(10)

    assert line.playback.end_mark(line.now) == "m2"
    assert line.playback.end_mark(line.now) is None


# --- Twilio's clock ---


def test_the_clock_is_known_to_a_frame() -> None:
    """A message that arrives between two frames left Twilio between them."""
    clock = MediaClock(START)
    assert clock.read(START) == Window(0.0, 20.0)

    clock.frame(0, 20, START + 0.05)
    clock.frame(100, 20, START + 0.2)

    assert clock.read(START + 0.2) == Window(120.0, 140.0)
    assert clock.read(START + 0.45) == Window(120.0, 140.0)
    # By the quickest frame, whose end crossed the network in 30 ms.
    assert clock.guess(START + 0.45) == pytest.approx(420.0)


def test_where_frames_are_missing_the_moment_is_wide() -> None:
    """A network that stopped, or a stream that sends nothing in silence: the message
    was sent right behind the last frame, or now."""
    clock = MediaClock(START)
    clock.frame(100, 20, START)

    stale = clock.read(START + 0.3)

    assert stale.is_wide
    assert stale.low == pytest.approx(120.0)
    assert stale.high == pytest.approx(440.0)


def test_nothing_is_faster_than_the_quickest_frame() -> None:
    """On a quiet line the heard position is known to a few ms, not only to a frame."""
    clock = MediaClock(START)
    clock.frame(80, 20, START + 0.1)  # the quickest: 1000 * START behind Twilio's clock

    assert clock.read(START + 0.105).high == pytest.approx(106.0)
    assert clock.read(START + 0.110) == Window(100.0, pytest.approx(111.0))
    clock.frame(100, 20, START + 0.150)  # 30 ms late, by the network

    assert clock.read(START + 0.150) == Window(120.0, 140.0)


def test_a_clock_that_drifts_is_followed() -> None:
    """After an hour the quickest frame of the first minute does not count."""
    clock = MediaClock(START)
    clock.frame(80, 20, START + 0.1)
    for second in range(1, 31):  # Twilio's clock is now 50 ms behind
        clock.frame(second * 1000, 20, START + second + 0.07)

    high = clock.read(START + 30.08).high
    assert high == pytest.approx(30_031.0)


def test_a_frame_from_the_past_does_not_turn_the_clock_back() -> None:
    """A late frame does not reduce what was heard."""
    clock = MediaClock(START)
    clock.frame(100, 20, START)
    clock.frame(60, 20, START + 0.02)

    assert clock.read(START + 0.02).low == 120.0


def test_windows_intersect_or_not() -> None:
    """Two marks together tell more than each; after a pause the older one tells
    nothing."""
    assert Window(100, 120).intersect(Window(110, 130)) == Window(110, 120)
    assert Window(100, 120).intersect(Window(120, 140)) is None
    assert Window(100, 120).earlier(30) == Window(70, 90)
    assert Window(100, 120).latest == 120


# --- what was heard ---


def test_a_response_heard_to_its_end() -> None:
    """When the last mark is back, all was heard, and nothing is queued."""
    line = PlaybackScript().at(100)
    marks = line.sends(400, end=True)

    line.at(520).comes_back(*marks)

    assert line.playback.tally(A) == Tally(sent=3200, heard=3200)
    assert line.playback.audible(line.now) is None


def test_what_was_heard_until_a_clear() -> None:
    """From the start (100..120) to the clear (500..520): 400 ms, both at the latest."""
    line = PlaybackScript().at(100)
    first, *_ = line.sends(2000)
    line.comes_back(first)

    fence = line.at(480).clears()
    line.at(500).comes_back(fence)

    assert line.heard() == 400
    assert line.playback.tally(A).sent == 16_000
    assert line.playback.played == line.playback.sent


def test_never_more_is_heard_than_was_sent() -> None:
    """The caller did not hear what never left the bridge."""
    line = PlaybackScript().at(100)
    first, *_ = line.sends(300)
    line.comes_back(first)

    fence = line.at(1000).clears()
    line.comes_back(fence)

    assert line.heard() == 300


def test_marks_narrow_the_start_down() -> None:
    """The more marks come back, the better it is known what was heard.

    The start mark alone says that playing began at 120 ms at the latest, all four say
    102. The clear was at 260 at the latest: 158 ms, of which 78 were item a's.
    """
    line = PlaybackScript().at(100)
    m1, m2, m3, m4 = line.sends(78, A, end=True)
    line.sends(200, B)
    line.comes_back(m1)
    line.at(120).comes_back(m2)  # 19.875 ms in: played at 120.9
    line.at(160).comes_back(m3, m4)  # 59.625 and 78 ms in: at 160.6 and 179

    fence = line.at(240).clears()
    line.comes_back(fence)

    assert line.heard(A) == 78
    assert line.heard(B) == 158 - 78


def test_a_stall_pins_the_start_anew() -> None:
    """Audio that was late on the way to Twilio does not count as heard meanwhile."""
    line = PlaybackScript().at(100)
    m1, m2, *_ = line.sends(1000)
    line.comes_back(m1)
    line.at(620).comes_back(m2)  # 19.875 ms in, but 500 ms late

    fence = line.at(720).clears()
    line.comes_back(fence)

    assert line.heard() == pytest.approx(119.875)


def test_a_new_start_forgets_the_old_one() -> None:
    """Silence between two responses does not count as heard audio of the second."""
    line = PlaybackScript().at(100)
    line.comes_back(*line.sends(100, A, end=True))
    first, *_ = line.at(3000).sends(1000, B)
    line.comes_back(first)

    fence = line.at(3200).clears()
    line.comes_back(fence)

    assert (line.heard(A), line.heard(B)) == (100, 200)


@pytest.mark.parametrize(
    ("back_at", "heard"),
    [
        (420, 300),  # due at 419.9, and it is 440 at the latest: it was played
        (380, 280),  # 19.9 before it was due: either; the fence (400) decides
        (340, 240),  # 59.9 before: flushed, so the clear was then
    ],
)
def test_a_flushed_mark_is_distinguished_from_a_played_one(
    back_at: int, heard: int
) -> None:
    """Twilio returns all marks on a clear: only those that were due were heard."""
    line = PlaybackScript().at(100)
    m1, *_ = line.sends(99)
    line.sends(200)
    # Playing began at 120, so the last mark, 299.9 ms in, is due at 419.9.
    last = line.playback.end_mark(line.now)
    line.comes_back(m1)
    fence = line.at(340).clears()

    assert last is not None
    line.at(back_at).comes_back(last)
    line.comes_back(fence)

    assert line.heard() == pytest.approx(min(heard, 299), abs=1)


def test_a_fence_that_jitter_delays_does_not_move_the_clear() -> None:
    """A mark flushed at 260 tells when the clear was, though its fence arrives at
    400."""
    line = PlaybackScript().at(100)
    m1, m2, m3, m4, m5, *flushed = line.sends(1000)
    for ms, mark in ((100, m1), (120, m2), (160, m3), (200, m4), (240, m5)):
        line.at(ms).comes_back(mark)
    fence = line.clears()
    line.at(260).comes_back(*flushed)

    line.at(400).comes_back(fence)

    assert line.heard() == pytest.approx(160, abs=0.5)


def test_the_next_clear_has_a_moment_of_its_own() -> None:
    """A second barge-in is not judged by the marks that the first one flushed."""
    line = PlaybackScript().at(100)
    m1, *flushed = line.sends(1000, A)
    line.comes_back(m1)
    fence = line.at(140).clears()
    line.comes_back(*flushed[4:], fence)
    start, *_ = line.sends(1000, B)
    line.comes_back(start)

    again = line.at(440).clears()
    line.comes_back(again)

    assert (line.heard(A), line.heard(B)) == (40, 300)


def test_a_start_right_behind_the_end_is_a_new_one() -> None:
    """A pause of a few ms between two responses is noticed."""
    line = PlaybackScript().at(100)
    m1, *_ = line.sends(90, A, end=True)
    line.comes_back(m1)
    start, *_ = line.at(200).sends(1000, B)
    line.comes_back(start)  # B began at 200..220, not at 190..210

    fence = line.at(300).clears()
    line.comes_back(fence)

    assert (line.heard(A), line.heard(B)) == (90, 100)


def test_all_marks_behind_a_flushed_one_are_flushed() -> None:
    """Late marks of a cleared response do not count as heard audio."""
    line = PlaybackScript().at(100)
    m1, m2, m3, m4, m5, m6 = line.sends(500)
    line.comes_back(m1)
    line.at(120).comes_back(m2)
    fence = line.at(140).clears()
    line.at(160).comes_back(m3, m4, m5)
    line.at(700).comes_back(m6)  # by now it would have been due

    line.comes_back(fence)

    assert line.heard() == pytest.approx(60, abs=0.5)


def test_a_clear_before_anything_was_pinned() -> None:
    """Interrupted before the first echo: only what the start mark tells is counted."""
    line = PlaybackScript().at(100)
    m1, m2, *rest = line.sends(500)
    fence = line.at(160).clears()
    line.comes_back(m2)  # m1 is lost: the start of playing is unknown
    line.comes_back(*rest)

    line.comes_back(fence)

    assert line.heard() == 0
    assert line.playback.echoed(m1, line.now) is None


def test_a_start_mark_that_comes_with_the_clear_counts_as_played() -> None:
    """A start is echoed at once: even during a clear it tells when it was."""
    line = PlaybackScript().at(100)
    m1, *_ = line.sends(500)
    fence = line.at(140).clears()
    line.comes_back(m1)

    line.at(200).comes_back(fence)

    assert line.heard() == 60


def test_a_lost_mark_is_skipped() -> None:
    """An echo that never comes costs nothing: the next one tells as much."""
    line = PlaybackScript().at(100)
    m1, m2, m3, *_ = line.sends(200)
    line.comes_back(m1)

    line.at(160).comes_back(m3)

    assert line.heard() == 477 / 8
    assert line.playback.echoed(m2, line.now) is None
    assert line.playback.echoed("never sent", line.now) is None


def test_audio_behind_a_fence_belongs_to_the_next_response() -> None:
    """The cleared response and the next one are never mixed up."""
    line = PlaybackScript().at(100)
    line.comes_back(line.sends(1000, A)[0])
    fence = line.at(300).clears()
    start, *_ = line.sends(1000, B)

    line.at(320).comes_back(fence, start)
    again = line.at(420).clears()
    line.comes_back(again)

    assert (line.heard(A), line.heard(B)) == (220, 100)


def test_an_item_that_goes_on_behind_a_fence_is_counted_for_both_parts() -> None:
    """Of one item cleared in the middle, both parts that were heard count."""
    line = PlaybackScript().at(100)
    line.comes_back(line.sends(1000, A)[0])
    fence = line.at(300).clears()
    start, *_ = line.sends(1000, A)

    line.at(320).comes_back(fence, start)
    again = line.at(420).clears()
    line.comes_back(again)

    assert line.heard(A) == 220 + 100


def test_a_clear_after_the_end_changes_nothing() -> None:
    """What was heard to its end stays heard, though it is cleared afterwards."""
    line = PlaybackScript().at(100)
    line.comes_back(*line.sends(100, end=True))

    line.comes_back(line.clears())

    assert line.heard() == 100


# --- echoes that never come back ---


def test_a_lost_fence_is_settled_by_our_clock() -> None:
    """Without an echo: cleared one round trip after it was sent."""
    line = PlaybackScript().at(100)
    first, *_ = line.sends(1000)
    line.at(140).comes_back(first)  # 40 ms to Twilio and back
    sent_at = line.at(440).now
    fence = line.clears()

    line.playback.settle_late_fence(fence, sent_at)

    # Began at 160 at the latest; cleared at 460 + 40 by the quickest frame.
    assert line.playback.round_trip == pytest.approx(0.04)
    assert line.heard() == pytest.approx(340, abs=0.2)


def test_a_lost_fence_without_any_echo_is_settled_by_our_clock() -> None:
    """No echo has ever come, as while the network stops: the caller heard what was
    played since it was sent."""
    line = PlaybackScript().at(100)
    line.sends(1000)
    fence = line.at(440).clears()

    line.playback.settle_late_fence(fence, line.now)

    assert line.heard() == pytest.approx(340, abs=0.2)
    assert line.playback.played == line.playback.sent


def test_a_fence_that_arrives_after_all_changes_nothing() -> None:
    """What the model was told once is not told otherwise later."""
    line = PlaybackScript().at(100)
    line.comes_back(line.sends(1000)[0])
    fence = line.at(300).clears()
    line.playback.settle_late_fence(fence, line.now)
    heard = line.heard()

    line.at(1700).comes_back(fence)

    assert line.heard() == heard == 200


def test_settling_a_fence_that_is_back_does_nothing() -> None:
    """A fence that came in time is not settled twice."""
    line = PlaybackScript().at(100)
    line.comes_back(line.sends(1000)[0])
    fence = line.at(300).clears()
    line.at(320).comes_back(fence)

    line.playback.settle_late_fence(fence, line.now)

    assert line.heard() == 220


def test_a_twilio_that_never_echoes_takes_bounded_memory() -> None:
    """Marks are kept within bounds; the newest still count."""
    line = PlaybackScript().at(100)
    first = line.clears()
    for _ in range(MAX_PENDING_MARKS):
        last = line.clears()

    assert line.playback.echoed(first, line.now) is None
    line.comes_back(last)


def test_a_flushed_mark_dates_a_clear_whose_fence_does_not_come() -> None:
    """The mark came back at the clear itself, 100 ms after the clear was sent: the
    caller heard these 100 ms, too."""
    line = PlaybackScript().at(100)
    marks = line.sends(4000)
    line.comes_back(marks[0])
    line.at(500)
    fence, cleared_at = line.clears(), line.now
    line.at(600)
    line.comes_back(marks[-1])

    line.playback.settle_late_fence(fence, cleared_at)

    assert line.heard() == pytest.approx(520, abs=21)


# --- the end, and what is audible ---


def test_hung_up_in_the_middle() -> None:
    """What was played until the hang-up is recorded, and no more."""
    line = PlaybackScript().at(100)
    marks = line.sends(1000)
    line.comes_back(marks[0])

    for at, mark in zip((120, 160, 200, 240), marks[1:5], strict=True):
        line.at(at)
        line.comes_back(mark)

    line.at(400)  # the next mark stands behind 340 ms
    line.playback.stop(line.now)

    assert line.heard() == pytest.approx(300, abs=1)


def test_a_stream_that_was_broken_before_it_was_noticed() -> None:
    """Nothing has come for seconds: the audio of these seconds was not played."""
    line = PlaybackScript().at(100)
    marks = line.sends(4000)
    line.comes_back(marks[0])
    line.at(200)
    line.comes_back(*marks[1:3])

    line.now += 3.0
    line.playback.stop(line.now)

    assert line.heard() == pytest.approx(100, abs=1)


def test_hung_up_before_any_audio() -> None:
    """Nothing was heard of a response without an echo."""
    line = PlaybackScript().at(100)
    line.sends(1000)

    line.at(400)
    line.playback.stop(line.now)

    assert line.heard() == 0


def test_which_item_the_caller_hears() -> None:
    """A barge-in is reported for the item that the caller hears, not for the newest."""
    line = PlaybackScript().at(100)
    assert line.playback.audible(line.now) is None
    first, *_ = line.sends(200, A)
    line.sends(200, B)
    assert line.playback.audible(line.now) == A
    line.comes_back(first)

    assert line.playback.audible(line.at(240).now) == A
    assert line.playback.audible(line.at(340).now) == B
    # By our clock all has been played, but no mark says so yet.
    assert line.playback.audible(line.at(2000).now) == B


def test_settled_items_are_forgotten() -> None:
    """A call of hours keeps no data of its first minute."""
    line = PlaybackScript().at(100)
    line.comes_back(*line.sends(100, end=True))

    line.playback.forget(A)
    line.playback.forget(("never", 0))

    assert line.playback.tally(A) == Tally()


# --- a network that stops ---


def played_to_60() -> tuple[PlaybackScript, list[str]]:
    """At 200, 100 ms of audio should have been played. The marks that are not back."""
    line = PlaybackScript().at(100)
    m1, m2, m3, *rest = line.sends(1000)
    for ms, mark in ((100, m1), (120, m2), (160, m3)):
        line.at(ms).comes_back(mark)
    return line.at(200), rest


def test_audio_that_the_network_held_with_the_clear_was_not_heard() -> None:
    """All came at once after a second, and the clear flushed it: playing had stopped in
    front of the next mark, or one piece earlier. Half of that piece counts."""
    line, rest = played_to_60()
    fence = line.at(300).clears()

    line.at(1320).comes_back(*rest, fence)

    assert line.heard() == pytest.approx((59.6 + 99.4) / 2, abs=0.5)


def test_the_last_piece_may_have_been_held_with_the_clear() -> None:
    """By our clock all 90 ms were played, but the clear came a second late, and the
    last 30 ms perhaps with it."""
    line = PlaybackScript().at(100)
    for ms, mark in zip((100, 120, 160), line.sends(90), strict=True):
        line.at(ms).comes_back(mark)
    fence = line.at(300).clears()

    line.at(1320).comes_back(fence)

    assert line.heard() == pytest.approx((59.6 + 90) / 2, abs=0.5)


def played_on(line: PlaybackScript, marks: list[str], until_ms: int) -> list[str]:
    """The marks come back in time. Returns those that are due later."""
    positions = [0.0, 19.9, 59.6, 99.4, *(139.1 + 198 * it for it in range(50))]
    due = list(zip(positions, marks, strict=False))
    for ms in range(100, until_ms + 20, 20):
        line.at(ms)
        while due and due[0][0] + 100 <= ms:
            line.comes_back(due.pop(0)[1])
    return [mark for _, mark in due]


def test_a_long_piece_may_have_been_held_with_the_clear() -> None:
    """The clear is 120 ms late, and flushes a mark that was not due yet: by the clock
    180 ms were heard of the piece before it, or none, if the network has held it."""
    line = PlaybackScript().at(100)
    rest = played_on(line, line.sends(1000), 300)
    fence = line.clears()

    line.at(420).comes_back(*rest, fence)

    assert line.heard() == pytest.approx(139.1 + 198 / 2, abs=0.6)


def test_a_piece_that_was_sent_long_before_was_not_held() -> None:
    """No network holds anything for three seconds: the clock counts."""
    line = PlaybackScript().at(100)
    rest = played_on(line, line.sends(4000), 2880)
    fence = line.clears()

    line.at(3000).comes_back(*rest, fence)  # the next mark stands behind 2911 ms

    assert line.heard() == pytest.approx(2900, abs=21)


def test_a_pause_that_ended_before_the_clear_is_noticed() -> None:
    """A mark came back late, and alone: playing had paused, and went on from there."""
    line, (m4, m5, *rest) = played_to_60()
    fence = line.at(300).clears()
    line.at(320).comes_back(m4)
    line.at(360).comes_back(m5)

    line.at(420).comes_back(*rest, fence)

    assert line.heard() == pytest.approx(99.4 + 100, abs=0.5)


def test_a_start_mark_that_is_not_decided_tells_when_playing_began() -> None:
    """The model is told a position before the fence is back, and the only echo came
    after the clear was sent."""
    line = PlaybackScript().at(100)
    start, *_ = line.sends(1000)
    line.clears()
    sent_at = line.now
    line.at(120).comes_back(start)

    line.at(200)

    assert line.playback.cleared_by(sent_at) == 8 * 60


def test_marks_that_arrive_after_their_clear_was_settled_change_nothing() -> None:
    """The network delivers a mark from before the clear after five seconds."""
    line = PlaybackScript().at(100)
    m1, m2, *_ = line.sends(1000)
    line.comes_back(m1)
    line.now = START + 0.5
    line.playback.settle_late_fence(line.clears(), line.now)
    heard = line.heard()
    line.now = START + 6
    line.playback.clock.frame(100, 20, line.now)

    line.comes_back(m2)

    assert line.heard() == heard > 300


def test_a_fence_behind_a_stop_is_dated_by_its_round_trip() -> None:
    """The fence is the first message after a stop of two seconds, in which no frame has
    come: the clear was not two seconds late."""
    line = PlaybackScript().at(100)
    start, *_ = line.sends(4000)
    line.at(140).comes_back(start)  # 40 ms to Twilio and back
    line.at(440)
    fence = line.clears()

    line.now = START + 2.44
    line.comes_back(fence)

    assert line.heard() == pytest.approx(340, abs=41)


# --- for a picture of the call ---


def test_what_was_played_is_listed_with_its_time() -> None:
    """A picture shows each item where the caller heard it, up to the clear, to a
    frame."""
    line = PlaybackScript()
    runs = line.playback.runs = []
    marks = line.at(100).sends(100)
    line.at(160).comes_back(marks[0])
    line.at(180).comes_back(marks[1])
    line.at(200)
    fence = line.clears()
    line.at(220).comes_back(*marks[2:], fence)

    assert sum(run.end - run.start for run in runs) == 8 * line.heard()
    assert [run.key for run in runs] == [A] * len(runs)
    assert runs[0].start == 0
    assert runs[0].at_ms == pytest.approx(160, abs=21)
    for run in runs:
        assert run.at_ms - run.start / 8 == pytest.approx(runs[0].at_ms, abs=21)
