"""The search: `python -m tests.fuzz [--seconds 60] [TARGET ...]`, with atheris.

What is new in it stays in build/fuzz/TARGET; a finding goes to corpus/TARGET, where it
fails the tests until it is mended. `--keep` makes the corpus anew of all there is: the
fewest inputs that reach what is reached. `--show TARGET FILE` runs one input.
"""

import argparse
import mmap
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

CORPUS = Path(__file__).parent / "corpus"
WORK = Path("build/fuzz")

INSTRUMENTED = [
    "bridge.core",
    "bridge.agent",
    "bridge.http.api.bodies",
    "bridge.fleet.formats",
    "bridge.fleet.plan",
    "bridge.app.overflow",
    "bridge.app.routes",
    "bridge.http.signature",
    "bridge.http.tickets",
    "bridge.app.settings",
    "bridge.app.values",
    "bridge.app.yaml_lines",
    "yaml",
]

LONGEST = {"conversation": 600, "routes": 3000, "place": 60, "setting": 300}
"""Bytes of an input; others 6000."""

BYTES = frozenset({"conversation", "place", "routes"})
"""Whose inputs are no messages, one a line."""

SLOW_SECONDS = 5
"""One input that takes longer is a finding: it would hold up every call."""

_COUNTS = struct.Struct("<QQ")


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.fuzz")
    asked.add_argument("targets", nargs="*", metavar="TARGET")
    asked.add_argument("--seconds", type=int, default=60, help="for each target")
    asked.add_argument("--keep", action="store_true", help="make the corpus anew")
    asked.add_argument("--show", action="store_true", help="run TARGET on a FILE")
    said = asked.parse_args()
    from tests.fuzz.targets import TARGETS

    if said.show:
        name, *files = said.targets
        return _show(name, files)
    if unknown := set(said.targets) - TARGETS.keys():
        asked.error(f"there is {', '.join(TARGETS)}, and no {', '.join(unknown)}")
    names = said.targets or list(TARGETS)
    if said.keep:
        for name in names:
            _keep(name)
        return 0
    found = [_search(name, said.seconds) for name in names]
    inputs, messages, bad = (sum(column) for column in zip(*found, strict=True))
    print(f"{'all':14}{inputs:>12,} inputs{messages:>14,} messages{bad:>4} findings")
    return bool(bad)


def _search(name: str, seconds: int) -> tuple[int, int, int]:
    from tests.fuzz.seeds import seeds, words

    work, kept = WORK / name, CORPUS / name
    for folder in (work / "new", work / "seeds", work / "bad", kept):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (work / "seeds" / str(number)).write_bytes(seed)
    (work / "words").write_text("".join(f'"{word}"\n' for word in sorted(words())))
    counts = work / "counts"
    counts.write_bytes(bytes(_COUNTS.size))
    limits = (
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST.get(name, 6000)}",
        f"-dict={work / 'words'}",
        f"-artifact_prefix={work / 'bad'}/",
        f"-timeout={SLOW_SECONDS}",
        "-rss_limit_mb=1024",
    )
    began = time.monotonic()
    with (work / "log").open("ab") as log:
        folders = (work / "new", work / "seeds", kept)
        ended = _atheris(name, counts, (*limits, *map(str, folders)), log)
    bad = [it for it in (work / "bad").iterdir() if not it.name.startswith("slow")]
    for it in bad:
        shutil.move(it, kept / it.name)
        print(f"{name}: {kept / it.name}", flush=True)
    inputs, messages = _COUNTS.unpack(counts.read_bytes())
    took = time.monotonic() - began
    print(
        f"{name:14}{inputs:>12,} inputs{messages:>14,} messages{len(bad):>4} findings"
        f"{took:>7.0f} s",
        flush=True,
    )
    if ended and not bad:
        print(f"{name}: it ended with {ended}, see {work / 'log'}", flush=True)
    return inputs, messages, len(bad) or int(bool(ended))


def _keep(name: str) -> None:
    """The fewest inputs that reach what all that are there reach together."""
    work, kept = WORK / name, CORPUS / name
    fewest = work / "fewest"
    shutil.rmtree(fewest, ignore_errors=True)
    fewest.mkdir(parents=True)
    folders = [it for it in (kept, work / "new", work / "seeds") if it.is_dir()]
    (work / "counts").write_bytes(bytes(_COUNTS.size))
    with (work / "log").open("ab") as log:
        # Of a place that is reached, not how often: else there would be thousands.
        limits = ("-use_counters=0", f"-max_len={LONGEST.get(name, 6000)}")
        args = ("-merge=1", *limits, str(fewest))
        _atheris(name, work / "counts", (*args, *map(str, folders)), log)
    for it in kept.iterdir() if kept.is_dir() else ():
        if not it.name.startswith(("crash", "timeout", "oom", "found")):
            it.unlink()
    kept.mkdir(parents=True, exist_ok=True)
    for it in fewest.iterdir():
        shutil.move(it, kept / it.name[:12])
    sizes = [it.stat().st_size for it in kept.iterdir()]
    print(f"{name:14}{len(sizes):>6} files{sum(sizes):>10,} bytes", flush=True)


def _atheris(name: str, counts: Path, args: Iterable[str], log: IO[bytes]) -> int:
    call = [sys.executable, "-m", "tests.fuzz.search", name, str(counts), *args]
    return subprocess.run(call, stdout=log, stderr=log, check=False).returncode


def _show(name: str, files: list[str]) -> int:
    from tests.fuzz.talk import messages, played
    from tests.fuzz.targets import TARGETS

    for file in files:
        data = Path(file).read_bytes()
        if name == "conversation":
            print(*messages(played(data)), sep="\n")
        print(file, TARGETS[name](data), "messages")
    return 0


def search(name: str, counts: Path, args: list[str]) -> None:
    """One target, in this process; does not come back."""
    import atheris  # only here: it has wheels for few Pythons

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    import structlog

    from tests.fuzz.mutate import mutated
    from tests.fuzz.seeds import seeds

    structlog.configure(
        processors=[_nothing], wrapper_class=structlog.BoundLogger
    )  # nobody reads a million warnings
    target = TARGETS[name]
    with counts.open("r+b") as file:
        total = mmap.mmap(file.fileno(), _COUNTS.size)
    inputs = messages = 0

    def one(data: bytes) -> None:
        nonlocal inputs, messages
        inputs += 1
        messages += target(data)
        _COUNTS.pack_into(total, 0, inputs, messages)

    def otherwise(data: bytes, most: int, seed: int) -> bytes:
        return mutated(data, most, seed, known, atheris.Mutate)

    known = seeds(name)
    # libFuzzer begins itself again to merge, by what it takes for its own name.
    itself = f"{sys.executable} -m tests.fuzz.search {name} {counts}"
    if name in BYTES:
        atheris.Setup([itself, *args], one)
    else:
        atheris.Setup([itself, *args], one, custom_mutator=otherwise)
    atheris.Fuzz()


def _nothing(logger: object, name: str, event: object) -> object:
    import structlog

    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
