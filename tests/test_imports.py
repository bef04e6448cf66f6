"""The import rules of the house (docs/architecture.md), read from the source itself."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What computes and nothing else: no clock, no chance, no machine, no network.
PURE = frozenset(
    {
        "__future__",
        "abc",
        "array",
        "audioop",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "msgspec",
        "numbers",
        "numpy",
        "operator",
        "re",
        "statistics",
        "string",
        "struct",
        "textwrap",
        "types",
        "typing",
        "typing_extensions",
        "unicodedata",
    }
)
# What reaches out of a module whose every import is pure.
IMPURE_NAMES = frozenset({"open", "print", "input", "breakpoint"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module by its full dotted name; `from a import b` is `a.b`."""

    name: str
    line: int

    def is_in(self, package: str) -> bool:
        return self.name == package or self.name.startswith(package + ".")

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


def imports(source: str, path: Path) -> Iterator[Import]:
    """Every import, wherever it stands: in functions and under TYPE_CHECKING, too."""
    package = path.parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and (name := _dynamic(node)) is not None:
            yield Import(name, node.lineno)


def _dynamic(call: ast.Call) -> str | None:
    """What `__import__("x")` and `importlib.import_module("x")` import."""
    if ast.unparse(call.func) not in (
        "__import__",
        "import_module",
        "importlib.import_module",
    ):
        return None
    first = call.args[0] if call.args else None
    return str(first.value) if isinstance(first, ast.Constant) else "(computed)"


