"""`bridge serve --reload`: starts the bridge again when its agent's code has changed.

For development. Watches the files and starts `bridge serve` as a process of its own; it
imports no user code itself.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.app import routes as routes_file
from bridge.app.routes import RoutesError
from bridge.app.settings import Settings, SettingsError, load
from bridge.cli.terminal import err

DRAIN_SECONDS = 1
"""Time that running calls get to end. Then they are handed over to another bridge of
the same Redis, if there is one; else the caller hears the apology."""

KILL_SECONDS = 15.0
"""A bridge that has not ended after this time is killed."""

STEP_MS = 100
"""Editors write several files at once: changes with shorter pauses are one change."""

IGNORED = frozenset({"node_modules", "site-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Watched:
    """What a change of which starts the bridge again."""

    folders: frozenset[Path]
    """Folders with Python files: their own, and those of their subfolders."""
    files: frozenset[Path]

    def matters(self, path: str) -> bool:
        it = Path(path)
        return it in self.files or (
            it.suffix == ".py" and any(it.is_relative_to(own) for own in self.folders)
        )

    def deep(self) -> list[Path]:
        """Subfolders, of which all is watched; not those of installed packages."""
        return [
            it for folder in self.folders for it in folder.iterdir() if _is_code(it)
        ]

    def flat(self) -> list[Path]:
        """Folders of which only the files are watched."""
        found = self.folders | {it.parent for it in self.files}
        return [it for it in found if it.is_dir()]


def _is_code(folder: Path) -> bool:
    return (
        folder.is_dir()
        and not folder.name.startswith(".")
        and folder.name not in IGNORED
        and not (folder / "pyvenv.cfg").exists()
    )


def watched_by(conf: Settings, agent: str | None) -> Watched:
    """The code of the agents and functions that the settings and routes name, the
    routes file, and .env. Packages that are installed elsewhere are not watched."""
    here = Path.cwd()
    files = {here / ".env"}
    names = {agent or conf.agent, conf.model_connect or ""}
    if conf.routes is not None:
        files.add(Path(conf.routes).expanduser().resolve())
        try:
            routes = routes_file.load(conf.routes)
            names |= {*routes.agents(), *routes.functions()}
        except RoutesError as error:
            err.print(str(error), style="yellow", markup=False)  # its next change
    folders = {folder for name in names for folder in _folder_of(name, here)}
    return Watched(frozenset(folders), frozenset(files))


def _folder_of(name: str, here: Path) -> Iterator[Path]:
    """The folder of `file.py:name`, or of the package of `package.module:name`."""
    where = name.rpartition(":")[0]
    if where.endswith(".py"):
        folder = Path(where).expanduser().resolve().parent
        if folder.is_dir():
            yield folder
        return
    top = where.partition(".")[0]
    if top and (here / top).is_dir():
        yield here / top
    elif top and (here / f"{top}.py").is_file():
        yield here


class Reloader:
    """Runs a command, and runs it again after each change."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        watched: Callable[[], Watched],
    ) -> None:
        """`watched` is called at each start: a change may name other files."""
        self._command = command
        self._environ = dict(environ)
        self._watched = watched
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until SIGINT or SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        while not self._stop.is_set():
            await self._run_once(self._watched())

    async def _run_once(self, watched: Watched) -> None:
        """Runs the command until a change, or `_stop`. A process that ends by itself
        has said why: the next change may correct it."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environ,
            # Ctrl-C must reach only us: a second signal ends a bridge at once.
            start_new_session=True,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                report = tasks.create_task(_say_end(process), name="reload: process")
                await self._change(watched)
                report.cancel()
            await _end(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _change(self, watched: Watched) -> None:
        """Returns after a change that Python can read, or when `_stop` is set. A file
        with a syntax error is reported, and the bridge goes on with the code before."""
        changes: asyncio.Queue[set[str]] = asyncio.Queue()
        folders = ((watched.flat(), False), (watched.deep(), True))
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(_read(paths, deep, changes), name="reload: files")
                for paths, deep in folders
                if paths
            ]
            work.append(tasks.create_task(_first_of(changes, watched), name="reload"))
            stop = tasks.create_task(self._stop.wait(), name="reload: stop")
            await asyncio.wait([work[-1], stop], return_when=asyncio.FIRST_COMPLETED)
            for task in (*work, stop):
                task.cancel()


async def _first_of(changes: "asyncio.Queue[set[str]]", watched: Watched) -> None:
    while not _is_usable(await changes.get(), watched):
        pass


def _is_usable(paths: set[str], watched: Watched) -> bool:
    """False: nothing of it matters, or Python cannot read it."""
    matter = sorted(filter(watched.matters, paths))
    wrong = [why for it in matter if (why := syntax_error(Path(it)))]
    if wrong:
        _say(*wrong, "The bridge goes on with the code before, until this changes.")
    elif matter:
        _say(f"Changed: {', '.join(matter)}. The bridge starts again.")
    return bool(matter) and not wrong


async def _say_end(process: asyncio.subprocess.Process) -> None:
    code = await process.wait()
    text = f"The bridge has ended ({code}). It starts again after the next change"
    _say(f"{text}; Ctrl-C ends this, too.")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the bridge as an operator would; kills one that does not end."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        _say(f"The bridge has not ended within {KILL_SECONDS:.0f} s: it is killed.")


async def _read(
    paths: list[Path], deep: bool, changes: "asyncio.Queue[set[str]]"
) -> None:
    from watchfiles import awatch

    found = awatch(*paths, recursive=deep, step=STEP_MS, watch_filter=None)
    async for group in found:
        changes.put_nowait({path for _, path in group})


def syntax_error(path: Path) -> str:
    """Why Python cannot read the file; empty if it can, or if the file is gone."""
    if path.suffix != ".py" or not path.is_file():
        return ""
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        code = f": {error.text.strip()}" if error.text else ""
        return f"{path}:{error.lineno}: {type(error).__name__}: {error.msg}{code}"
    except ValueError as error:  # a null byte
        return f"{path}: {error}"
    return ""


def _say(*lines: str) -> None:
    for line in lines:
        err.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


async def serve_again(conf: Settings, agent: str | None) -> None:
    """Runs `bridge serve` with these options until SIGINT or SIGTERM."""
    options = ["--agent", agent] if agent else []
    command = [sys.executable, "-m", "bridge", "serve", *options]
    environ = {**os.environ, "BRIDGE_DRAIN_SECONDS": str(DRAIN_SECONDS)}

    def watched() -> Watched:
        nonlocal conf
        # With a mistake in .env the bridge does not start, and says why.
        with contextlib.suppress(SettingsError):
            conf = load()
        return watched_by(conf, agent)

    await Reloader(command, environ, watched).run()
