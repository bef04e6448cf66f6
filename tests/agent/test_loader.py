"""From an agent's name to the agent of a call; each slip told to whoever made it."""

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
from tests.support.line import Line, live_call

FACTS = CallFacts("CA1", from_number="+14155550100")


@pytest.fixture
async def call() -> AsyncIterator[LiveCall]:
    async with live_call(Line(), FACTS) as live:
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
    """Where the command is given; what is imported there is forgotten afterwards."""
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
    """Whoever sets nothing up hears the receptionist."""
    assert load("bridge.agent.receptionist:receptionist") is receptionist


@pytest.mark.parametrize("name", ["my_agents:desk", "my_shop.phone:desk"])
def test_a_module_beside_the_command_is_found(folder: Path, name: str) -> None:
    """An agent that lies where the command is given answers the phone."""
    write(folder / f"{name.partition(':')[0].replace('.', '/')}.py")

    agent = load(name)

    assert isinstance(agent, RealtimeAgent) and agent.name == "desk"


@pytest.mark.parametrize("form", ["my_agent.py", "./my_agent.py", "{}/my_agent.py"])
def test_a_file_is_found(folder: Path, form: str) -> None:
    """An agent in a file needs no package around it."""
    write(folder / "my_agent.py")

    agent = load(form.format(folder) + ":desk")

    assert isinstance(agent, RealtimeAgent) and agent.name == "desk"


def test_a_file_finds_what_lies_beside_it(folder: Path) -> None:
    """An agent in several files speaks as if its file had been run."""
    write(folder / "shop" / "my_menu.py", "NAME = 'pizza'")
    write(
        folder / "shop" / "my_agent.py",
        "from agents.realtime import RealtimeAgent\n"
        "from my_menu import NAME\n"
        "desk = RealtimeAgent(name=NAME)\n",
    )

    agent = load("shop/my_agent.py:desk")

    assert isinstance(agent, RealtimeAgent) and agent.name == "pizza"


def test_a_file_may_use_what_looks_its_module_up(folder: Path) -> None:
    """Dataclasses with hints as text work in a user's file as in a module."""
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
    """An agent by its name answers each caller as it is."""
    assert await agent_for(receptionist, call) == (receptionist, {})


async def test_a_runner_brings_its_configuration(call: LiveCall) -> None:
    """What the SDK's quickstart makes is answered with as it stands, each call with a
    configuration of its own."""
    config: RealtimeRunConfig = {"async_tool_calls": False}
    runner = RealtimeRunner(receptionist, config=config)

    agent, used = await agent_for(runner, call)

    assert agent is receptionist and used == config and used is not config


async def test_a_runner_with_a_model_of_its_own_is_refused(folder: Path) -> None:
    """A model that the bridge would not use is told at start, not ignored."""
    write(
        folder / "my_agent.py",
        "from agents.realtime import RealtimeAgent, RealtimeRunner\n"
        "from agents.realtime.openai_realtime import OpenAIRealtimeSIPModel\n"
        "run = RealtimeRunner(RealtimeAgent(name='a'), model=OpenAIRealtimeSIPModel())"
        "\n",
    )

    assert refused("my_agent.py:run").startswith("the runner has a model of its own")


def test_an_agent_and_a_function_of_one_file_share_it(folder: Path) -> None:
    """What a listener counts, the agent of the same file can read."""
    write(folder / "my_agent.py")

    made = load_function("my_agent.py:made")

    assert made.__globals__["desk"] is load("my_agent.py:desk")
    with pytest.raises(AgentNotLoaded, match="is a int, not a function"):
        load_function("my_agent.py:number")


async def test_a_function_makes_an_agent_for_each_caller(
    folder: Path, call: LiveCall
) -> None:
    """A caller can be greeted by what their number tells."""
    write(folder / "my_agent.py")

    agent, _ = await agent_for(load("my_agent.py:made"), call)

    assert agent.name == "for +14155550100"


async def test_a_function_may_look_the_caller_up_first(call: LiveCall) -> None:
    """A database can be asked who calls before the agent says a word."""

    async def made(call: LiveCall) -> RealtimeAgent[Any]:
        return RealtimeAgent(name=call.call_sid)

    assert (await agent_for(made, call))[0].name == "CA1"


