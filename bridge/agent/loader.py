"""The name of an agent -> the user's RealtimeAgent. Imports the user's code only."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from agents.realtime import RealtimeAgent


class AgentNotLoaded(Exception):
    """The agent cannot be had; the message says why, for the one who named it."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known of a call when it begins. Also the context that tools are given."""

    call_sid: str
    stream_sid: str = ""
    account_sid: str = ""
    from_number: str = ""
    """As Twilio gives it: E.164, `anonymous`, `client:...` or `sip:...`."""
    to_number: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """All <Parameter>s of the TwiML, From and To among them."""


AgentSource = (
    RealtimeAgent[Any]
    | Callable[[CallFacts], RealtimeAgent[Any] | Awaitable[RealtimeAgent[Any]]]
)


def load(name: str) -> AgentSource:
    """`package.module:name` or `path/to/file.py:name` -> what stands there.

    An agent, or a callable that makes one for each call. AgentNotLoaded otherwise.
    """
    where, colon, attribute = name.rpartition(":")
    if not (colon and where and attribute):
        raise AgentNotLoaded(
            f"{name!r} names no agent: it wants package.module:name or file.py:name"
        )
    module = _import_file(where) if where.endswith(".py") else _import_module(where)
    try:
        source = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = [key for key, it in vars(module).items() if is_agent(it)]
        hint = f"; it has {', '.join(sorted(near))}" if near else ""
        raise AgentNotLoaded(f"{where} has no {attribute!r}{hint}") from None
    if not (is_agent(source) or callable(source)):
        kind = type(source).__name__
        raise AgentNotLoaded(
            f"{name} is a {kind}, not a RealtimeAgent or a function that makes one"
        )
    return cast(AgentSource, source)


async def agent_for(source: AgentSource, facts: CallFacts) -> RealtimeAgent[Any]:
    """The agent of this call. AgentNotLoaded if the callable gives something else."""
    if isinstance(source, RealtimeAgent):
        return source
    made = source(facts)
    agent = await made if inspect.isawaitable(made) else made
    if not isinstance(agent, RealtimeAgent):
        raise AgentNotLoaded(f"the agent's function gave a {type(agent).__name__}")
    return agent


def is_agent(value: object) -> bool:
    return isinstance(value, RealtimeAgent)


def _import_module(name: str) -> ModuleType:
    # A user's module lies where the command is given, as with `python -m`.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise AgentNotLoaded(f"{name} cannot be imported: {_cause(error)}") from error


def _import_file(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise AgentNotLoaded(f"there is no file {path}")
    name = f"bridge_agent_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise AgentNotLoaded(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Its neighbours are importable, as if the file had been run; and it itself, for
    # dataclasses and type hints look their module up.
    sys.path.insert(0, str(file.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise AgentNotLoaded(f"{path} cannot be run: {_cause(error)}") from error
    return module


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
