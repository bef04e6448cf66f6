"""What `from bridge import ...` gives: all that a user's agent file needs."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import FunctionTool

import bridge

ROOT = Path(__file__).resolve().parent.parent


def named_for_types() -> set[str]:
    """The names that a type checker and an editor see (`if TYPE_CHECKING:`)."""
    tree = ast.parse((ROOT / "bridge" / "__init__.py").read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_a_type_checker_sees_what_is_exported() -> None:
    """Otherwise an agent file that runs has type errors, or the other way round."""
    assert named_for_types() == set(bridge.__all__)
    assert set(bridge.__all__) <= set(dir(bridge))


@pytest.mark.parametrize("name", bridge.__all__)
def test_each_exported_name_is_there_and_documented(name: str) -> None:
    value = getattr(bridge, name)
    for one in value if isinstance(value, list) else [value]:
        # The SDK makes a tool of a function; the docstring is its description.
        is_tool = isinstance(one, FunctionTool)
        assert one.description if is_tool else inspect.getdoc(one), "has no docstring"
    agent_guide = (ROOT / "docs" / "agent.md").read_text("utf-8")
    assert re.search(rf"\b{name}\b", agent_guide), "is not in docs/agent.md"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LiveCal'"):
        bridge.LiveCal  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'House'"):
        exec("from bridge import House")


@pytest.mark.parametrize("module", ["bridge", "bridge.sim.load"])
def test_the_sdk_is_not_imported_before_it_is_needed(module: str) -> None:
    """The SDK takes seconds to import, and a load generator does not need it."""
    code = f"import sys, {module}; print('agents' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout == "False\n"


def shown_imports() -> Iterator[tuple[str, str]]:
    """Every import of the bridge in what a user copies: (file, module)."""
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for path in [*documents, *(ROOT / "examples").rglob("*.py")]:
        for line in path.read_text("utf-8").splitlines():
            if found := re.match(r"[\s`>]*(?:from|import) (bridge[\w.]*)", line):
                yield str(path.relative_to(ROOT)), found[1]


def test_documents_and_examples_import_from_bridge_alone() -> None:
    """Deeper modules move; a user's agent file must not break when they do."""
    found = list(shown_imports())
    assert len(found) > 10
    assert [it for it in found if it[1] != "bridge"] == []
