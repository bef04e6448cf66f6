"""Imports the user's agent by its name, and gets the agent of each call from it.

This module reads no settings: the caller supplies the name.
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

from bridge.agent import load_errors, tool_definitions, user_code
from bridge.agent.live import LiveCall


class AgentNotLoaded(Exception):
    """The agent cannot be loaded. The message says why, for the user who named it."""


Made = RealtimeAgent[Any] | RealtimeRunner
"""An agent, or the SDK's runner, which has an agent and its run configuration."""

_files: dict[Path, ModuleType] = {}
"""Agent files that were run already."""

AgentSource = Made | Callable[[LiveCall], Made | Awaitable[Made]]
"""What an agent's name may refer to; a callable makes the agent for each call."""


def load(name: str) -> AgentSource:
    """Imports `package.module:name` or `path/to/file.py:name`.

    Returns an agent, a runner, or a callable that makes one for each call.
    AgentNotLoaded: the name cannot be imported, or refers to something else.
    """
    source = attribute_of(name)
    if isinstance(source, RealtimeAgent | RealtimeRunner):
        try:
            _agent_and_config(source)  # not at the first call
        except AgentNotLoaded as error:
            raise AgentNotLoaded(f"{name}: {error}") from None
    elif not callable(source):
        kind = type(source).__name__
        raise AgentNotLoaded(
            f"{name} is a {kind}, not a RealtimeAgent or a function that makes one"
        )
    return cast(AgentSource, source)


def load_function(name: str) -> Callable[..., Any]:
    """As `load`, for any callable of the user. AgentNotLoaded: it is not callable."""
    function = attribute_of(name)
    if not callable(function):
        raise AgentNotLoaded(f"{name} is a {type(function).__name__}, not a function")
    return cast(Callable[..., Any], function)


def attribute_of(name: str) -> object:
    """Imports the object of that name. AgentNotLoaded: the import is not possible."""
    where, colon, attribute = name.rpartition(":")
    if not (colon and where and attribute):
        raise AgentNotLoaded(
            f"{name!r} names no agent: write package.module:name or file.py:name"
        )
    module = _import_file(where) if where.endswith(".py") else _import_module(where)
    try:
        source = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise AgentNotLoaded(_no_attribute(where, module, attribute)) from None
    return cast(object, source)


async def agent_for(
    source: AgentSource, live: LiveCall
) -> tuple[RealtimeAgent[Any], RealtimeRunConfig]:
    """The agent of this call and a copy of its run configuration.

    AgentNotLoaded: the callable returned something else. TimeoutError: it took longer
    than user_code.SECONDS.
    """
    if isinstance(source, RealtimeAgent | RealtimeRunner):
        return _agent_and_config(source)
    # The callable may look the caller up first; other calls must not wait for that.
    name, seconds = f"{live.call_sid} agent", user_code.SECONDS
    return _agent_and_config(
        await user_code.call(source, live, name=name, seconds=seconds)
    )


def first_agent(made: Made) -> RealtimeAgent[Any]:
    """The agent itself, or the agent that a runner starts with."""
    return _agent_and_config(made)[0]


def _agent_and_config(made: object) -> tuple[RealtimeAgent[Any], RealtimeRunConfig]:
    if isinstance(made, RealtimeAgent):
        if mistakes := tool_definitions.mistakes_of(made):
            raise AgentNotLoaded("; ".join(mistakes))
        return made, {}
    if not isinstance(made, RealtimeRunner):
        what = "nothing" if made is None else f"a {type(made).__name__}"
        raise AgentNotLoaded(f"the agent's function returned {what}")
    if type(made._model) is not OpenAIRealtimeWebSocketModel:
        raise AgentNotLoaded(
            "the runner has a model of its own, but only the bridge's model class "
            "carries audio: set the model with BRIDGE_MODEL_URL and BRIDGE_MODEL"
        )
    return _agent_and_config(made._starting_agent)[0], {**(made._config or {})}


def _no_attribute(where: str, module: ModuleType, attribute: str) -> str:
    usable = [key for key, it in vars(module).items() if _is_loadable(it, module)]
    near = load_errors.do_you_mean(attribute, usable or vars(module))
    listed = ", ".join(sorted(usable)[: load_errors.MAX_LISTED])
    hints = [near, f"it has {listed}" if listed else ""]
    return "; ".join([f"{where} has no {attribute!r}", *filter(None, hints)])


def _is_loadable(value: object, module: ModuleType) -> bool:
    """Whether `value` is an agent, a runner, or a public function of this module."""
    own = getattr(value, "__module__", None) == module.__name__
    name = getattr(value, "__name__", "_")
    function = callable(value) and own and not name.startswith("_")
    return is_agent(value) or isinstance(value, RealtimeRunner) or function


def is_agent(value: object) -> bool:
    return isinstance(value, RealtimeAgent)


def _import_module(name: str) -> ModuleType:
    # A user's module is found in the working directory, as with `python -m`.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        why = load_errors.why_not_imported(error, name)
        raise AgentNotLoaded(f"{name} cannot be imported: {why}") from error


def _import_file(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if file in _files:
        return _files[file]  # run once: agent and functions share the file's state
    if not file.is_file():
        near = load_errors.do_you_mean(file.name, _files_beside(file))
        text = f"there is no file {path} ({file})"
        raise AgentNotLoaded(f"{text}; {near}" if near else text)
    name = f"bridge_agent_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise AgentNotLoaded(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # The file's folder is importable, as if the file had been run. The module itself
    # is registered because dataclasses and type hints look up their module by name.
    sys.path.insert(0, str(file.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        why = load_errors.why_not_imported(error)
        raise AgentNotLoaded(f"{path} cannot be run: {why}") from error
    _files[file] = module
    return module


def _files_beside(file: Path) -> list[str]:
    folder = file.parent
    return [it.name for it in folder.glob("*.py")] if folder.is_dir() else []