def impure_names(source: str) -> Iterator[Import]:
    """Names that need no import: open(), print(), and numpy's dice."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_NAMES:
            yield Import(ast.unparse(node.func), node.lineno)
        elif isinstance(node, ast.Attribute) and node.attr == "random":
            yield Import(ast.unparse(node), node.lineno)


def core_breaks(found: Import) -> bool:
    # numpy.random is chance even though numpy is not.
    return not found.is_in("bridge.core") and (
        found.top not in PURE or found.is_in("numpy.random")
    )


def sim_breaks(found: Import) -> bool:
    if found.is_in("bridge"):
        return not found.is_in("bridge.sim")
    return found.top in ("openai", "agents", "twiml")


def call_breaks(found: Import) -> bool:
    return found.top in ("aiohttp", "redis", "websockets")


def redis_breaks(found: Import) -> bool:
    return found.top == "redis"


def cli_breaks(found: Import) -> bool:
    return found.is_in("bridge.cli")


@dataclass(frozen=True, slots=True)
class Rule:
    what: str
    applies: Callable[[Path], bool]
    breaks: Callable[[Import], bool]


RULES = [
    Rule(
        "bridge/core imports pure modules, msgspec, numpy and itself",
        lambda path: path.is_relative_to("bridge/core"),
        core_breaks,
    ),
    Rule(
        "bridge/sim imports nothing of the bridge, openai or agents",
        lambda path: path.is_relative_to("bridge/sim"),
        sim_breaks,
    ),
    Rule(
        "bridge/call.py knows no aiohttp, redis or websockets",
        lambda path: path == Path("bridge/call.py"),
        call_breaks,
    ),
    Rule(
        "redis appears in bridge/fleet/redis.py alone",
        lambda path: path != Path("bridge/fleet/redis.py"),
        redis_breaks,
    ),
    Rule(
        "nothing imports bridge.cli",
        lambda path: path not in (Path("bridge/cli.py"), Path("bridge/__main__.py")),
        cli_breaks,
    ),
]


def broken(rule: Rule, path: Path, source: str) -> list[str]:
    if not rule.applies(path):
        return []
    found = [each for each in imports(source, path) if rule.breaks(each)]
    if rule.breaks is core_breaks:
        found += impure_names(source)
    return [f"{path}:{each.line}: {each.name}" for each in found]


def sources() -> list[Path]:
    folders = ("bridge", "twiml")
    return [p.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("*.py")]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.what)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    """A call can be replayed, faked and carried elsewhere, as the parts are apart."""
    guarded = [path for path in sources() if rule.applies(path)]
    found = [
        line
        for path in guarded
        for line in broken(rule, path, (ROOT / path).read_text("utf-8"))
    ]

    assert guarded, "the rule guards no file: was it moved?"
    assert not found, "\n".join([rule.what, *found])


CORE, SIM, CALL, REDIS, CLI = RULES


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (CORE, "bridge/core/a.py", "import asyncio"),
        (CORE, "bridge/core/a.py", "import os.path"),
        (CORE, "bridge/core/a.py", "import math, time"),
        (CORE, "bridge/core/a.py", "from time import monotonic"),
        (CORE, "bridge/core/a.py", "from datetime import datetime"),
        (CORE, "bridge/core/a.py", "import numpy.random"),
        (CORE, "bridge/core/a.py", "from numpy import random"),
        (CORE, "bridge/core/a.py", "import numpy as np\nnp.random.default_rng()"),
        (CORE, "bridge/core/a.py", "def f():\n    import random"),
        (CORE, "bridge/core/a.py", "if TYPE_CHECKING:\n    from agents import Agent"),
        (CORE, "bridge/core/a.py", "try:\n    import structlog\nexcept E: pass"),
        (CORE, "bridge/core/a.py", "from bridge.watch import log"),
        (CORE, "bridge/core/a.py", "from bridge import call"),
        (CORE, "bridge/core/a.py", "from ..call import Call"),
        (CORE, "bridge/core/a.py", "from .. import call"),
        (CORE, "bridge/core/deep/a.py", "from ...call import Call"),
        (CORE, "bridge/core/a.py", "__import__('socket')"),
        (CORE, "bridge/core/a.py", "import_module(name)"),
        (CORE, "bridge/core/a.py", "open('/etc/hosts')"),
        (CORE, "bridge/core/a.py", "print(1)"),
        (SIM, "bridge/sim/a.py", "import bridge"),
        (SIM, "bridge/sim/a.py", "import bridge.core.audio"),
        (SIM, "bridge/sim/a.py", "from bridge.core import audio"),
        (SIM, "bridge/sim/a.py", "from bridge import core"),
        (SIM, "bridge/sim/a.py", "from ..core import audio"),
        (SIM, "bridge/sim/a.py", "import bridge.simulation"),
        (SIM, "bridge/sim/a.py", "from openai.types import realtime"),
        (SIM, "bridge/sim/a.py", "def f():\n    import agents"),
        (CALL, "bridge/call.py", "import aiohttp"),
        (CALL, "bridge/call.py", "from websockets.asyncio.client import connect"),
        (CALL, "bridge/call.py", "from redis import asyncio"),
        (REDIS, "bridge/fleet/memory.py", "import redis"),
        (REDIS, "bridge/server.py", "from redis.asyncio import Redis"),
        (CLI, "bridge/server.py", "from bridge.cli import app"),
        (CLI, "bridge/server.py", "from bridge import cli"),
        (CLI, "bridge/sim/load.py", "from .. import cli"),
    ],
)
def test_a_broken_rule_is_noticed(rule: Rule, path: str, source: str) -> None:
    """Whoever breaks a rule by oversight, in whatever spelling, hears of it."""
    assert broken(rule, Path(path), source)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (CORE, "bridge/core/a.py", "from __future__ import annotations"),
        (
            CORE,
            "bridge/core/a.py",
            "import audioop\nimport numpy as np\nimport msgspec",
        ),
        (CORE, "bridge/core/a.py", "from collections.abc import Iterator"),
        (CORE, "bridge/core/a.py", "from bridge.core import ProtocolError"),
        (CORE, "bridge/core/a.py", "from . import ProtocolError"),
        (CORE, "bridge/core/a.py", "from .playback import Playback"),
        (CORE, "bridge/core/__init__.py", "from .playback import Playback"),
        (CORE, "bridge/core/a.py", "for input in items: use(input)"),
        (SIM, "bridge/sim/a.py", "import asyncio, websockets, aiohttp"),
        (SIM, "bridge/sim/a.py", "from bridge.sim.voice import speak"),
        (SIM, "bridge/sim/a.py", "from .voice import speak"),
        (CALL, "bridge/call.py", "import asyncio\nfrom bridge.core import playback"),
        (CALL, "bridge/server.py", "import aiohttp"),
        (REDIS, "bridge/fleet/redis.py", "import redis"),
        (REDIS, "bridge/fleet/__init__.py", "from bridge.fleet.redis import Redis"),
        (CLI, "bridge/cli.py", "from bridge.server import serve"),
        (CLI, "bridge/server.py", "import bridge.client"),
    ],
)
def test_what_is_allowed_passes(rule: Rule, path: str, source: str) -> None:
    """The rules are in nobody's way."""
    assert not broken(rule, Path(path), source)
