"""Standard output and error: a line that cannot be written delays and stops nobody."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.telemetry.output import LINE_OVERHEAD, LostLines, OutputFile
from tests.support.waiting import until

PIPE_BYTES = 4096
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_lines_that_find_no_room_are_lost_and_counted(
    pipe: tuple[int, int],
) -> None:
    """Memory is bounded while nobody reads. Afterwards the log says how many lines were
    lost, and the lines that waited are complete and in order."""
    reader, writer = pipe
    counted: list[int] = []
    lost = LostLines()
    lost.add(2)
    lost.count_with(counted.append)
    file = OutputFile(writer, "stderr", lost, queue_bytes=10 * PIPE_BYTES)
    size = 100 + LINE_OVERHEAD
    lines = [b"%099d\n" % n for n in range(1000)]

    for line in lines:
        assert file.write(line) == len(line)

    assert counted[0] == 2
    waiting = len(lines) - sum(counted[1:])
    assert 10 * PIPE_BYTES // size <= waiting < 20 * PIPE_BYTES // size
    got = b""
    with capture_logs() as logged:
        while got.count(b"\n") < waiting:
            got += os.read(reader, PIPE_BYTES)
        await until(lambda: logged, what="the line about lost lines")
    # The thread may make room for one of the later lines.
    taken = got.splitlines(keepends=True)
    assert len(taken) == waiting
    assert taken == [line for line in lines if line in {*taken}]
    assert [(it["event"], it["lines"]) for it in logged] == [
        ("log_lines_lost", sum(counted))
    ]


async def test_a_pipe_that_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    """Another process may have made the shared pipe non-blocking."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    lost = LostLines()
    file = OutputFile(writer, "stderr", lost)
    text = b"x" * 10 * PIPE_BYTES + b"\n"

    file.write(text)
    got = b""
    while len(got) < len(text):
        got += os.read(reader, PIPE_BYTES)

    assert got == text
    file.finish()


def run(program: str) -> "subprocess.CompletedProcess[str]":
    begin = """
import os, sys
from bridge.telemetry import log, output
lost = output.protect_output()
log.configure("json")
log.log_crashes()
"""
    return subprocess.run(
        [sys.executable, "-c", begin + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_last_lines_before_a_crash_are_written() -> None:
    """The log of a process that crashed has the reason, scrubbed, in its last line."""
    done = run("print('printed')\nraise ValueError('+14155550101')")

    assert done.returncode == 1
    assert done.stdout == "printed\n"
    line = json.loads(done.stderr)
    assert line["event"] == "uncaught_exception"
    assert "ValueError: [number]" in line["exception"]


def test_a_child_process_writes_its_lines() -> None:
    """User code may fork. The child has no writing thread."""
    done = run("""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
print("parent", flush=True)
if os.fork() == 0:
    print("child", "\\udc80")
    os._exit(0)
os.wait()
sys.stderr.buffer.write(b"bytes\\n")
os.write(sys.stdout.fileno(), b"" if sys.stdout.isatty() else b"no terminal\\n")
""")

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "child \\udc80",
        "no terminal",
        "parent",
    ]
    assert done.stderr == "bytes\n"
