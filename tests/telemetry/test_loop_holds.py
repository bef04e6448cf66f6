"""What the log says about a time in which the event loop did nothing else."""

import pytest

from bridge.telemetry.loop_holds import (
    IDLE_PERIOD_SECONDS,
    LINE_SECONDS,
    MAX_CAUSES,
    MAX_LAGS,
    PERIOD_SECONDS,
    STILL_SECONDS,
    Hold,
    HoldWatch,
    LineLimit,
    Sample,
)

SID = "CA0123456789abcdef0123456789abcdef"
TOOL = Sample(f"{SID} tool lookup", "lookup", "agent.py:7 lookup")
AGENT = Sample(f"{SID} agent", "run", "session.py:9 run")
CALLBACK = Sample("", "Socket.data_received", "socket.py:3 parse")
WAITS = Sample()


def fields(*samples: Sample, **seen: float) -> dict[str, object]:
    """The fields of the line about a hold of half a second."""
    return Hold(0.5, samples=samples, **seen).fields()  # type: ignore[arg-type]


# --- the cause ---


def test_a_tool_is_named_with_its_call() -> None:
    """The operator learns whose code to change, and which call it was."""
    assert fields(TOOL, TOOL, cpu=0.0123) == {
        "seconds": 0.5,
        "cpu_seconds": 0.012,
        "by": "tool",
        "tool": "lookup",
        "call_sid": SID,
        "task": f"{SID} tool lookup",
        "where": "agent.py:7 lookup",
    }


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        (AGENT, {"by": "task", "task": f"{SID} agent", "call_sid": SID}),
        (Sample("Task-7 serve", "serve", "x"), {"by": "task", "task": "Task-7 serve"}),
        (
            Sample("rtc_1 tool a b", "a", "x"),
            {
                "by": "tool",
                "tool": "a b",
                "call_sid": "rtc_1",
                "task": "rtc_1 tool a b",
            },
        ),
        (CALLBACK, {"by": "callback", "callback": "Socket.data_received"}),
    ],
)
def test_other_code_is_named(sample: Sample, found: dict[str, str]) -> None:
    """A task of the bridge, a request, a SIP call, and a callback without a task."""
    told = fields(sample)

    assert told.pop("where") == sample.where
    assert told == {"seconds": 0.5, "cpu_seconds": 0.0, **found}


def test_the_line_that_was_seen_most_often_is_named() -> None:
    """A tool that computes for half a second is in many lines."""
    rare = Sample(TOOL.task, TOOL.callback, "agent.py:6 lookup")

    assert fields(rare, TOOL, TOOL, AGENT)["where"] == TOOL.where


def test_a_loop_with_too_much_to_do_blames_nobody() -> None:
    """Many short callbacks, as under too many calls: the one that was seen last is
    innocent."""
    assert fields(TOOL, AGENT)["by"] == "several"
    assert "tool" not in fields(TOOL, AGENT, CALLBACK)


def test_a_garbage_collection_is_no_fault_of_the_code_that_it_stops() -> None:
    assert fields(TOOL, gc=0.4)["by"] == "gc"
    assert fields(TOOL, gc=0.1)["by"] == "tool"


def test_a_process_that_did_not_run_blames_no_tool() -> None:
    """It was suspended (SIGSTOP, a paused virtual machine), or got no CPU."""
    assert fields(TOOL, stopped=0.41)["by"] == "host"
    assert Hold(9.0, stopped=8.0, samples=(TOOL,)).fields()["by"] == "host"
    assert fields(TOOL, stopped=0.3)["by"] == "tool"
    assert fields(WAITS, WAITS, process_cpu=0.1)["by"] == "host"


def test_other_threads_are_told_from_the_event_loop() -> None:
    """A plain tool in a thread may keep the interpreter's lock: a regular expression
    that takes a second stops the loop, too."""
    assert fields(AGENT, locked=0.45)["by"] == "threads"
    assert fields(TOOL, locked=0.45, cpu=0.5)["by"] == "tool"
    assert fields(WAITS, process_cpu=0.5)["by"] == "threads"


def test_a_hold_that_nobody_saw_names_nothing() -> None:
    assert fields() == {"seconds": 0.5, "cpu_seconds": 0.0, "by": "unknown"}


# --- the watch ---


class Clock:
    """Moves a watch through time. `cpu` is that of the process and of the loop."""

    def __init__(self) -> None:
        self.now = self.cpu = self.gc = 0.0
        self.watch = HoldWatch()
        self.watch.begin(0.0, 0.0, 0.0, 0.0)
        self.lags: list[float] = []
        self.holds: list[Hold] = []
        self.wait = self.watch.wait_seconds(0.0)

    def beat(self, at: float, period: float = PERIOD_SECONDS) -> None:
        self.now = at
        self.lags = list(self.watch.beat(at, self.cpu, self.gc, period))

    def wake(self, at: float, sample: Sample = TOOL) -> None:
        self.now = at
        holds, is_held = self.watch.woke(at, self.cpu)
        self.holds += holds
        if is_held:
            self.watch.add(sample)
        self.wait = self.watch.wait_seconds(at)

    def sleep(self, until: float, sample: Sample = TOOL) -> None:
        """Wakes in time, again and again."""
        while self.now + self.wait <= until:
            self.wake(self.now + self.wait, sample)


