"""The search: `python -m tests.fuzz [--seconds 60] [TARGET ...]`, with atheris.

Inputs that reach new code stay in build/fuzz/TARGET. A finding goes to corpus/TARGET,
where it fails the tests until the fault is corrected. `--keep` makes the corpus again
from all inputs: the fewest that reach the same code. `--show TARGET FILE` runs a FILE.
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
    "bridge.fleet.snapshot",
    "bridge.app.dial_permissions",
    "bridge.app.outbound",
    "bridge.app.overflow",
    "bridge.app.warm_calls",
    "bridge.audio.wav",
    "bridge.app.routes",
    "bridge.http.signature",
    "bridge.http.tickets",
    "bridge.http.dials",
    "bridge.http.parameters",
    "bridge.http.status_webhooks",
    "bridge.http.warm_webhooks",
    "bridge.http.webhook_fields",
    "bridge.app.settings",
    "bridge.app.values",
    "bridge.app.yaml_lines",
    "bridge.privacy",
    "twiml",
    "yaml",
]

LONGEST = {
    "conversation": 600,
    "routes": 3000,
    "queue_place": 60,
    "setting": 300,
    "number": 80,
    "wav": 2000,
}
"""Largest input of a target in bytes; for the other targets 6000."""

BYTES = frozenset({"conversation", "queue_place", "routes", "wav"})
"""Targets whose inputs are plain bytes; the others take one message a line."""

SLOW_SECONDS = 5
"""An input that takes longer is a finding: it would delay every call."""

_COUNTS = struct.Struct("<QQ")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="make the corpus again")
    parser.add_argument("--show", action="store_true", help="run TARGET on a FILE")
    chosen = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    if chosen.show:
        name, *files = chosen.targets
        return _show(name, files)
    if unknown := set(chosen.targets) - TARGETS.keys():
        known = ", ".join(TARGETS)
        parser.error(f"unknown target {', '.join(unknown)}: the targets are {known}")
    names = chosen.targets or list(TARGETS)
    if chosen.keep:
        for name in names:
            _keep(name)
        return 0
    found = [_search(name, chosen.seconds) for name in names]
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
        print(f"{name}: atheris exited with {ended}: see {work / 'log'}", flush=True)
    return inputs, messages, len(bad) or int(bool(ended))


def _keep(name: str) -> None:
    """Replaces the corpus by the fewest inputs that reach the code that all reach."""
    work, kept = WORK / name, CORPUS / name
    fewest = work / "fewest"
    shutil.rmtree(fewest, ignore_errors=True)
    fewest.mkdir(parents=True)
    folders = [it for it in (kept, work / "new", work / "seeds") if it.is_dir()]
    (work / "counts").write_bytes(bytes(_COUNTS.size))
    with (work / "log").open("ab") as log:
        # Ignore how often a place is reached: else thousands of inputs would be kept.
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
    from tests.fuzz.any_call import messages, played
    from tests.fuzz.targets import TARGETS

    for file in files:
        data = Path(file).read_bytes()
        if name == "conversation":
            print(*messages(played(data)), sep="\n")
        print(file, TARGETS[name](data), "messages")
    return 0


def search(name: str, counts: Path, args: list[str]) -> None:
    """Searches one target in this process; does not return."""
    import atheris  # only here: it has wheels for few versions of Python

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    import structlog

    from tests.fuzz.mutate import mutated
    from tests.fuzz.seeds import seeds

    # A search would log millions of warnings.
    structlog.configure(processors=[_drop], wrapper_class=structlog.BoundLogger)
    target = TARGETS[name]
    with counts.open("r+b") as file:
        total = mmap.mmap(file.fileno(), _COUNTS.size)
    inputs = messages = 0

    def one(data: bytes) -> None:
        nonlocal inputs, messages
        inputs += 1
        messages += target(data)
        _COUNTS.pack_into(total, 0, inputs, messages)

    def mutator(data: bytes, max_bytes: int, seed: int) -> bytes:
        return mutated(data, max_bytes, seed, known, atheris.Mutate)

    known = seeds(name)
    # To merge, libFuzzer starts itself again with its first argument as the command.
    itself = f"{sys.executable} -m tests.fuzz.search {name} {counts}"
    if name in BYTES:
        atheris.Setup([itself, *args], one)
    else:
        atheris.Setup([itself, *args], one, custom_mutator=mutator)
    atheris.Fuzz()


def _drop(logger: object, name: str, event: object) -> object:
    import structlog

    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
