"""`bridge serve --reload`: a developer edits, and the next call meets the new code."""

import asyncio
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.app.settings import Settings
from bridge.cli.reload import Watched, syntax_error, watched_by
from bridge.sim.ports import free_port
from tests.cli.test_commands import _environ, _wait_for, bridge_here
from tests.support.waiting import until

pytestmark = pytest.mark.slow

# A reloader of a program that is cheaper to start than a bridge.
RELOADER = """
import asyncio, os, sys
from pathlib import Path
from bridge.cli.reload import Reloader, Watched
here = Path.cwd()
watched = Watched(frozenset({here / "code"}), frozenset({here / ".env"}))
command = [sys.executable, "-u", "code/program.py"]
asyncio.run(Reloader(command, os.environ, lambda: watched).run())
"""

PROGRAM = """
import signal, sys, time
print("runs {n}")
signal.signal(signal.SIGTERM, lambda *_: (print("ends {n}"), sys.exit(0)))
while True:
    time.sleep(0.05)
"""


class Program:
    """A process, and what it has printed so far to both streams."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=_environ({}),
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    async def sees(self, text: str) -> None:
        await until(lambda: text in self.text, seconds=40, what=text)

    async def ends(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        if self.process.stdout:
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout
        while line := self.process.stdout.readline():
            self.text += line


@contextmanager
def running(*command: str, folder: Path) -> Iterator[Program]:
    program = Program([*command], folder)
    try:
        yield program
    finally:
        program.close()


@pytest.mark.timeout(150)
async def test_each_change_starts_the_program_again(tmp_path: Path) -> None:
    """A file, a new file in a folder, .env; not another file. A syntax error leaves the
    program running; one that ends by itself is started after the next change."""
    code = tmp_path / "code"
    (code / "shop").mkdir(parents=True)
    program, menu = code / "program.py", code / "shop" / "menu.py"
    program.write_text(PROGRAM.format(n=1))

    with running("-c", RELOADER, folder=tmp_path) as out:

        async def changes(path: Path, text: str, seen: str) -> None:
            """The watch begins soon after the program: written until it is noticed."""
            before = out.text.count(seen)
            for _ in range(60):
                path.write_text(text)
                for _ in range(10):
                    if out.text.count(seen) > before:
                        return
                    await asyncio.sleep(0.05)
            raise AssertionError(out.text)

        await out.sees("runs 1")
        await changes(program, PROGRAM.format(n=2), "runs 2")
        assert out.text.index("ends 1") < out.text.index("runs 2")
        assert f"Changed: {program}. The bridge starts again." in out.text

        (tmp_path / "other.txt").write_text("x")
        (code / "notes.txt").write_text("x")
        await changes(menu, "x = = 1\n", f"{menu}:1: SyntaxError: invalid syntax: x =")
        assert "goes on with the code before" in out.text and "ends 2" not in out.text

        await changes(menu, "x = 1\n", "runs 2")
        assert out.text.count("ends 2") == 1

        await changes(program, "import no_such_module\n", "The bridge has ended (1).")
        assert "ModuleNotFoundError" in out.text
        await changes(program, PROGRAM.format(n=3), "runs 3")
        await changes(tmp_path / ".env", "A=1\n", "ends 3")
        await until(lambda: out.text.count("runs 3") == 2, seconds=30)

        assert await out.ends(signal.SIGINT) == 0
        assert out.text.count("ends 3") == 2


AGENT = """
import sys
from agents.realtime import RealtimeAgent
print("loads {n}", file=sys.stderr)
agent = RealtimeAgent(name="desk")
"""


@pytest.mark.timeout(150)  # two bridges start; on a loaded machine each takes long
async def test_a_bridge_is_started_again_with_the_new_code(tmp_path: Path) -> None:
    """The real command, on a real port."""
    port = free_port()
    (tmp_path / "mine.py").write_text(AGENT.format(n=1))
    (tmp_path / ".env").write_text(
        f"BRIDGE_INSECURE=1\nBRIDGE_PORT={port}\nBRIDGE_AGENT=mine.py:agent\n"
    )
    with running("-m", "bridge", "serve", "--reload", folder=tmp_path) as out:
        url = f"http://127.0.0.1:{port}/healthz"
        await asyncio.to_thread(_wait_for, url, out.process)
        (tmp_path / "mine.py").write_text(AGENT.format(n=2))
        await out.sees("loads 2")
        await asyncio.to_thread(_wait_for, url, out.process)
        assert await out.ends(signal.SIGTERM) == 0
        assert out.text.count("loads 1") == 1


@pytest.mark.parametrize(
    "environ",
    [{}, {"BRIDGE_PUBLIC_URL": "https://a.example", "TWILIO_AUTH_TOKEN": "t" * 32}],
)
def test_reload_is_refused_where_strangers_call(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Each change ends calls, and half of an edit would answer the phone."""
    done = bridge_here("serve", "--reload", folder=tmp_path, **environ)

    assert done.exit_code == 1
    assert "--reload is for development" in done.stderr


def test_reload_says_which_package_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    done = bridge_here("serve", "--reload", folder=tmp_path, BRIDGE_INSECURE="1")

    assert done.exit_code == 1
    assert "pip install watchfiles" in done.stderr


def test_what_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of all agents and functions, the routes, .env; no installed package,
    no virtual environment."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a/tools", "a/.git", "a/node_modules", "a/env", "shop", "b"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a/env/pyvenv.cfg").touch()
    for file in ("a/mine.py", "single.py", "b/report.py"):
        (tmp_path / file).touch()
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        textwrap.dedent("""\
            routes:
              - number: "+14155550100"
                agent: shop.phone:agent
                report: {to: b/report.py:send}
              - number: "+14155550101"
                agent: bridge.agent.receptionist:receptionist
        """)
    )

    found = watched_by(Settings(agent="a/mine.py:agent", routes=routes), None)
    assert found.folders == {tmp_path / it for it in ("a", "shop", "b")}
    assert found.files == {tmp_path / ".env", routes}
    assert {it.name for it in found.deep()} == {"tools"}
    assert set(found.flat()) == found.folders | {tmp_path}
    assert found.matters(str(tmp_path / "a/tools/x.py")) and found.matters(str(routes))
    assert not found.matters(str(tmp_path / "x.py"))
    assert not found.matters(str(tmp_path / "a/notes.txt"))

    routes.write_text("routes: 1\n")
    found = watched_by(Settings(routes=routes), "single:agent")
    assert found.folders == {tmp_path} and found.files >= {routes}
    gone = watched_by(Settings(), "gone/mine.py:agent")
    assert gone.folders == frozenset()


def test_a_file_that_python_cannot_read(tmp_path: Path) -> None:
    """With its line; a file that is gone, or of another kind, is no mistake."""
    file = tmp_path / "a.py"
    assert syntax_error(file) == ""
    file.write_text("x = 1\nif x\n")
    assert syntax_error(file) == f"{file}:2: SyntaxError: expected ':': if x"
    file.write_bytes(b"x = '\0'")
    assert re.match(rf"{file}.*null byte", syntax_error(file))
    file.write_text("x = 1\n")
    assert syntax_error(file) == ""
    (tmp_path / "a.txt").write_text("if x")
    assert syntax_error(tmp_path / "a.txt") == ""
    assert Watched(frozenset(), frozenset()).flat() == []