def test_a_loop_in_time_has_no_holds_and_wakes_no_thread_often() -> None:
    clock = Clock()
    for beat in range(1, 20):
        clock.beat(beat * PERIOD_SECONDS + 0.001)
        assert clock.lags == [pytest.approx(0.001, abs=0.002)]
        clock.wake(clock.now + 0.04)
        assert clock.wait > 0.2

    assert clock.holds == []


def test_an_idle_loop_is_measured_once_a_second() -> None:
    """The thread sleeps as long."""
    clock = Clock()
    clock.beat(0.25, IDLE_PERIOD_SECONDS)
    clock.wake(0.3)

    assert clock.wait == pytest.approx(1.0)


def test_a_hold_is_seen_while_it_lasts() -> None:
    """The lags that it has caused count, too: four samples a second of a loop that was
    late, not one for the whole time."""
    clock = Clock()
    clock.sleep(1.2)
    clock.cpu, clock.gc = 0.5, 0.1
    clock.beat(1.25)
    clock.wake(1.26)

    [hold] = clock.holds
    assert clock.lags == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert hold.seconds == pytest.approx(1.0)
    assert (hold.cpu, hold.gc, hold.stopped) == (0.5, 0.1, 0.0)
    assert len(hold.samples) > 10
    assert hold.fields()["by"] == "tool"


def test_a_hold_of_a_tenth_of_a_second_has_two_samples() -> None:
    """One sample alone could name a short callback among many."""
    clock = Clock()
    clock.sleep(0.355)
    clock.beat(0.355)
    clock.wake(0.4)

    assert [len(it.samples) for it in clock.holds] == [2]


def test_short_holds_are_only_counted() -> None:
    """They are in the histogram, and in no line."""
    clock = Clock()
    clock.sleep(0.33)
    clock.beat(0.34)
    clock.wake(0.4)

    assert clock.lags == [pytest.approx(0.09)] and clock.holds == []


def test_the_next_hold_begins_without_the_samples_of_the_last() -> None:
    clock = Clock()
    clock.sleep(0.5, TOOL)
    clock.beat(0.5)
    clock.sleep(1.0, AGENT)
    clock.beat(1.0)
    clock.wake(1.01)

    assert [it.fields()["by"] for it in clock.holds] == ["tool", "task"]


def test_a_process_that_was_suspended() -> None:
    """It is the first to run again: the thread, or the event loop."""
    for loop_first in (True, False):
        clock = Clock()
        clock.cpu = 0.001
        if not loop_first:
            clock.wake(9.0)
        clock.beat(9.0)
        clock.wake(9.01)

        assert [it.fields()["by"] for it in clock.holds if it.is_over] == ["host"]
        assert all("tool" not in it.fields() for it in clock.holds)


def test_a_busy_process_that_was_suspended() -> None:
    """What it used before it was suspended, it has not used meanwhile."""
    clock = Clock()
    for beat in range(1, 5):
        clock.cpu += 0.2
        clock.beat(beat * PERIOD_SECONDS)
        clock.wake(clock.now + 0.05)
    clock.cpu += 0.2
    clock.wake(2.0)
    clock.beat(2.01)
    clock.wake(2.02)

    assert [it.fields()["by"] for it in clock.holds] == ["host"]


def test_a_function_in_c_on_a_busy_machine() -> None:
    """Other processes have more than half of the CPU."""
    clock = Clock()
    clock.cpu = 0.9
    clock.wake(2.25)
    clock.beat(2.26)
    clock.wake(2.3)

    assert [it.fields()["by"] for it in clock.holds] == ["tool"]


def test_a_function_in_c_that_keeps_the_lock() -> None:
    """The thread could not run, because the loop's thread did: the sample behind it
    still tells which tool it was."""
    clock = Clock()
    clock.cpu = 0.7
    clock.wake(1.0)
    clock.beat(1.01)
    clock.wake(1.05)

    assert [it.fields()["by"] for it in clock.holds] == ["tool"]


def test_a_hold_that_does_not_end_is_logged_once() -> None:
    """A deadlock never ends: the line must come while it lasts."""
    clock = Clock()
    clock.sleep(20.0)
    [hold] = clock.holds
    told = hold.fields()

    assert not hold.is_over and STILL_SECONDS <= hold.seconds < STILL_SECONDS + 0.1
    assert told["tool"] == "lookup" and "cpu_seconds" not in told


def test_a_long_hold_costs_little_when_it_ends() -> None:
    clock = Clock()
    clock.sleep(2 * MAX_LAGS)
    clock.beat(2 * MAX_LAGS)
    clock.wake(2 * MAX_LAGS + 0.01)

    assert len(clock.lags) == MAX_LAGS
    assert len(clock.holds[-1].samples) == MAX_LAGS


# --- the lines ---


def test_one_cause_is_logged_once_a_minute() -> None:
    """The next line says how many there were."""
    limit = LineLimit()

    assert limit.take("a", 0.0) == 0
    assert [limit.take("a", it) for it in (1.0, 2.0)] == [None, None]
    assert limit.take("b", 3.0) == 0
    assert limit.take("a", LINE_SECONDS) == 2
    assert limit.take("a", 2 * LINE_SECONDS) == 0


def test_the_causes_that_are_remembered_are_limited() -> None:
    """One is forgotten."""
    limit = LineLimit()
    for cause in range(MAX_CAUSES + 1):
        assert limit.take(cause, 0.0) == 0

    assert limit.take(MAX_CAUSES, 1.0) is None and limit.take(0, 1.0) == 0
