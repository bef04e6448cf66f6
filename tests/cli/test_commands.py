"""The commands, as a user types them.

A process costs up to three seconds of CPU. Commands therefore run in this process if
only their output and exit code are tested.
"""

import asyncio
import base64
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import pytest
import structlog
from click.testing import Result
from pydantic import SecretStr
from typer.testing import CliRunner

from bridge.app.routes import ReportTarget, Route, Routes
from bridge.app.settings import NAMES, Settings
from bridge.cli.commands import app
from bridge.cli.secret_values import secrets_of
from bridge.fleet import CallEntry, InstanceLoad
from bridge.fleet.redis import redis_registry
from bridge.sim import scenario
from bridge.sim.caller import Caller
from bridge.sim.model import ModelServer
from bridge.sim.ports import free_port
from bridge.sim.twilio.record import CallRecord
from bridge.telemetry.trace import Trace
from tests.fleet.redis_server import RedisServer
from tests.support.traces import WRITER, written

WHSEC = "whsec_" + base64.b64encode(bytes(range(32))).decode()

COMMANDS = [
    [],
    ["serve"],
    ["demo"],
    ["check"],
    ["twiml"],
    ["forget"],
    ["connect"],
    ["sim"],
    ["sim", "call"],
    ["sim", "model"],
    ["sim", "load"],
    ["sim", "capacity"],
    ["sim", "accuracy"],
]


