"""The wheel and the sdist, each installed in an empty environment, and used.

Calls run in real time, so most programs only wait: all programs that place a call run
at the same time, in both environments.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from bridge.sim.ports import free_port
from tests.package.building import ROOT, Installation, run
from tests.support.locks import pinned_for

MINE = Path(__file__).with_name("mine.py")
KINDS = ("wheel", "sdist")
CALLER = "+14155550177"
TOKEN = "7c6b5a493827165eed0f1de9bc4a2f8d"
SIGNED = {
    "BRIDGE_PUBLIC_URL": "https://phone.test",
    "BRIDGE_AGENT": "mine.py:agent",
    "BRIDGE_HOST": "127.0.0.1",
    "BRIDGE_LOG": "json",
    "BRIDGE_RECORD_DIR": "traces",
    "TWILIO_AUTH_TOKEN": TOKEN,
}
Said = tuple[int, str]
Runs = Mapping[tuple[str, str], Future[Said]]

WHERE = """
import json, pkgutil, sys, importlib
from importlib.metadata import distributions
found = {}
for top in ("bridge", "twiml"):
    package = importlib.import_module(top)
    for module in pkgutil.walk_packages(package.__path__, top + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for name, it in sys.modules.items():
    if name.partition(".")[0] in ("bridge", "twiml"):
        found[name] = it.__file__
print(json.dumps([found, sorted(it.name for it in distributions())]))
"""


@pytest.fixture(scope="module")
def runs(places: dict[str, Installation]) -> Iterator[Runs]:
    for place in places.values():
        shutil.copy(MINE, place.work)
    with ThreadPoolExecutor() as pool:
        started = {}
        for kind, place in places.items():
            own = ("--agent", "mine.py:agent", "--folder", "own")
            started[kind, "demo"] = pool.submit(place.bridge, "demo")
            started[kind, "own"] = pool.submit(place.bridge, "demo", *own)
            started[kind, "served"] = pool.submit(_served, place)
        yield started


def _served(place: Installation) -> Said:
    """The log of a bridge that served one call with the user's agent, followed by the
    output of `bridge sim call`; the first exit code that is not 0."""
    port = free_port()
    environ = {**SIGNED, "BRIDGE_PORT": str(port)}
    process = place.start("serve", environ=environ)
    try:
        _wait_for(f"http://127.0.0.1:{port}/healthz", process)
        # Unsigned requests are refused.
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/voice", b"", timeout=5)
        code, call = place.bridge("sim", "call", "--from", CALLER, environ=environ)
        process.send_signal(signal.SIGTERM)
        log, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return code or process.returncode, log + call


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not come up")


@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_has_the_locked_packages_and_ours(
    places: dict[str, Installation], kind: str
) -> None:
    """Every module can be imported, and none is imported from the repository."""
    place = places[kind]
    told = run(place.python, "-c", WHERE, folder=place.work)
    modules, distributions = json.loads(told.splitlines()[-1])

    assert {canonicalize_name(it) for it in distributions} == {
        *pinned_for(),
        "twilio-realtime-bridge",
    }
    assert len(modules) > 100
    environment = place.folder / "env"
    strays = {
        name: it for name, it in modules.items() if environment not in Path(it).parents
    }
    assert not strays


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_answer(places: dict[str, Installation], kind: str) -> None:
    """Commands that need no call print their answer, or which setting is missing."""
    place = places[kind]
    version = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert version

    code, said = place.bridge("--version")
    assert code == 0
    assert said.startswith(f"twilio-realtime-bridge {version[1]}\nopenai-agents 0.")
    code, said = place.bridge("--help")
    assert code == 0 and "serve" in said and "demo" in said
    code, said = place.bridge("check")
    assert code == 1 and "TWILIO_AUTH_TOKEN" in said and "Traceback" not in said
    code, said = place.bridge("twiml", "--url", "https://bridge.example.com")
    assert code == 0 and 'url="wss://bridge.example.com/media"' in said
    code, said = place.bridge("call", "+14155550100")
    assert (code, said) == (
        1,
        "BRIDGE_API_TOKEN is not set: set it here and for the bridge\n",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_demo_is_a_good_call(
    places: dict[str, Installation], runs: Runs, kind: str
) -> None:
    """The first command of a new user, with the bundled agent. It writes its recording,
    and the command that it prints for the next step is the installed one."""
    code, said = runs[kind, "demo"].result()

    assert code == 0, said
    assert "billing" in said and "ended by the bridge" in said
    suffixes = sorted(it.suffix for it in (places[kind].work / "calls").iterdir())
    assert suffixes == [".txt", ".wav", ".zst"]
    command = places[kind].folder / "env" / "bin" / "bridge"
    assert f"{command} demo --agent yours.py:agent\n" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_s_own_agent_is_heard_in_the_demo(runs: Runs, kind: str) -> None:
    """A file in the working folder is enough; the agent's tools are used."""
    code, said = runs[kind, "own"].result()

    assert code == 0, said
    assert "opening_hours" in said and "from nine to five." in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_s_own_agent_takes_a_signed_call(
    places: dict[str, Installation], runs: Runs, kind: str
) -> None:
    """`bridge serve` and a caller over real sockets; then `bridge forget` deletes the
    recording of the call."""
    place = places[kind]
    code, said = runs[kind, "served"].result()

    assert code == 0, said
    assert '"event": "call_ended"' in said and "Traceback" not in said
    assert re.search(r"ended by the caller: \d+\.\d s of the agent heard", said)
    (trace,) = (place.work / "traces").glob("*.zst")
    sid = trace.name.partition(".")[0]
    code, said = place.bridge("forget", sid, environ=SIGNED)
    assert (code, said) == (0, f"{sid}: deleted: traces 1, shared records 0\n")
    assert not trace.exists()


def test_mypy_checks_a_user_s_file(
    places: dict[str, Installation], tmp_path: Path
) -> None:
    """mypy --strict uses the package's types in the user's file: it accepts a correct
    file and reports mistakes. (With the wheel only, because mypy is slow;
    test_content.py checks that the wheel of the sdist is the same.)"""
    mine = MINE.read_text("utf-8")
    wrong = mine + (
        "\n\nimport twiml\n\n\ndef wrong(call: LiveCall) -> None:\n"
        "    reveal_type(call.facts.theirs)\n"
        "    reveal_type(twiml.hang_up())\n"
        "    call.tell(7)\n"
    )
    (tmp_path / "mine.py").write_text(mine)
    (tmp_path / "wrong.py").write_text(wrong)
    options = ("--strict", "--python-executable", str(places["wheel"].python))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "mine.py", "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    told = [line.partition(": ")[2] for line in done.stdout.splitlines()]

    assert told == [
        'note: Revealed type is "str"',
        'note: Revealed type is "str"',
        'error: Argument 1 to "tell" of "LiveCall" has incompatible type "int"; '
        'expected "str"  [arg-type]',
        "",
    ], done.stdout + done.stderr
