"""The clock of the tests (simulated_time.py)."""

import asyncio
import subprocess
import sys
import time

import pytest

from tests.support.waiting import until

pytestmark = pytest.mark.both_loops


async def test_waiting_takes_no_time() -> None:
    """A minute passes for every clock of the test, and nobody waits for it."""
    began, wall, real = time.monotonic(), time.time(), time.perf_counter()

    await asyncio.sleep(60)

    assert time.monotonic() - began == pytest.approx(60, abs=0.1)
    assert time.time() - wall == pytest.approx(60, abs=0.1)
    assert asyncio.get_running_loop().time() - began == pytest.approx(60, abs=0.1)
    assert time.perf_counter() - real < 30


async def test_computing_takes_no_time() -> None:
    """A machine that is busy for a while delays nothing."""
    loop = asyncio.get_running_loop()
    loop.call_later(60, print)  # else the clock is real on uvloop
    await asyncio.sleep(1)
    began, end = time.monotonic(), time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass

    assert time.monotonic() - began < 0.1


async def test_timers_run_in_their_order() -> None:
    """A cancelled timer does not run; a limit ends what is slower."""
    loop, ran = asyncio.get_running_loop(), list[str]()
    loop.call_later(30, ran.append, "last")
    loop.call_later(10, ran.append, "first")
    loop.call_later(20, ran.append, "cancelled").cancel()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(15):
            await asyncio.sleep(25)
    assert ran == ["first"]
    await asyncio.sleep(20)
    assert ran == ["first", "last"]


async def test_what_was_sent_arrives_before_a_timer() -> None:
    """No limit of a test is over while its own sockets have something to do."""
    got = list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            got.append(line)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(50):
            writer.write(b"%d\n" % number)
            await asyncio.sleep(0.001)
            assert len(got) == number + 1
        writer.close()
        await writer.wait_closed()


async def test_a_thread_has_the_time_that_it_needs() -> None:
    """The limit of a call is not over while its thread works."""
    async with asyncio.timeout(30):
        assert await asyncio.to_thread(_slow) == "done"


def _slow() -> str:
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        time.sleep(0.01)
    return "done"


async def test_a_process_has_the_time_that_it_needs() -> None:
    """Also one that a test only asks now and then."""
    words = [sys.executable, "-S", "-c", "import time; time.sleep(0.2)"]
    with subprocess.Popen(words) as process:  # noqa: ASYNC220 - starts at once
        await until(lambda: process.poll() is not None, seconds=30)


async def test_code_that_holds_the_loop_makes_it_late() -> None:
    """Nobody waits for it all the same."""
    began, real = time.monotonic(), time.perf_counter()
    asyncio.get_running_loop().call_later(60, print)
    await asyncio.sleep(0)
    time.sleep(40)  # noqa: ASYNC251 - it holds the loop
    assert time.monotonic() - began == pytest.approx(40, abs=1)
    assert time.perf_counter() - real < 30


@pytest.mark.real_time
async def test_real_time_is_real() -> None:
    """A test can choose real time."""
    real = time.perf_counter()
    await asyncio.sleep(0.2)
    assert time.perf_counter() - real > 0.15
