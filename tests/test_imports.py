"""The import rules of the project (docs/architecture.md), checked in the source."""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Modules that only compute: no clock, randomness, operating system or network.
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
PURE_FOLDERS = ("core", "audio", "privacy")
ORDER = (
    *("cli", "http", "call", "app", "records", "picture", "fleet", "telemetry"),
    *("model", "agent", "websocket", "privacy", "core", "audio"),
)
"""The folders of bridge/ from top to bottom. A folder imports only from folders below
it. `sim` is outside this order."""

# Builtins that do input or output; a module needs no import for them.
IMPURE_NAMES = frozenset({"open", "print", "input", "breakpoint"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module with its full dotted name; `from a import b` is `a.b`."""

    name: str
    line: int

    def is_in(self, package: str) -> bool:
        return self.name == package or self.name.startswith(package + ".")

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


@cache
def nodes(source: str) -> list[ast.AST]:
    """The syntax tree; each test reads the same files."""
    return list(ast.walk(ast.parse(source)))


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """Frees the trees behind the tests of this file: with their 700,000 objects, each
    garbage collection of a later test would take a second."""
    yield
    nodes.cache_clear()


def imports(source: str, path: Path) -> Iterator[Import]:
    """Every import, wherever it stands: also in functions and under TYPE_CHECKING."""
    package = path.parent.parts
    for node in nodes(source):
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
    """The module that `__import__("x")` or `importlib.import_module("x")` imports."""
    if dotted(call.func) not in (
        "__import__",
        "import_module",
        "importlib.import_module",
    ):
        return None
    first = call.args[0] if call.args else None
    return str(first.value) if isinstance(first, ast.Constant) else "(computed)"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of such an expression. Of another one, the part after it: `.b` of
    `f().b`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def impure_names(source: str) -> Iterator[Import]:
    """Impure names that need no import: open(), print(), and numpy's `random`."""
    for node in nodes(source):
        if isinstance(node, ast.Call) and dotted(node.func) in IMPURE_NAMES:
            yield Import(dotted(node.func), node.lineno)
        elif isinstance(node, ast.Attribute) and node.attr == "random":
            yield Import(dotted(node), node.lineno)


def pure_breaks(found: Import) -> bool:
    # numpy is pure, numpy.random is not.
    return not any(found.is_in(f"bridge.{it}") for it in PURE_FOLDERS) and (
        (found.top not in PURE and not found.is_in("urllib.parse"))
        or found.is_in("numpy.random")
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
        "bridge/core, audio and privacy import pure modules, msgspec, numpy",
        lambda path: path.parts[1] in PURE_FOLDERS,
        pure_breaks,
    ),
    Rule(
        "bridge/sim imports nothing of the bridge, openai or agents",
        lambda path: path.is_relative_to("bridge/sim"),
        sim_breaks,
    ),
    Rule(
        "bridge/call knows no aiohttp, redis or websockets",
        lambda path: path.is_relative_to("bridge/call"),
        call_breaks,
    ),
    Rule(
        "redis appears in bridge/fleet alone",
        lambda path: not path.is_relative_to("bridge/fleet"),
        redis_breaks,
    ),
    Rule(
        "nothing imports bridge.cli",
        lambda path: (
            not path.is_relative_to("bridge/cli") and path != Path("bridge/__main__.py")
        ),
        cli_breaks,
    ),
]


def broken(rule: Rule, path: Path, source: str) -> list[str]:
    if not rule.applies(path):
        return []
    found = [each for each in imports(source, path) if rule.breaks(each)]
    if rule.breaks is pure_breaks:
        found += impure_names(source)
    return [f"{path}:{each.line}: {each.name}" for each in found]


def sources() -> list[Path]:
    folders = ("bridge", "twiml")
    return [p.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("*.py")]


def test_the_source_obeys_the_rules() -> None:
    """The rules make it possible to replay calls, to fake the outside world and to
    replace a part."""
    found = []
    for rule in RULES:
        guarded = [path for path in sources() if rule.applies(path)]
        assert guarded, f"the rule guards no file: was it moved? {rule.what}"
        for path in guarded:
            text = (ROOT / path).read_text("utf-8")
            found += [f"{rule.what}: {it}" for it in broken(rule, path, text)]

    assert not found, "\n".join(found)


CORE, SIM, CALL, REDIS, CLI = RULES


def folder(name: str) -> str:
    """The folder of bridge/ that contains a module: "core" for
    "bridge.core.history"."""
    return name.split(".")[1] if name.count(".") else ""


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def upward(path: Path, source: str) -> list[str]:
    """Imports from a folder above the folder of this file."""
    here = folder(module_name(path))
    if here not in ORDER:
        return []
    return [
        f"{path}:{each.line}: {each.name}"
        for each in imports(source, path)
        if each.top == "bridge" and folder(each.name) in ORDER
        if ORDER.index(folder(each.name)) < ORDER.index(here)
    ]


def test_each_folder_imports_from_those_below_it_only() -> None:
    """A change in one folder can break only folders above it."""
    found = [it for path in sources() for it in upward(path, (ROOT / path).read_text())]

    assert not found, "\n".join(found)
    assert {path.parts[1] for path in sources() if len(path.parts) > 2} == {
        *ORDER,
        "sim",
    }


def test_an_upward_import_is_noticed() -> None:
    assert upward(Path("bridge/core/a.py"), "from bridge.agent.live import LiveCall")
    assert upward(Path("bridge/app/a.py"), "def f():\n    import bridge.http.server")
    assert not upward(Path("bridge/http/a.py"), "from bridge.core import ProtocolError")


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other, directly or through other modules."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        found: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += graph.get(name, ())
        reached[start] = found
    return sorted(name for name in graph if name in reached[name])


def import_graph() -> dict[str, set[str]]:
    """The imports between the modules of bridge/, also in functions and for types
    only."""
    files = {module_name(path): path for path in sources()}
    graph = {}
    for name, path in files.items():
        found = {it.name for it in imports((ROOT / path).read_text("utf-8"), path)}
        modules = {it if it in files else it.rpartition(".")[0] for it in found}
        graph[name] = (modules & files.keys()) - {name}
    return graph


def test_no_modules_import_each_other() -> None:
    """A module can be read and tested with the modules that it imports and no
    others."""
    assert circles(import_graph()) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def class_names(source: str) -> list[str]:
    """The names of all classes, those inside functions and classes included."""
    return [node.name for node in nodes(source) if isinstance(node, ast.ClassDef)]


def test_each_class_name_is_used_by_one_class_only() -> None:
    """A class name in a log, a traceback or a search leads to one class."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sources():
        for name in class_names((ROOT / path).read_text("utf-8")):
            found[name].append(str(path))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}

    assert twice == {}
    assert class_names("class A:\n    class B: pass\ndef f():\n    class A: pass") == [
        *("A", "B", "A"),
    ]


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
        (CORE, "bridge/core/a.py", "from bridge.telemetry import log"),
        (CORE, "bridge/core/a.py", "from bridge import call"),
        (CORE, "bridge/core/a.py", "from ..call import Call"),
        (CORE, "bridge/core/a.py", "from .. import call"),
        (CORE, "bridge/core/deep/a.py", "from ...call import Call"),
        (CORE, "bridge/core/a.py", "__import__('socket')"),
        (CORE, "bridge/core/a.py", "import_module(name)"),
        (CORE, "bridge/core/a.py", "open('/etc/hosts')"),
        (CORE, "bridge/core/a.py", "print(1)"),
        (SIM, "bridge/sim/a.py", "import bridge"),
        (SIM, "bridge/sim/a.py", "import bridge.audio.g711"),
        (SIM, "bridge/sim/a.py", "from bridge.core import audio"),
        (SIM, "bridge/sim/a.py", "from bridge import core"),
        (SIM, "bridge/sim/a.py", "from ..core import audio"),
        (SIM, "bridge/sim/a.py", "import bridge.simulation"),
        (SIM, "bridge/sim/a.py", "from openai.types import realtime"),
        (SIM, "bridge/sim/a.py", "def f():\n    import agents"),
        (CALL, "bridge/call/call.py", "import aiohttp"),
        (CALL, "bridge/call/call.py", "from websockets.asyncio.client import connect"),
        (CALL, "bridge/call/call.py", "from redis import asyncio"),
        (REDIS, "bridge/app/services.py", "import redis"),
        (REDIS, "bridge/http/server.py", "from redis.asyncio import Redis"),
        (CLI, "bridge/http/server.py", "from bridge.cli.commands import app"),
        (CLI, "bridge/http/server.py", "from bridge import cli"),
        (CLI, "bridge/sim/load.py", "from .. import cli"),
    ],
)
def test_a_broken_rule_is_noticed(rule: Rule, path: str, source: str) -> None:
    """A developer who breaks a rule, in whatever spelling, gets a failure."""
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
        (CORE, "bridge/core/a.py", "from bridge.audio import g711"),
        (CORE, "bridge/privacy/a.py", "from bridge.core.history import HistoryItem"),
        (CORE, "bridge/core/a.py", "from . import ProtocolError"),
        (CORE, "bridge/core/a.py", "from .playback import Playback"),
        (CORE, "bridge/core/__init__.py", "from .playback import Playback"),
        (CORE, "bridge/core/a.py", "for input in items: use(input)"),
        (SIM, "bridge/sim/a.py", "import asyncio, websockets, aiohttp"),
        (SIM, "bridge/sim/a.py", "from bridge.sim.voice import speak"),
        (SIM, "bridge/sim/a.py", "from .voice import speak"),
        (
            CALL,
            "bridge/call/call.py",
            "import asyncio\nfrom bridge.core import playback",
        ),
        (CALL, "bridge/http/server.py", "import aiohttp"),
        (REDIS, "bridge/fleet/redis.py", "import redis"),
        (REDIS, "bridge/fleet/__init__.py", "from bridge.fleet.redis import Redis"),
        (CLI, "bridge/cli/commands.py", "from bridge.http.server import serve"),
        (CLI, "bridge/http/server.py", "import bridge.client"),
    ],
)
def test_allowed_imports_pass(rule: Rule, path: str, source: str) -> None:
    """The rules do not forbid more than they must."""
    assert not broken(rule, Path(path), source)
