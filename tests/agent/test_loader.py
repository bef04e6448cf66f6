"""From an agent's name to the agent of a call, with a clear error for every mistake."""

import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from agents import Agent
from agents.realtime import RealtimeAgent, RealtimeRunConfig, RealtimeRunner

from bridge.agent import loader
from bridge.agent.live import CallFacts, LiveCall
from bridge.agent.loader import AgentNotLoaded, agent_for, load, load_function
from bridge.agent.receptionist import receptionist
from tests.support.call_control import FakeCallControl, live_call

FACTS = CallFacts("CA1", from_number="+14155550100")


@pytest.fixture
async def call() -> AsyncIterator[LiveCall]:
    async with live_call(FakeCallControl(), FACTS) as live:
        yield live


AGENTS = """
from agents.realtime import RealtimeAgent

desk = RealtimeAgent(name="desk")
kitchen = RealtimeAgent(name="kitchen")
number = 7

def made(call):
    return RealtimeAgent(name=f"for {call.facts.from_number}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory; modules that are imported from it are forgotten
    afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "bridge_agent_")):
            del sys.modules[name]
    loader._files.clear()


def write(path: Path, text: str = AGENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(name: str) -> str:
    with pytest.raises(AgentNotLoaded) as error:
        load(name)
    return str(error.value)


# --- what works ---


def test_the_bundled_agent_is_found() -> None:
    """Without configuration a caller hears the receptionist."""
    assert load("bridge.agent.receptionist:receptionist") is receptionist


@pytest.mark.parametrize("name", ["my_agents:desk", "my_shop.phone:desk"])
def test_a_module_in_the_working_directory_is_found(folder: Path, name: str) -> None:
    """An agent in the working directory answers the phone."""
    write(folder / f"{name.partition(':')[0].replace('.', '/')}.py")

    agent = load(name)

    assert isinstance(agent, RealtimeAgent) and agent.name == "desk"


@pytest.mark.parametrize("form", ["my_agent.py", "./my_agent.py", "{}/my_agent.py"])
def test_a_file_is_found(folder: Path, form: str) -> None:
    """An agent in a file needs no package around it."""
    write(folder / "my_agent.py")

    agent = load(form.format(folder) + ":desk")

    assert isinstance(agent, RealtimeAgent) and agent.name == "desk"


def test_a_file_can_import_its_neighbours(folder: Path) -> None:
    """An agent in several files works as if its file had been run."""
    write(folder / "shop" / "my_menu.py", "NAME = 'pizza'")
    write(
        folder / "shop" / "my_agent.py",
        "from agents.realtime import RealtimeAgent\n"
        "from my_menu import NAME\n"
        "desk = RealtimeAgent(name=NAME)\n",
    )

    agent = load("shop/my_agent.py:desk")

    assert isinstance(agent, RealtimeAgent) and agent.name == "pizza"


def test_an_agent_file_is_registered_as_a_module(folder: Path) -> None:
    """Dataclasses with string annotations work in an agent file as in a module."""
    write(
        folder / "my_agent.py",
        "from __future__ import annotations\n"
        "import dataclasses, typing\n"
        "from agents.realtime import RealtimeAgent\n"
        "@dataclasses.dataclass\n"
        "class Table:\n"
        "    seats: int\n"
        "assert typing.get_type_hints(Table) == {'seats': int}\n"
        "desk = RealtimeAgent(name='desk')\n",
    )

    assert isinstance(load("my_agent.py:desk"), RealtimeAgent)


async def test_an_agent_is_the_same_for_every_call(call: LiveCall) -> None:
    """An agent that is named directly serves every call unchanged."""
    assert await agent_for(receptionist, call) == (receptionist, {})


async def test_a_runner_brings_its_configuration(call: LiveCall) -> None:
    """A runner, as in the SDK's quickstart, works as it is; each call gets a copy of
    its configuration."""
    config: RealtimeRunConfig = {"async_tool_calls": False}
    runner = RealtimeRunner(receptionist, config=config)

    agent, used = await agent_for(runner, call)

    assert agent is receptionist and used == config and used is not config


async def test_a_runner_with_a_model_of_its_own_is_refused(folder: Path) -> None:
    """A model that the bridge would not use is an error at start, not ignored."""
    write(
        folder / "my_agent.py",
        "from agents.realtime import RealtimeAgent, RealtimeRunner\n"
        "from agents.realtime.openai_realtime import OpenAIRealtimeSIPModel\n"
        "run = RealtimeRunner(RealtimeAgent(name='a'), model=OpenAIRealtimeSIPModel())"
        "\n",
    )

    told = "my_agent.py:run: the runner has a model of its own"
    assert refused("my_agent.py:run").startswith(told)


def test_a_file_is_run_only_once(folder: Path) -> None:
    """The agent of a file can read what a listener of the same file counts."""
    write(folder / "my_agent.py")

    made = load_function("my_agent.py:made")

    assert made.__globals__["desk"] is load("my_agent.py:desk")
    with pytest.raises(AgentNotLoaded, match="is a int, not a function"):
        load_function("my_agent.py:number")


async def test_a_function_makes_an_agent_for_each_caller(
    folder: Path, call: LiveCall
) -> None:
    """A function can greet a caller by what it knows about their number."""
    write(folder / "my_agent.py")

    agent, _ = await agent_for(load("my_agent.py:made"), call)

    assert agent.name == "for +14155550100"


async def test_a_function_may_look_the_caller_up_first(call: LiveCall) -> None:
    """A database can be asked about the caller before the agent speaks."""

    async def made(call: LiveCall) -> RealtimeAgent[Any]:
        return RealtimeAgent(name=call.call_sid)

    assert (await agent_for(made, call))[0].name == "CA1"


async def test_a_callable_object_makes_agents_too(call: LiveCall) -> None:
    """The name may refer to a callable object instead of a function."""

    class Shop:
        async def __call__(self, call: LiveCall) -> RealtimeAgent[Any]:
            return RealtimeAgent(name="shop")

    assert (await agent_for(Shop(), call))[0].name == "shop"


# --- what does not ---


@pytest.mark.parametrize("name", ["", "desk", "my_agent:", ":desk", "my_agent.py", ":"])
def test_a_malformed_name_is_explained(name: str) -> None:
    """An operator who mistypes BRIDGE_AGENT reads its format."""
    told = f"{name!r} names no agent: write package.module:name or file.py:name"

    assert refused(name) == told


def test_a_missing_module_is_named(folder: Path) -> None:
    """A typo in the package is reported at start, not to the first caller."""
    told = (
        "my_missing.agent cannot be imported: "
        "ModuleNotFoundError: No module named 'my_missing'. It is searched in "
        f"{folder} and among the installed packages"
    )
    assert refused("my_missing.agent:desk") == told
    write(folder / "my_misting.py")
    assert refused("my_missing.agent:desk") == f"{told}; do you mean my_misting?"


def test_a_missing_file_is_named(folder: Path) -> None:
    """A file that is missing in the container is reported by the path that was
    given."""
    told = f"there is no file my_missing.py ({folder}/my_missing.py)"
    assert refused("my_missing.py:desk") == told
    (folder / "my_folder.py").mkdir()
    told = f"there is no file my_folder.py ({folder}/my_folder.py)"
    assert refused("my_folder.py:desk") == told
    write(folder / "my_agent.py")
    assert refused("my_agents.py:desk").endswith("; do you mean my_agent.py?")
    assert "do you mean" not in refused("elsewhere/my_agents.py:desk")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import my_missing", "ModuleNotFoundError: No module named 'my_missing'"),
        ("def", "SyntaxError: "),
    ],
)
@pytest.mark.parametrize(
    ("name", "failed"),
    [
        ("my_broken:desk", "my_broken cannot be imported"),
        ("my_broken.py:desk", "my_broken.py cannot be run"),
    ],
)
def test_an_error_in_user_code_is_reported(
    folder: Path, text: str, told: str, name: str, failed: str
) -> None:
    """The author of an agent reads their own error, and may fix it and try again."""
    file = write(folder / "my_broken.py", text)

    assert refused(name).startswith(f"{failed}: {told}")
    assert "bridge_agent_my_broken" not in sys.modules

    file.unlink()
    write(folder / "my_broken.py", AGENTS + "# mended, and of another length")
    assert isinstance(load(name), RealtimeAgent)


def told_of(folder: Path, text: str) -> str:
    """Why a file of this text cannot be run. {file} in it: its path."""
    file = write(folder / "my_broken.py", text)
    whole = refused("my_broken.py:desk").replace(str(file), "{file}")
    return whole.removeprefix("my_broken.py cannot be run: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero ({file}:2: 1 / 0)"),
        (
            "def f():\n    return {}['a']\n\nf()",
            "KeyError: 'a' ({file}:2: return {}['a'])",
        ),
        ("x = 1\nx = = 2", "SyntaxError: invalid syntax ({file}:2: x = = 2)"),
        (
            "import json\njson.loads('{')",
            "JSONDecodeError: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1) ({file}:2: json.loads('{'))",
        ),
        ("raise SystemExit", "SystemExit ({file}:1: raise SystemExit)"),
        (
            "import json\njson.dump_s",
            "AttributeError: module 'json' has no attribute 'dump_s' "
            "({file}:2: json.dump_s). Do you mean dumps or dump?",
        ),
    ],
)
def test_the_users_line_is_named(folder: Path, text: str, told: str) -> None:
    """Also where a library raised, or Python could not read the file."""
    assert told_of(folder, text) == told


def test_an_error_in_an_imported_file_names_that_file(folder: Path) -> None:
    """Whether it cannot be read, or fails when it runs."""
    menu = write(folder / "my_menu.py", "NAME = [\n")
    text = "from my_menu import NAME"
    told = told_of(folder, text)
    assert told.startswith("SyntaxError: ") and f" ({menu}:1: NAME = [)" in told

    write(menu, "\n\nNAME = nothing  # of another length")
    assert f"NameError: name 'nothing' is not defined ({menu}:3: " in told_of(
        folder, text
    )


def test_a_name_that_a_module_does_not_have_lists_near_ones(folder: Path) -> None:
    told = told_of(folder, "from bridge import LiveCal")

    assert told.startswith("ImportError: cannot import name 'LiveCal' from 'bridge' (")
    assert told.endswith("{file}:1: from bridge import LiveCal). Do you mean LiveCall?")
    assert told_of(folder, "from bridge import xyzzy").endswith("import xyzzy)")


def test_a_package_that_is_not_installed_is_explained(folder: Path) -> None:
    """How to install it here, and in the image; or what was probably meant."""
    told = told_of(folder, "import my_missing")
    install = f"Install the package that has my_missing (`{sys.executable[:-6]}"
    assert "({file}:1: import my_missing)" in told
    assert "(`" in told and "pip install ...`; in the image as docs/image.md" in told
    assert install.partition("(`")[0] in told

    assert "Do you mean pydantic?" in told_of(folder, "import pydantik.fields")
    told = told_of(folder, "import agents.realtimes")
    assert told.endswith("agents is installed, but has no agents.realtimes")


DEFINES = """
from typing import Any
from typing_extensions import TypedDict
from agents import function_tool
from pydantic import BaseModel

