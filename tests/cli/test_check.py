"""`bridge check` and `bridge serve` report the same mistakes, all of them at once."""

import json
import re
import socket
from pathlib import Path

import pytest

from bridge.sim.ports import free_port
from tests.cli.test_commands import bridge_here
from tests.fleet.redis_server import RedisServer

MINE = """
from agents.realtime import RealtimeAgent

calls = []

def agent(call):
    open("called", "a").write("x")
    return RealtimeAgent(name="desk")

def nothing(call):
    return None
"""
GOOD = {
    "BRIDGE_PUBLIC_URL": "http://127.0.0.1:1",
    "OPENAI_API_KEY": "sk-0123",
    "TWILIO_AUTH_TOKEN": "0123456789abcdef" * 2,
    "BRIDGE_AGENT": "mine.py:agent",
    "COLUMNS": "200",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_all_kinds_of_mistakes_in_one_message(
    folder: Path, server: RedisServer
) -> None:
    """A typo, a wrong value, a placeholder, a path in the place of a secret, an account
    without a token, a route with a mistake, a missing WAV, an agent that is not there,
    one that returns nothing, a port that is taken, a folder that cannot be written and
    a Redis that refuses: each with its name, and its line."""
    (folder / "routes.yaml").write_text(
        "routes:\n"
        "  - name: a\n"
        "    nunber: +14155550100\n"
        "    agent: none.py:agent\n"
        "  - name: b\n"
        "    notice: {file: no.wav, words: hello}\n"
        "    agent: mine.py:nothing\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (folder / ".env").write_text(
            "BRIDGE_MAX_CALLS=many\n"
            "BRIDGE_PROT=1\n"
            "BRIDGE_PUBLIC_URL=https://bridge.example.com\n"
            "TWILIO_AUTH_TOKEN=/run/secrets/token\n"
            f"TWILIO_ACCOUNT_SID=AC{'0' * 32}\n"
            f"TWILIO_ACCOUNTS=AC{'1' * 32}:\n"
            "BRIDGE_ROUTES=routes.yaml\n"
            "BRIDGE_AGENT=mine.py:nobody\n"
            "BRIDGE_HOST=127.0.0.1\n"
            f"BRIDGE_PORT={taken.getsockname()[1]}\n"
            "BRIDGE_RECORD_DIR=/proc/version/calls\n"
            f"BRIDGE_REDIS_URL=redis://127.0.0.1:{server.port}/99\n"
            "OPENAI_API_KEY=sk-your-key\n"
        )
        done = bridge_here("check", "--json", folder=folder)

    told = json.loads(done.stdout)
    places = [
        (it["name"], it["place"]) for it in told["findings"] if it["level"] == "error"
    ]
    assert sorted(places) == sorted(
        [
            ("BRIDGE_MAX_CALLS", ".env:1"),
            ("BRIDGE_PUBLIC_URL", ".env:3"),
            ("TWILIO_AUTH_TOKEN", ".env:4"),
            ("TWILIO_ACCOUNTS", ".env:6"),
            ("BRIDGE_AGENT", ".env:8"),
            ("BRIDGE_PORT", ".env:10"),
            ("BRIDGE_RECORD_DIR", ".env:11"),
            ("BRIDGE_REDIS_URL", ".env:12"),
            ("OPENAI_API_KEY", ".env:13"),
            ("BRIDGE_ROUTES", "routes.yaml:3"),
            ("BRIDGE_ROUTES", "routes.yaml:4"),
            ("BRIDGE_ROUTES", "routes.yaml:6"),
        ]
    )
    assert (done.exit_code, told["mistakes"]) == (1, len(places))
    assert "BRIDGE_PROT" in {
        it["name"] for it in told["findings"] if it["level"] == "warning"
    }


def test_serve_reports_the_same_mistakes(folder: Path) -> None:
    """Of settings, routes and agents; it opens no connection for them."""
    (folder / "routes.yaml").write_text("routes:\n  - nunber: 1\n")
    given = {
        "BRIDGE_PORT": "x",
        "BRIDGE_PROT": "1",
        "BRIDGE_ROUTES": "routes.yaml",
        "BRIDGE_AGENT": "none.py:agent",
        "BRIDGE_INSECURE": "1",
    }
    serve = bridge_here("serve", folder=folder, **given)
    check = bridge_here("check", "--static", "--json", folder=folder, **given)

    found = json.loads(check.stdout)["findings"]
    lines = [
        " ".join(
            filter(None, (it["name"], it["place"] and f"({it['place']})", it["text"]))
        )
        for it in found
        if it["level"] != "ok"
    ]
    assert serve.exit_code == 1 and len(lines) >= 5
    for line in lines:
        assert line in serve.stderr, line
    assert serve.stderr.startswith("bridge serve does not start:")


def test_mistakes_are_grouped_and_counted(folder: Path) -> None:
    """For people: groups, what to write instead, and how many are left."""
    (folder / ".env").write_text("BRIDGE_PORT=x\n")
    done = bridge_here("check", folder=folder, **{**GOOD, "BRIDGE_AGENT": "no:agent"})

    titles = re.findall(
        r"^(In force|Settings|Routes and agents)\s*$", done.stdout, re.M
    )
    assert titles == ["In force", "Settings", "Routes and agents"]
    assert ".env:1: is 'x', which is not a whole number" in done.stdout
    assert "set a whole number from 0 to 65535" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 mistakes, 1 warning"


def test_warnings_alone_are_no_mistakes(folder: Path) -> None:
    """A public URL that nobody answers yet, as before the first start."""
    done = bridge_here("check", folder=folder, BRIDGE_PORT=str(free_port()), **GOOD)

    assert (done.exit_code, done.stdout.splitlines()[-1]) == (
        0,
        "0 mistakes, 1 warning",
    )
    assert "cannot be reached from this machine" in done.stdout


def test_an_agent_that_returns_nothing(folder: Path) -> None:
    """Each caller would hear the apology."""
    given = {**GOOD, "BRIDGE_AGENT": "mine.py:nothing"}
    done = bridge_here("check", folder=folder, **given)

    assert done.exit_code == 1
    assert "the agent's function returned nothing" in done.stdout


def test_static_calls_no_function_and_opens_no_connection(folder: Path) -> None:
    """A CI without a network, and without the databases of the agent."""
    redis = {"BRIDGE_REDIS_URL": "redis://127.0.0.1:1/0"}
    static = bridge_here("check", "--static", folder=folder, **GOOD, **redis)
    assert not (folder / "called").exists()
    whole = bridge_here("check", folder=folder, **GOOD, **redis)

    assert (static.exit_code, whole.exit_code) == (0, 1)
    assert "not checked" in static.stdout
    assert (folder / "called").read_text() == "x"
    assert "no program that listens" in whole.stdout
