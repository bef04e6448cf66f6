"""What held the event loop, decided from what was seen. No clock, no thread.

While one callback of the event loop runs, no other call is served. loop_watch.py
measures; this file decides what the log says about it.
"""

import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

PERIOD_SECONDS = 0.25
"""Time between two beats, which measure how late the event loop is. Each wakes the loop
and the watching thread. A hold is always seen if it is longer than this and
HOLD_SECONDS together."""

IDLE_PERIOD_SECONDS = 1.0
"""The same without calls: a process that waits should not wake up often."""

HOLD_SECONDS = 0.1
"""An event loop that is so late was held: the log says by what."""

SAMPLE_SECONDS = 0.05
"""Lateness at which the first sample is taken, and the time between samples. A longer
hold than HOLD_SECONDS has two: one alone might name a short callback among many."""

LATE_WAKE_SECONDS = 0.03
"""A thread that wakes so late was kept from running."""

STOPPED = 0.8
"""A process that was stopped for more than this part of a hold blames no code."""

STILL_SECONDS = 5.0
"""A hold is logged after this time, too: it may never end."""

MAX_LAGS = 600
"""Limit of lags that one hold adds to the histogram."""

LINE_SECONDS = 60.0
"""Time in which one cause of holds is logged once."""

MAX_CAUSES = 100
"""Limit of causes that are remembered for LINE_SECONDS."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the thread of the event loop did at one moment."""

    task: str = ""
    """The name of the task that ran; empty: none."""
    callback: str = ""
    """The function that the event loop had called; empty: the loop waited."""
    where: str = ""
    """The lines that ran."""

    @property
    def code(self) -> str:
        return self.task or self.callback


@dataclass(frozen=True, slots=True)
class Hold:
    """A time in which the event loop ran one callback, or did not run at all."""

    seconds: float
    cpu: float = 0.0
    """CPU seconds of the event loop's thread."""
    gc: float = 0.0
    """Seconds of garbage collections."""
    process_cpu: float = 0.0
    """CPU seconds of all threads, while it was watched."""
    stopped: float = 0.0
    """Seconds in which the watching thread could not run and the process used no CPU:
    it was suspended, or other processes used the CPU."""
    locked: float = 0.0
    """CPU seconds that the process used while the watching thread could not run: a
    function written in C kept the interpreter's lock."""
    samples: tuple[Sample, ...] = ()
    is_over: bool = True

    def fields(self) -> dict[str, object]:
        """The fields of the log line. Names of code only, no values."""
        by, sample = self._cause()
        found: dict[str, object] = {"seconds": round(self.seconds, 3)}
        if self.is_over:
            found["cpu_seconds"] = round(min(self.cpu, self.seconds), 3)
        if sample is None:
            return {**found, "by": by}
        if sample.task:
            call_sid, tool = call_and_tool(sample.task)
            found |= {"call_sid": call_sid} if call_sid else {}
            found |= {"tool": tool} if tool else {}
            found["task"] = sample.task
            by = "tool" if tool else "task"
        elif sample.callback:
            found["callback"] = sample.callback
        return {**found, "by": by, "where": sample.where}

    def _cause(self) -> tuple[str, Sample | None]:
        """What held the loop, and the sample that names it."""
        if self.gc >= self.seconds / 2:
            return "gc", None
        ran = self.seconds - self.stopped
        if ran < HOLD_SECONDS or self.stopped > STOPPED * self.seconds:
            return "host", None
        of_others = self.cpu < self.locked / 2
        if self.is_over and of_others and self.seconds - self.locked < HOLD_SECONDS:
            return "threads", None
        at_work = [it for it in self.samples if it.code]
        if not at_work and self.samples:
            others_ran = self.process_cpu >= self.seconds / 2
            return ("threads" if others_ran else "host"), None
        if not at_work:
            return "unknown", None
        [(code, count)] = Counter(it.code for it in at_work).most_common(1)
        if 2 * count <= len(at_work) and len(at_work) > 1:
            return "several", None
        own = [it for it in at_work if it.code == code]
        [(where, _)] = Counter(it.where for it in own).most_common(1)
        return "callback", next(it for it in own if it.where == where)


_CALL = re.compile(r"((?:CA|rtc_)\w+) (?:tool (.+))?")


def call_and_tool(task: str) -> tuple[str, str]:
    """The SID of the call and the name of the tool that a task's name has
    (user_code.running_tool); empty if there is none."""
    found = _CALL.match(task)
    return (found[1], found[2] or "") if found else ("", "")


@dataclass(slots=True)
class _Seen:
    """What the watching thread has seen of the hold that goes on."""

    process_cpu: float = 0.0
    stopped: float = 0.0
    locked: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    is_told: bool = False