class Order(BaseModel):
    name: str
    extras: dict[str, int] = {}

class Odd:
    pass

"""


@pytest.mark.parametrize(
    ("lines", "causes"),
    [
        (
            "@function_tool\ndef book(day: str, order: dict[str, Any]): ...",
            ["its argument `order: dict[str, typing.Any]` may have any keys, but"],
        ),
        (
            "@function_tool(name_override='book')\ndef b(orders: list[Order]): ...",
            ["`orders: list[bridge_agent_my_broken.Order]` may have any keys (in "
             "Order.extras), but"],
        ),
        (
            "@function_tool\ndef book(a: dict, b: Order | None = None): ...",
            ["its argument `a: dict` may have", "; its argument `b: "],
        ),
        (
            "@function_tool\nasync def book(day: str, it: Odd): ...",
            ["`it: bridge_agent_my_broken.Odd` has a type that cannot be described"],
        ),
        (
            "@function_tool\ndef book(**more: str): ...",
            ["UserError: Variadic keyword parameter `**more`"],
        ),
        (
            "@function_tool\ndef book(day: 'Unknown'): ...",
            ["NameError: name 'Unknown' is not defined"],
        ),
        (
            "@function_tool(timeout=5)\ndef book(): ...",
            ["ValueError: FunctionTool timeout_seconds is only supported for async"],
        ),
        (
            "from agents import FunctionTool\n"
            "FunctionTool('book', '', {'type': 'object', 'properties': "
            "{'a': {'type': 'object', 'additionalProperties': True}}}, None)",
            ["UserError: additionalProperties should not be set"],
        ),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_a_tool_is_explained(
    folder: Path, lines: str, causes: list[str]
) -> None:
    """With the tool, its arguments, and what to write; the SDK names none of them."""
    told = told_of(folder, DEFINES + lines)
    line = (DEFINES + lines)[: (DEFINES + lines).rindex("book")].count("\n") + 1

    assert told.startswith("Tool book ({file}:"), told
    assert f"{{file}}:{line}" in told or f"{{file}}:{line - 1}" in told
    for cause in causes:
        assert cause in told
    if "may have any keys" in causes[0]:
        assert "Write a TypedDict or a pydantic model" in told
        assert "strict_mode=False" in told


def test_open_objects_are_allowed_without_the_strict_schema(folder: Path) -> None:
    """What the message recommends works."""
    file = "my_agent.py"
    tool = "@function_tool(strict_mode=False)\ndef book(order: dict[str, Any]): ...\n"
    write(folder / file, AGENTS + DEFINES + tool)

    assert isinstance(load(f"{file}:desk"), RealtimeAgent)


USES = """
from agents import *
from agents.realtime import RealtimeAgent, realtime_handoff

