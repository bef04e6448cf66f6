"""A Redis that the bridges cannot use is named, against real servers."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.app import redis_check
from bridge.app.redis_check import check_redis, of_info
from bridge.app.settings import Finding
from bridge.sim.ports import free_port
from tests.fleet.redis_server import RedisServer
from tests.support.waiting import until


@contextmanager
def running(folder: Path, *more: str) -> Iterator[RedisServer]:
    folder.mkdir(exist_ok=True)
    server = RedisServer(folder, *more)
    try:
        server.start()
        yield server
    finally:
        server.stop()


async def mistake(url: str) -> Finding:
    [it] = await check_redis(url)
    assert (it.level, it.name) == ("error", "BRIDGE_REDIS_URL") and it.fix
    return it


async def test_a_redis_that_can_be_used(server: RedisServer) -> None:
    """One line with its version; nothing is left in it."""
    [it] = await check_redis(server.url)

    assert it.level == "ok" and f"127.0.0.1:{server.port}" in it.text
    assert server.client.dbsize() == 0


async def test_a_redis_that_is_not_there(tmp_path: Path) -> None:
    """The port, the socket, and the name, each with its own reason."""
    refused = await mistake(f"redis://127.0.0.1:{free_port()}/0")
    missing = await mistake(f"unix://{tmp_path}/redis.sock")
    unknown = await mistake("redis://:hush@no.such.host.invalid/0")

    assert "no program that listens" in refused.text
    assert "no socket at that path" in missing.text
    assert "no address" in unknown.text and "no.such.host.invalid" in unknown.text
    assert "hush" not in str(unknown)


async def test_a_redis_that_wants_another_password(tmp_path: Path) -> None:
    """Without one, and with a wrong one; neither is shown."""
    with running(tmp_path, "--requirepass", "right") as it:
        place = f"127.0.0.1:{it.port}/0"
        without = await mistake(f"redis://{place}")
        wrong = await mistake(f"redis://:hush@{place}")
        [good] = await check_redis(f"redis://:right@{place}")

    assert "password" in without.text and "password" in wrong.text
    assert "hush" not in str(wrong)
    assert good.level == "ok"


async def test_a_user_who_may_not_write(server: RedisServer) -> None:
    """An ACL that lets it look only."""
    rules = "reader on >pw +info +select +ping +client"
    server.client.execute_command("ACL", "SETUSER", *rules.split())
    found = await mistake(f"redis://reader:pw@127.0.0.1:{server.port}/0")

    assert "does not let this user" in found.text and "ACL" in found.fix


async def test_a_database_that_does_not_exist(server: RedisServer) -> None:
    """There are 16, from 0."""
    found = await mistake(f"redis://127.0.0.1:{server.port}/99")

    assert "no database of that number" in found.text


async def test_a_replica(tmp_path: Path, server: RedisServer) -> None:
    """It answers, but takes no writes: the bridges would not find each other."""
    primary = f"127.0.0.1 {server.port}"
    with running(tmp_path / "replica", "--replicaof", primary) as replica:
        await until(
            lambda: replica.client.info()["master_link_status"] == "up"  # type: ignore[index]
        )
        found = await mistake(replica.url)

    assert "read-only replica" in found.text and "primary" in found.fix


async def test_a_redis_that_hangs(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check ends, whatever the server does."""
    monkeypatch.setattr(redis_check, "SECONDS", 0.5)
    server.freeze()
    try:
        found = await mistake(server.url)
    finally:
        server.thaw()

    assert "has not answered within" in found.text


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_program_that_is_no_redis(answer: bytes) -> None:
    """It answers in its own way, or closes the connection."""

    async def reply(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        found = await mistake(f"redis://127.0.0.1:{port}/0")

    assert f"127.0.0.1:{port}" in found.text
    assert not answer or "does not speak the protocol of Redis" in found.text


async def test_the_files_of_tls(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA that is missing, and a server without TLS, which waits for more."""
    monkeypatch.setattr(redis_check, "SECONDS", 0.5)
    missing = await mistake(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem")
    plain = await mistake(f"rediss://127.0.0.1:{server.port}/0")

    assert "ssl_ca_certs" in missing.text and "No such file" in missing.text
    assert "TLS" in plain.fix


@pytest.mark.parametrize(
    ("info", "levels"),
    [
        ({"redis_version": "7.2.4"}, ["ok"]),
        ({"redis_version": "6.2.14"}, ["warning"]),
        ({"redis_version": "4.0.9"}, ["error"]),
        ({}, ["error"]),
        ({"redis_version": "7.0.0", "cluster_enabled": 1}, ["ok", "error"]),
        (
            {
                "redis_version": "8.0.0",
                "maxmemory": 1,
                "maxmemory_policy": "allkeys-lru",
            },
            ["ok", "warning"],
        ),
        (
            {"redis_version": "8.0.0", "maxmemory": 0, "maxmemory_policy": "any"},
            ["ok"],
        ),
    ],
)
def test_what_a_redis_tells_of_itself(
    info: dict[str, object], levels: list[str]
) -> None:
    """An old version, a cluster, and one that throws data of calls away."""
    assert [it.level for it in of_info(info, "redis:6379")] == levels