class HoldWatch:
    """Finds the holds. The event loop calls `beat`, another thread the rest.

    All times are seconds of one clock, which the caller reads.
    """

    def __init__(self) -> None:
        self._period = PERIOD_SECONDS
        self._due = 0.0
        """When the next beat is due."""
        self._cpu = self._gc = 0.0
        """At the last beat."""
        self._ended: deque[tuple[float, float, float, float]] = deque(maxlen=100)
        """Holds that have ended: due, now, CPU, garbage collection."""
        self._process_cpu = self._cpu_rate = 0.0
        """At the last time the thread woke; and what the process used until then."""
        self._woke_at = self._wake_at = 0.0
        self._seen = _Seen()

    def begin(self, now: float, cpu: float, process_cpu: float, gc: float) -> None:
        """The first beat is due after PERIOD_SECONDS; the thread does not run yet."""
        self._due = now + self._period
        self._woke_at = self._wake_at = now
        self._cpu, self._process_cpu, self._gc = cpu, process_cpu, gc

    def beat(self, now: float, cpu: float, gc: float, period: float) -> Iterator[float]:
        """The lags to count: this one, and those of the beats that are missing because
        of it. Without these, a second without the loop would count like a moment. The
        next beat is due after `period`."""
        late = now - self._due
        if late >= HOLD_SECONDS:
            self._ended.append((self._due, now, cpu - self._cpu, gc - self._gc))
        before, self._period = self._period, period
        self._due, self._cpu, self._gc = now + period, cpu, gc
        missed = min(max(int(late / before), 0), MAX_LAGS - 1)
        return (max(late - it * before, 0.0) for it in range(missed + 1))

    def woke(self, now: float, process_cpu: float) -> tuple[list[Hold], bool]:
        """The holds to log; and whether the loop is held, so that a sample tells what
        by."""
        due = self._due  # before `_ended` is read: `beat` writes it afterwards
        used, elapsed = process_cpu - self._process_cpu, now - self._woke_at
        before = self._cpu_rate * (self._wake_at - self._woke_at)
        """What the process has probably used until the thread should have woken."""
        holds = []
        while self._ended:
            since, until, cpu, gc = self._ended.popleft()
            self._look_back(since, min(now, until), used - before)
            self._seen.process_cpu += used
            holds.append(self._hold(until - since, cpu, gc))
            self._seen = _Seen()
        self._process_cpu = process_cpu
        if now - self._wake_at < LATE_WAKE_SECONDS and elapsed > 0:
            self._cpu_rate = used / elapsed
        self._woke_at = now
        is_held = now - due >= SAMPLE_SECONDS / 2
        if not is_held:
            self._seen = _Seen()
            return holds, False
        self._look_back(due, now, used - before)
        self._seen.process_cpu += used
        if now - due >= STILL_SECONDS and not self._seen.is_told:
            self._seen.is_told = True
            holds.append(self._hold(now - due, is_over=False))
        return holds, True

    def add(self, sample: Sample) -> None:
        """Adds a sample of the hold that goes on."""
        if len(self._seen.samples) < MAX_LAGS:
            self._seen.samples.append(sample)

    def wait_seconds(self, now: float) -> float:
        """How long the thread sleeps until it calls `woke` again."""
        late = now - self._due
        wait = SAMPLE_SECONDS if late >= 0 else SAMPLE_SECONDS - late
        self._wake_at = now + wait
        return wait

    def _look_back(self, since: float, until: float, used: float) -> None:
        """Counts the part of a hold in which this thread could not run."""
        missed = until - max(since, self._wake_at)
        if missed < LATE_WAKE_SECONDS:
            return
        used = min(max(used, 0.0), missed)
        self._seen.locked += used
        self._seen.stopped += missed - used

    def _hold(
        self, seconds: float, cpu: float = 0.0, gc: float = 0.0, is_over: bool = True
    ) -> Hold:
        seen = self._seen
        return Hold(
            seconds=seconds,
            cpu=cpu,
            gc=gc,
            process_cpu=seen.process_cpu,
            stopped=seen.stopped,
            locked=seen.locked,
            samples=tuple(seen.samples),
            is_over=is_over,
        )


class LineLimit:
    """Each cause of holds is logged once in LINE_SECONDS."""

    def __init__(self) -> None:
        self._causes: dict[object, tuple[float, int]] = {}
        """Cause -> when it was logged, and the holds since then."""

    def take(self, cause: object, now: float) -> int | None:
        """How many holds of this cause were not logged since its last line. None: this
        one is not logged either."""
        logged, skipped = self._causes.get(cause, (-LINE_SECONDS, 0))
        if now - logged < LINE_SECONDS:
            self._causes[cause] = logged, skipped + 1
            return None
        self._causes[cause] = now, 0
        if len(self._causes) > MAX_CAUSES:
            del self._causes[next(iter(self._causes))]
        return skipped