def plain(): ...
@function_tool
def book(): ...
@function_tool(name_override="book")
def other(): ...
@function_tool(name_override="book", is_enabled=False)
def off(): ...
@function_tool(is_enabled=lambda context: True)
def odd(): ...
@function_tool(needs_approval=lambda context: True)
def paid(): ...
billing = RealtimeAgent(name="billing")
"""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("tools=[plain]", "plain in `tools` is a plain function: write @function_tool"),
        ("tools=[WebSearchTool()]", "WebSearchTool in `tools` does not run in a phone"),
        ("tools=[book, other]", "2 tools or handoffs have the name book: rename"),
        ("tools=[odd]", "`is_enabled` of tool odd must take (context, agent)"),
        ("tools=[paid]", "`needs_approval` of tool paid must take (context, arguments"),
        ("handoffs=[Agent(name='text')]", "'text' in `handoffs` is a Agent: write a"),
        (
            "handoffs=[billing, realtime_handoff(billing)]",
            "2 tools or handoffs have the name transfer_to_billing: rename",
        ),
        ("instructions=lambda context: ''", "`instructions` must be a function of two"),
    ],
)
@pytest.mark.parametrize("kind", ["agent", "inner", "runner"])
async def test_what_a_session_would_refuse_is_refused_at_start(
    folder: Path, kind: str, arguments: str, told: str
) -> None:
    """Not when the first caller is on the line; also of an agent behind a handoff."""
    made = {
        "agent": "desk",
        "inner": "RealtimeAgent(name='first', handoffs=[desk])",
        "runner": "RealtimeRunner(desk)",
    }
    text = f"desk = RealtimeAgent(name='desk', {arguments})\nit = {made[kind]}\n"
    imports = "from agents.realtime import RealtimeRunner\n"
    write(folder / "my_agent.py", USES + imports + text)

    assert f"my_agent.py:it: agent 'desk': {told}" in refused("my_agent.py:it")


def test_what_a_session_takes_is_not_refused(folder: Path) -> None:
    """Hosted MCP tools, a tool that is switched off beside one of its name, handoffs in
    a circle, functions of every form."""
    text = (
        "hosted = HostedMCPTool(tool_config={'type': 'mcp', 'server_label': 'a'})\n"
        "@function_tool(is_enabled=print, needs_approval=max)\n"
        "def any(): ...\n"
        "desk = RealtimeAgent(name='desk', instructions=lambda *given: '',\n"
        "    tools=[book, off, hosted, any], handoffs=[billing])\n"
        "billing.handoffs.append(desk)\n"
    )
    write(folder / "my_agent.py", USES + text)

    assert isinstance(load("my_agent.py:desk"), RealtimeAgent)


async def test_the_agent_of_a_call_is_checked_too(call: LiveCall) -> None:
    """A function makes it: the log says what is wrong."""

    def made(call: LiveCall) -> RealtimeAgent[Any]:
        return RealtimeAgent(name="desk", tools=[print])  # type: ignore[list-item]

    with pytest.raises(AgentNotLoaded, match="agent 'desk': print in `tools` is"):
        await agent_for(made, call)


@pytest.mark.parametrize("where", ["my_agent.py", "my_agent"])
def test_an_unknown_name_lists_the_agents(folder: Path, where: str) -> None:
    """An operator who misremembers the variable reads which agents there are."""
    write(folder / "my_agent.py")

    listed = "it has desk, kitchen, made"
    told = f"{where} has no 'desc'; do you mean desk?; {listed}"
    assert refused(f"{where}:desc") == told
    assert refused(f"{where}:front") == f"{where} has no 'front'; {listed}"


def test_a_file_without_any_agent_offers_none(folder: Path) -> None:
    """The message tells a wrong file from a wrong name in the right file."""
    write(folder / "my_agent.py", "x = 1")

    assert refused("my_agent.py:desk") == "my_agent.py has no 'desk'"


def test_an_object_that_is_not_an_agent_is_refused(folder: Path) -> None:
    """A text agent in place of a realtime agent is reported before the first call."""
    write(
        folder / "my_agent.py",
        AGENTS + "\nimport agents\nwriter = agents.Agent(name='writer')\n",
    )
    told = "not a RealtimeAgent or a function that makes one"

    assert refused("my_agent.py:number") == f"my_agent.py:number is a int, {told}"
    assert refused("my_agent.py:writer") == f"my_agent.py:writer is a Agent, {told}"


@pytest.mark.parametrize("made", [None, "desk", Agent(name="writer")])
async def test_a_function_must_return_an_agent(made: Any, call: LiveCall) -> None:
    """The caller hears the apology, and the log says what the function returned."""

    async def later(call: LiveCall) -> Any:
        return made

    what = "nothing" if made is None else f"a {type(made).__name__}"
    told = f"the agent's function returned {what}"
    for source in (lambda call: made, later):
        with pytest.raises(AgentNotLoaded, match=f"^{told}$"):
            await agent_for(source, call)


async def test_an_exception_of_the_users_function_is_unchanged(call: LiveCall) -> None:
    """An error of user code is logged as it is, not as one of the bridge."""

    def broken(call: LiveCall) -> RealtimeAgent[Any]:
        raise KeyError("their own")

    with pytest.raises(KeyError, match="their own"):
        await agent_for(broken, call)


# --- the facts of a call ---


def test_unknown_facts_are_empty_texts() -> None:
    """A tool that asks for an unknown caller's number still gets a text."""
    facts = CallFacts("CA1")

    assert (facts.from_number, facts.to_number, facts.stream_sid) == ("", "", "")
    assert facts.parameters == {}


def test_the_facts_of_a_call_are_immutable() -> None:
    """A tool cannot replace the caller's number for the rest of the call."""
    with pytest.raises(FrozenInstanceError):
        FACTS.from_number = "+1900"  # type: ignore[misc]
