"""Calls whose model has TLS, as real models have."""

import asyncio
from pathlib import Path

import pytest

from bridge.sim.realtime import faults
from bridge.websocket.tls import tls_client
from tests.e2e.bridge import bridge
from tests.e2e.test_survive import (
    COUNTING,
    HANG_UP,
    LISTEN,
    asks,
    counted,
    sent_ms,
    understood,
)
from tests.support.tls import server_context, trusted
from tests.support.waiting import until

pytestmark = pytest.mark.both_loops


async def test_a_connection_that_is_lost_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears the answer to its end. The certificates are loaded before the
    first call, because that stops all calls, and the redial needs no other."""
    context = server_context(tmp_path)
    with trusted(tmp_path, monkeypatch):
        async with bridge(COUNTING, model_tls=context) as place:
            assert tls_client.cache_info().currsize == 1
            async with asyncio.TaskGroup() as tasks:
                call = tasks.create_task(
                    place.caller().call([asks(1), LISTEN, HANG_UP])
                )
                await until(lambda: sent_ms(place) >= 600)
                place.model.inject(faults.drop)
            await place.empty()

    assert understood(call.result()) == counted(1)
    assert len(place.model.sessions) == 2
    assert context.session_stats()["hits"] == 1