def bridge(
    *words: str, folder: Path, timeout: float = 200, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Runs `bridge ...` in a process, with these variables and no other BRIDGE_
    ones."""
    return subprocess.run(
        [sys.executable, "-m", "bridge.cli.commands", *words],
        env=_environ(environ),
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=timeout,
    )


def bridge_here(*words: str, folder: Path, **environ: str) -> Result:
    """The same in this process. A traceback would be an exception here."""
    unset: dict[str, str | None] = dict.fromkeys(NAMES & os.environ.keys())
    # A command puts what .env holds into the environment: only of this test.
    with chdir(folder), patch.dict(os.environ):
        done = CliRunner().invoke(app, words, env={**unset, **environ})
    if not isinstance(done.exception, SystemExit | None):
        raise done.exception
    return done


def _environ(environ: dict[str, str]) -> dict[str, str]:
    kept = {name: it for name, it in os.environ.items() if name not in NAMES}
    here = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": here, "COLUMNS": "100", **environ}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_a_help_text(command: list[str]) -> None:
    """Every command explains its purpose."""
    done = CliRunner().invoke(app, [*command, "--help"])

    assert done.exit_code == 0
    assert len(done.output.split()) > 25


def test_the_version_option(tmp_path: Path) -> None:
    """`bridge --version` prints them at once, even without a valid configuration."""
    done = bridge("--version", folder=tmp_path, BRIDGE_PORT="phone")

    names = ("twilio-realtime-bridge", "openai-agents", "openai")
    told = [f"{name} {metadata.version(name)}" for name in names]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:-1] == told
    assert done.stdout.splitlines()[-1].startswith(f"Python {sys.version.split()[0]} ")


def test_sources_that_are_not_installed_have_no_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the package's metadata are missing the output says so; no version is
    invented."""
    monkeypatch.setattr("bridge.app.versions.PACKAGE", "nothing-of-that-name")
    done = CliRunner().invoke(app, ["--version"])

    assert done.exit_code == 0
    assert "nothing-of-that-name is not installed as a package\n" in done.stdout


def test_an_agent_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    """The server does not start, and prints the reason."""
    (tmp_path / "mine.py").write_text("import nothing_of_that_name\n")
    done = bridge_here(
        "serve", folder=tmp_path, BRIDGE_INSECURE="1", BRIDGE_AGENT="mine.py:agent"
    )

    assert done.exit_code == 1
    assert "mine.py cannot be run" in done.stderr
    assert "nothing_of_that_name" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unsafe_server_does_not_start(tmp_path: Path) -> None:
    """Without the settings for signatures, the error names the variables to set."""
    done = bridge_here("serve", folder=tmp_path)

    assert done.exit_code == 1
    assert "BRIDGE_PUBLIC_URL" in done.stderr
    assert "TWILIO_AUTH_TOKEN" in done.stderr


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """A user can fix the whole configuration at once."""
    done = bridge_here(
        "serve", folder=tmp_path, BRIDGE_PORT="phone", BRIDGE_MAX_CALLS="0"
    )

    assert done.exit_code == 1
    assert "BRIDGE_PORT" in done.stderr and "BRIDGE_MAX_CALLS" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_reports_what_is_missing(tmp_path: Path) -> None:
    """Everything that would keep a call from working is listed, with its fix."""
    bad = bridge_here("check", folder=tmp_path, BRIDGE_AGENT="no.such:agent")
    good = bridge_here(
        "check",
        folder=tmp_path,
        BRIDGE_PUBLIC_URL="https://bridge.example",
        TWILIO_AUTH_TOKEN="a" * 32,
        OPENAI_API_KEY="sk-secret",
    )

    assert bad.exit_code == 1
    for word in ("BRIDGE_PUBLIC_URL", "TWILIO_AUTH_TOKEN", "BRIDGE_AGENT", "no.such"):
        assert word in bad.stdout
    assert good.exit_code == 0, good.stdout
    assert "sk-secret" not in good.stdout + good.stderr


def test_check_prints_markup_as_text(tmp_path: Path) -> None:
    """Text from a file or variable is printed as it is, even if it looks like
    markup."""
    (tmp_path / "routes.yaml").write_text("routes:\n  - name: '[/bold]'\n")
    done = bridge_here(
        "check", folder=tmp_path, BRIDGE_ROUTES="routes.yaml", BRIDGE_RECORD_DIR="[/x]"
    )

    assert done.exit_code == 1
    assert "[/bold]" in done.stdout and "[/x]" in done.stdout
    assert "Traceback" not in done.stderr


SEEN = """
import os
names = ("SHOP_URL", "SHOP_KEY", "EMPTY", "BARE", "BRIDGE_GREETING", "OPENAI_API_KEY")
raise RuntimeError([os.environ.get(name) for name in names])
"""


@pytest.mark.parametrize("command", ["serve", "check", "demo"])
def test_user_code_finds_what_env_holds(tmp_path: Path, command: str) -> None:
    """As in a container of docker compose; the environment of the process wins. A demo
    ignores the settings of the bridge, a key among them."""
    (tmp_path / "mine.py").write_text(SEEN)
    (tmp_path / ".env").write_text(
        "export SHOP_URL=http://${SHOP_KEY}.example # of the shop\nSHOP_KEY=wrong\n"
        "EMPTY=\nBARE\nBRIDGE_INSECURE=1\nBRIDGE_GREETING='Say hi.'\n"
        "OPENAI_API_KEY=sk-of-the-file\nBRIDGE_AGENT=mine.py:agent\n"
    )
    options = ["--agent", "mine.py:agent"] if command == "demo" else []
    done = bridge_here(command, *options, folder=tmp_path, SHOP_KEY="ours")

    settings = ["None", "None"] if command == "demo" else ["'Say hi.'", "'sk-of-the"]
    seen = ", ".join(["'http://ours.example'", "'ours'", "''", "None", *settings])
    told = " ".join(f"{done.stdout} {done.stderr}".split())
    assert done.exit_code == 1
    assert f"RuntimeError: [{seen}" in told
    assert not {"SHOP_URL", "BRIDGE_GREETING"} & os.environ.keys()


def test_check_names_the_connector_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Only the variable that is wrong is reported."""
    (tmp_path / ".env").write_text(
        "BRIDGE_INSECURE=1\nBRIDGE_MODEL_CONNECT=no.such:connect\n"
    )
    told = bridge_here("check", folder=tmp_path)
    serve = bridge_here("serve", folder=tmp_path)

    assert re.search(r"error\s+BRIDGE_MODEL_CONNECT", told.stdout)
    assert (told.exit_code, serve.exit_code) == (1, 1)
    assert "BRIDGE_MODEL_CONNECT" in serve.stderr and "agent" not in serve.stderr


def test_a_bridge_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    """One clear line, with the URL that was tried."""
    port = str(free_port())
    done = bridge_here(
        "call",
        "+14155550101",
        folder=tmp_path,
        BRIDGE_API_TOKEN="token",
        BRIDGE_HOST="::",
        BRIDGE_PORT=port,
    )

    assert done.exit_code == 1
    assert f"no bridge answers at http://[::1]:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_sim_model_reports_a_port_in_use(tmp_path: Path) -> None:
    """As for the bridge itself: one line, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = bridge_here("sim", "model", "--port", port, folder=tmp_path)

    assert done.exit_code == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_document_for_a_twiml_bin(tmp_path: Path) -> None:
    """The output can be pasted as it is."""
    done = bridge_here("twiml", "--url", "https://bridge.example/", folder=tmp_path)

    assert done.exit_code == 0
    assert 'url="wss://bridge.example/media"' in done.stdout
    assert 'action="https://bridge.example/voice/next"' in done.stdout
    assert "BRIDGE_TICKETS=off" in done.stderr
    assert bridge_here("twiml", folder=tmp_path).exit_code == 1


@contextmanager
def serving(
    folder: Path, **environ: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A `bridge serve` on a free port, and its origin."""
    port = free_port()
    names = {"BRIDGE_HOST": "127.0.0.1", "BRIDGE_PORT": str(port), **environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge.cli.commands", "serve"],
        env=_environ(names),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/healthz", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def test_a_simulated_call_says_what_to_correct(tmp_path: Path) -> None:
    """A folder that is missing is reported before the call, and not after it; a call
    that reaches no bridge names the address."""
    url = f"http://127.0.0.1:{free_port()}/voice"

    lost = bridge_here("sim", "call", url, "--wav", "none/a.wav", folder=tmp_path)
    unheard = bridge_here("sim", "call", url, folder=tmp_path)

    assert (lost.exit_code, unheard.exit_code) == (1, 1)
    assert "There is no folder none for a.wav" in lost.output
    assert f"Is this the bridge's webhook: {url}?" in " ".join(unheard.output.split())


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not come up")


@pytest.mark.slow
def test_serve_takes_a_call_and_stops_on_sigterm(tmp_path: Path) -> None:
    """`bridge serve` with the embedded model answers a call, on uvloop; after SIGTERM
    it exits with 0.

    Its log is JSON lines that contain the call's SID and no phone number. Here it also
    prints what the call said, heard and did, to stdout; so does the fake caller.
    """
    account = {"TWILIO_ACCOUNT_SID": "AC" + "2" * 32}  # others' calls are refused
    more = {"BRIDGE_LOG": "json", "BRIDGE_PRINT_CALLS": "on", **account}
    with serving(tmp_path, BRIDGE_INSECURE="1", **more) as (url, process):
        words = ("sim", "call", f"{url}/voice", "--show")
        done = bridge_here(*words, folder=tmp_path, **account)
        process.send_signal(signal.SIGTERM)
        page, log = process.communicate(timeout=60)

    assert done.exit_code == 0, done.output
    assert re.search(
        r"ended by the caller: \d+\.\d s of\s+the agent heard", done.stdout
    )
    assert process.returncode == 0
    assert '"event": "call_ended"' in log
    assert re.search(r"Call CA\w{32} is over\n", page)
    assert re.search(r"\n +0:\d\d\.\d +receptionist +\w", page)
    assert " ✂ " in page and "to the first words" in page
    assert "the caller ended it: hung up. The agent was interrupted once." in page
    assert "goodbye" in done.stdout and "goodbye" not in log
    heard = re.findall(r"(caller|agent) +(.+)\n", done.stdout)
    assert [who for who, _ in heard][:4] == ["agent", "caller", "agent", "caller"]
    assert "from the end of speech to the answer" in done.stdout
    assert '"outcome": "caller_hung_up"' in log
    assert '"call_sid": "CA' in log
    assert "5551230001" not in log and "Traceback" not in log
    assert "BRIDGE_INSECURE" in log  # the warning
    assert f'"version": "{metadata.version("twilio-realtime-bridge")}"' in log
    assert '"loop": "uvloop"' in log


@pytest.mark.slow
def test_serve_with_all_secrets_in_files(tmp_path: Path) -> None:
    """Containers mount secrets as files: a signed call is answered by a model that
    wants the key, and neither the environment nor the log contains a secret. Here
    uvloop is not installed: it is optional."""
    (tmp_path / "uvloop.py").write_text("raise ImportError\n")
    secrets = {
        "OPENAI_API_KEY": "sk-the-key-in-a-file",
        "TWILIO_AUTH_TOKEN": "0123456789abcdef" * 2,
        "BRIDGE_API_TOKEN": "the-token-of-the-api-in-a-file",
    }
    environ = {"BRIDGE_PUBLIC_URL": "https://bridge.example", "BRIDGE_LOG": "json"}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n")
        environ[f"{name}_FILE"] = str(tmp_path / name)

    async def place_call() -> tuple[CallRecord, str, ModelServer]:
        async with ModelServer(api_key=secrets["OPENAI_API_KEY"]) as model:
            named = {**environ, "BRIDGE_MODEL_URL": model.url}
            with serving(tmp_path, **named) as (url, process):
                caller = Caller(
                    webhook_url=f"{url}/voice",
                    auth_token=secrets["TWILIO_AUTH_TOKEN"],
                    signed_origin="https://bridge.example",
                )
                record = await caller.call(scenario.SHORT_TALK.script())
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=60)
        return record, log, model

    record, log, model = asyncio.run(place_call())
    assert record.error is None and len(record.heard) > 8000
    assert len(model.sessions) == 1
    assert '"loop": "asyncio"' in log
    for secret in secrets.values():
        assert secret not in log
    assert '"outcome": "caller_hung_up"' in log


@pytest.fixture
def own_log() -> Iterator[None]:
    """Restores what a command changes in this process: its logging, the log of crashes,
    and the limit of open files."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    root.handlers, root.level = handlers, level
    sys.excepthook, threading.excepthook = hooks
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    structlog.reset_defaults()


@pytest.mark.usefixtures("own_log")
@pytest.mark.parametrize("key", ["sk-secret", ""])
def test_serve_warns_of_an_open_bridge_with_a_model_key(
    key: str, tmp_path: Path
) -> None:
    """A developer with a real key cannot miss that anybody who reaches the bridge
    spends it: a frame of stars above the log, and a line in the log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = bridge_here(
            "serve",
            folder=tmp_path,
            BRIDGE_INSECURE="1",
            BRIDGE_LOG="json",
            BRIDGE_PORT=str(taken.getsockname()[1]),
            OPENAI_API_KEY=key,
        )

    framed = [it for it in done.stderr.splitlines() if it.startswith("**")]
    assert (len(framed) > 5) is bool(key)
    assert ("this bridge is OPEN" in " ".join(framed)) is bool(key)
    assert ('"event": "insecure_with_model_key"' in done.stderr) is bool(key)
    assert not key or key not in done.stderr


@pytest.mark.usefixtures("own_log")
def test_serve_reports_a_port_in_use(tmp_path: Path) -> None:
    """One clear line, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = bridge_here(
            "serve",
            folder=tmp_path,
            BRIDGE_INSECURE="1",
            BRIDGE_HOST="127.0.0.1",
            BRIDGE_PORT=port,
        )

    assert done.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("own_log")
def test_forget_deletes_the_records_of_calls(tmp_path: Path) -> None:
    """The operator can fulfil a caller's request for deletion, and sees what was
    deleted."""
    for name in ("CA1.MZ1", "CA1.MZ2", "CA2.MZ3"):
        (tmp_path / f"{name}.trace.jsonl").write_text("words")

    done = bridge_here("forget", "CA1", folder=tmp_path, BRIDGE_RECORD_DIR=".")

    assert (done.exit_code, done.stdout) == (
        0,
        "CA1: deleted: traces 2, shared records 0\n",
    )
    assert [it.name for it in tmp_path.iterdir()] == ["CA2.MZ3.trace.jsonl"]


@pytest.mark.usefixtures("own_log")
def test_forget_reports_what_it_could_not_delete(tmp_path: Path) -> None:
    """A wrong SID, another folder or a running call: the output does not claim
    success."""
    trace = Trace(0.0, lambda why: None)
    trace.open(WRITER, tmp_path, "CA2", "MZ1")
    written()

    here = {"BRIDGE_RECORD_DIR": "."}
    done = bridge_here("forget", "CA9", "CA2", "CA*", "../x", folder=tmp_path, **here)
    nowhere = bridge_here("forget", "CA2", folder=tmp_path)

    assert (done.exit_code, nowhere.exit_code) == (1, 1)
    assert done.stdout.splitlines() == [
        f"CA9: has no records in {tmp_path}",
        "CA2: is still running, or its files are being made: try again later",
        "CA*: is not a call SID, such as CA and 32 digits",
        "../x: is not a call SID, such as CA and 32 digits",
    ]
    assert "BRIDGE_RECORD_DIR is not set" in nowhere.stdout
    assert [it.name for it in tmp_path.iterdir()] == ["CA2.MZ1.trace.jsonl.zst"]
    trace.close()
    written()
    assert bridge_here("forget", "CA2", folder=tmp_path, **here).exit_code == 0


@pytest.mark.usefixtures("own_log")
def test_forget_deletes_shared_records(tmp_path: Path) -> None:
    """Shared records are deleted too, but not those of a running call. If Redis cannot
    be reached, the output does not claim success."""
    server = RedisServer(tmp_path)
    server.start()
    environ = {"BRIDGE_REDIS_URL": server.url, "BRIDGE_RECORD_DIR": "."}

    async def fill() -> None:
        async with redis_registry(server.url, lambda: InstanceLoad(1, 0)) as registry:
            for sid in ("CA1", "CA2"):
                await registry.put(f"snapshot:{sid}", b"words", 60.0)
            entry = CallEntry("CA2", "MZ2", time.time())
            await registry.opened(entry)
            done = await asyncio.to_thread(
                bridge_here, "forget", "CA1", "CA2", folder=tmp_path, **environ
            )
            assert done.exit_code == 1
            assert done.stdout.splitlines() == [
                "CA1: deleted: traces 0, shared records 1",
                "CA2: is still running, or its files are being made: try again later",
            ]
            assert await registry.get("snapshot:CA1") is None
            assert await registry.get("snapshot:CA2") == b"words"

    try:
        asyncio.run(fill())
    finally:
        server.stop()
    (tmp_path / "CA1.MZ1.trace.jsonl").write_text("words")
    away = bridge_here("forget", "CA1", folder=tmp_path, **environ)
    assert away.exit_code == 1
    assert away.stdout == "CA1: nothing deleted: Redis cannot be reached\n"
    assert (tmp_path / "CA1.MZ1.trace.jsonl").exists()


def test_every_secret_of_the_configuration_is_hidden_in_the_log() -> None:
    """Secrets in any part of a URL are hidden, whatever a library quotes."""
    conf = Settings(
        api_token=SecretStr("api-token"),
        openai_api_key=SecretStr("openai-key"),
        openai_webhook_secret=SecretStr(WHSEC),
        report_secret=SecretStr(WHSEC),
        report_url="https://a.example/services/B0123456789ABCDEF/x?key=of-reports&a=b",
        redis_url=SecretStr("rediss://me:p%40ss-of-redis@redis.example:6379/0"),
        model_url="wss://m.example/v1?api-key=of-the-model",
        model_headers={"api-key": "header-key", "Authorization": "Bearer header-token"},
        twilio_auth_token=SecretStr("auth-token"),
        twilio_auth_token_secondary=SecretStr("second-token"),
        twilio_shared_keys={"SK1": "shared-key"},
        twilio_account_sid="AC" + "0" * 32,
        twilio_accounts={"AC" + "5" * 32: ("sub-token", "other-sub-token")},
    )
    where = ReportTarget(url="https://b.example/hook?token=of-a-route")
    routes = Routes(routes=(Route(name="a", report=where),))

    secrets = secrets_of(conf, routes)

    assert {
        "api-token",
        "openai-key",
        WHSEC,
        "of-reports",
        "B0123456789ABCDEF",
        "p@ss-of-redis",
        "of-the-model",
        "header-key",
        "header-token",
        "auth-token",
        "second-token",
        "shared-key",
        "sub-token",
        "other-sub-token",
        "of-a-route",
    } <= secrets
    assert not secrets & {"a.example", "services", "v1", "0", "me", "Bearer"}