async def test_an_object_that_can_be_called_makes_agents_too(call: LiveCall) -> None:
    """Whoever keeps a class behind their agents may name an object of it."""

    class Shop:
        async def __call__(self, call: LiveCall) -> RealtimeAgent[Any]:
            return RealtimeAgent(name="shop")

    assert (await agent_for(Shop(), call))[0].name == "shop"


# --- what does not ---


@pytest.mark.parametrize("name", ["", "desk", "my_agent:", ":desk", "my_agent.py", ":"])
def test_a_name_without_two_halves_is_explained(name: str) -> None:
    """Whoever mistypes BRIDGE_AGENT reads how it is written."""
    told = f"{name!r} names no agent: write package.module:name or file.py:name"

    assert refused(name) == told


def test_a_missing_module_is_named(folder: Path) -> None:
    """A typo in the package is found at start, not by the first caller."""
    assert refused("my_missing.agent:desk") == (
        "my_missing.agent cannot be imported: "
        "ModuleNotFoundError: No module named 'my_missing'"
    )


def test_a_missing_file_is_named(folder: Path) -> None:
    """A file that is not in the container is told by the path that was given."""
    assert refused("my_missing.py:desk") == "there is no file my_missing.py"
    (folder / "my_folder.py").mkdir()
    assert refused("my_folder.py:desk") == "there is no file my_folder.py"


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
def test_an_error_in_the_users_code_is_told(
    folder: Path, text: str, told: str, name: str, failed: str
) -> None:
    """The author of an agent reads their own mistake, and may mend it and try again."""
    file = write(folder / "my_broken.py", text)

    assert refused(name).startswith(f"{failed}: {told}")
    assert "bridge_agent_my_broken" not in sys.modules

    file.unlink()
    write(folder / "my_broken.py", AGENTS + "# mended, and of another length")
    assert isinstance(load(name), RealtimeAgent)


@pytest.mark.parametrize("where", ["my_agent.py", "my_agent"])
def test_a_wrong_name_is_answered_with_the_right_ones(folder: Path, where: str) -> None:
    """Whoever misremembers the variable reads which agents there are."""
    write(folder / "my_agent.py")

    assert (
        refused(f"{where}:desc") == f"{where} has no 'desc'; it has desk, kitchen, made"
    )


def test_a_file_without_any_agent_offers_none(folder: Path) -> None:
    """A wrong file is told from a wrong name in the right one."""
    write(folder / "my_agent.py", "x = 1")

    assert refused("my_agent.py:desk") == "my_agent.py has no 'desk'"


def test_what_is_no_agent_is_named_by_its_kind(folder: Path) -> None:
    """A text agent in place of a realtime one is found before anybody calls."""
    write(
        folder / "my_agent.py",
        AGENTS + "\nimport agents\nwriter = agents.Agent(name='writer')\n",
    )
    told = "not a RealtimeAgent or a function that makes one"

    assert refused("my_agent.py:number") == f"my_agent.py:number is a int, {told}"
    assert refused("my_agent.py:writer") == f"my_agent.py:writer is a Agent, {told}"


@pytest.mark.parametrize("made", [None, "desk", Agent(name="writer")])
async def test_a_function_that_makes_no_agent_is_told(
    made: Any, call: LiveCall
) -> None:
    """The caller is told sorry, and the log says what the function gave."""

    async def later(call: LiveCall) -> Any:
        return made

    told = f"the agent's function returned a {type(made).__name__}"
    for source in (lambda call: made, later):
        with pytest.raises(AgentNotLoaded, match=f"^{told}$"):
            await agent_for(source, call)


async def test_what_the_users_function_raises_is_theirs(call: LiveCall) -> None:
    """An error in the user's code is logged as it is, not dressed up as ours."""

    def broken(call: LiveCall) -> RealtimeAgent[Any]:
        raise KeyError("their own")

    with pytest.raises(KeyError, match="their own"):
        await agent_for(broken, call)


# --- the facts of a call ---


def test_what_is_not_known_of_a_call_is_empty() -> None:
    """A tool that asks for the number of an unknown caller gets a text all the same."""
    facts = CallFacts("CA1")

    assert (facts.from_number, facts.to_number, facts.stream_sid) == ("", "", "")
    assert facts.parameters == {}


def test_the_facts_of_a_call_stay_as_they_are() -> None:
    """No tool can make the rest of the call believe in another caller."""
    with pytest.raises(FrozenInstanceError):
        FACTS.from_number = "+1900"  # type: ignore[misc]
