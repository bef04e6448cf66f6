"""The name of an agent -> what the user's code has there, and the agent of one call.

Imports the user's code only.
"""

import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from agents.realtime import RealtimeAgent, RealtimeRunConfig, RealtimeRunner
from agents.realtime.openai_realtime import OpenAIRealtimeWebSocketModel

from bridge.agent import user_code
from bridge.agent.live import LiveCall


class AgentNotLoaded(Exception):
    """The agent cannot be had; the message says why, for the one who named it."""


Made = RealtimeAgent[Any] | RealtimeRunner
"""An agent, or the SDK's runner: an agent with its run configuration."""

_files: dict[Path, ModuleType] = {}

AgentSource = Made | Callable[[LiveCall], Made | Awaitable[Made]]


def load(name: str) -> AgentSource:
    """`package.module:name` or `path/to/file.py:name` -> what stands there.

    An agent, a runner, or a callable that makes one for each call. AgentNotLoaded
    otherwise.
    """
    source = attribute_of(name)
    if isinstance(source, RealtimeRunner):
        _parts(source)  # what cannot work is told at start
    elif not (is_agent(source) or callable(source)):
        kind = type(source).__name__
        raise AgentNotLoaded(
            f"{name} is a {kind}, not a RealtimeAgent or a function that makes one"
        )
    return cast(AgentSource, source)


def load_function(name: str) -> Callable[..., Any]:
    """As `load`, for any function of the user's. AgentNotLoaded if it is none."""
    function = attribute_of(name)
    if not callable(function):
        raise AgentNotLoaded(f"{name} is a {type(function).__name__}, not a function")
    return cast(Callable[..., Any], function)


def attribute_of(name: str) -> object:
    """What stands under that name; AgentNotLoaded says why it cannot be had."""
    where, colon, attribute = name.rpartition(":")
    if not (colon and where and attribute):
        raise AgentNotLoaded(
            f"{name!r} names no agent: it wants package.module:name or file.py:name"
        )
    module = _import_file(where) if where.endswith(".py") else _import_module(where)
    try:
        source = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        near = [key for key, it in vars(module).items() if _is_offered(it, module)]
        hint = f"; it has {', '.join(sorted(near))}" if near else ""
        raise AgentNotLoaded(f"{where} has no {attribute!r}{hint}") from None
    return cast(object, source)


async def agent_for(
    source: AgentSource, live: LiveCall
) -> tuple[RealtimeAgent[Any], RealtimeRunConfig]:
    """The agent of this call, and how it is to be run (a copy).

    AgentNotLoaded if the callable gives something else.
    """
    if isinstance(source, RealtimeAgent | RealtimeRunner):
        return _parts(source)
    # It may look the caller up before it answers, and other calls must not wait.
    return _parts(await user_code.ask(source, live, f"{live.call_sid} agent"))


def first_agent(made: Made) -> RealtimeAgent[Any]:
    """The agent that a runner begins with."""
    return _parts(made)[0]


def _parts(made: object) -> tuple[RealtimeAgent[Any], RealtimeRunConfig]:
    if isinstance(made, RealtimeAgent):
        return made, {}
    if not isinstance(made, RealtimeRunner):
        raise AgentNotLoaded(f"the agent's function gave a {type(made).__name__}")
    if type(made._model) is not OpenAIRealtimeWebSocketModel:
        raise AgentNotLoaded(
            "the runner has a model of its own, but the audio path is the bridge's: "
            "name the model with BRIDGE_MODEL_URL and BRIDGE_MODEL"
        )
    return made._starting_agent, {**(made._config or {})}


def _is_offered(value: object, module: ModuleType) -> bool:
    """An agent, a runner, or a function of this module's own."""
    own = getattr(value, "__module__", None) == module.__name__
    name = getattr(value, "__name__", "_")
    function = callable(value) and own and not name.startswith("_")
    return is_agent(value) or isinstance(value, RealtimeRunner) or function


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
    if file in _files:
        return _files[file]  # an agent and a function of it share what stands there
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
    _files[file] = module
    return module


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
