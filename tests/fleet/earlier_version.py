"""The bridge's own code of an earlier commit, run beside this version.

`FORMAT_1` is the only place that names the commit. `unpack` takes its files out of the
git history; `running` starts a Python process that imports them and runs the code that
a test gives it. Without that history the tests of two versions fail: a skipped test
would not be noticed.
"""

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

FORMAT_1 = "739a7adcf628ee02044728ec38294e1026faa464"
"""The last commit that writes format 1 (bridge/fleet/formats.py)."""

ROOT = Path(__file__).resolve().parents[2]

ANSWER_SECONDS = 30.0
MAX_LINE_BYTES = 2**24


def unpack(folder: Path, commit: str = FORMAT_1) -> Path:
    """Writes the files of this commit to `folder`, which is made. The test fails if git
    or the commit is missing."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        pytest.fail(_missing(commit, str(error)), pytrace=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        pytest.fail(_missing(commit, why), pytrace=False)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def shared_source(folders: pytest.TempPathFactory) -> Path:
    """The files of format 1, once for all workers of this run: with one copy, one
    worker writes the bytecode that all import."""
    base = folders.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shared /= "format1-source"
    if not shared.exists():
        with suppress(OSError):  # another worker was quicker
            unpack(folders.mktemp("format1") / "source").rename(shared)
    return shared


def _missing(commit: str, why: str) -> str:
    return (
        f"Commit {commit} cannot be read from the git history of {ROOT}: {why}. The "
        "tests of two versions side by side run that commit's own code. Run them in a "
        "full clone (git fetch --unshallow --tags), not in a source archive."
    )


PROGRAM = """
import ast, asyncio, json, sys, traceback
import structlog

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    names = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        code, given = json.loads(line)
        names |= {"result": None, **given}
        try:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            waits = eval(compile(code, "<test>", "exec", flags), names)
            if waits is not None:
                await waits
            answer = {"result": names["result"]}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)

asyncio.run(main())
"""


class OtherVersion:
    """A process that has imported the code of another version."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, code: str, **given: Any) -> Any:
        """Runs `code`, which may use `await`, in that process, and returns the value
        that the code has assigned to `result`. Names stay from one `run` to the next.
        `given` and `result` are JSON values."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        stdin.write(json.dumps([code, given]).encode() + b"\n")
        await stdin.drain()
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = json.loads(await stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def kill(self) -> None:
        self._process.kill()


@asynccontextmanager
async def running(source: Path) -> AsyncIterator[OtherVersion]:
    """`source`: the folder that `unpack` has returned."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
    )
    other = OtherVersion(process)
    try:
        where = await other.run("import bridge; result = bridge.__file__")
        assert Path(where).is_relative_to(source), "it runs this version's code"
        yield other
    finally:
        if process.returncode is None:
            process.kill()
        # `communicate` and not `wait`: it closes the pipes, too.
        await process.communicate()
