"""Names in the code are the field's standard terms (docs/architecture.md)."""

import ast
import re
import tokenize
from functools import cache
from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).resolve().parent.parent

METAPHORS = {
    "house": "services",
    "crew": "user_code",
    "doors": "connection_guard",
    "visitor": "connection",
    "errand": "background_task",
    "errands": "background_tasks",
    "shelf": "store",
    "safekeeping": "checkpoint",
    "untold": "pending",
    "unconfirmed": "unacked",
    "patience": "call_limits",
    "discretion": "log_scrubber",
    "allowance": "quotas",
    "desk": "call_directory",
    "gate": "auth",
    "ear": "subscriber",
    "owe": "want_response",
    "owed": "wanted",
    "pay": "request_if_free",
}
"""Word of a name -> the standard term that takes its place."""

PHRASES = ("let_in", "let_out", "full_house", "hand_over_report", "open_house")


def words(name: str) -> list[str]:
    """`SipHouse` and `sip_house` are "sip", "house"."""
    return re.findall(r"[a-z]+", re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())


@cache
def names_in(path: Path) -> frozenset[str]:
    """The identifiers of a file, and the name of the file itself."""
    with path.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        found = {it.string for it in tokens if it.type == tokenize.NAME}
    return frozenset(found | {path.stem})


def test_no_metaphor_is_used_as_a_name() -> None:
    """An engineer looks for the standard term and finds the code under it."""
    found = [
        f"{path.relative_to(ROOT)}: {name} has {word!r}: use {METAPHORS[word]!r}"
        for folder in ("bridge", "twiml")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in sorted(names_in(path))
        for word in words(name)
        if word in METAPHORS
    ]
    found += [
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("bridge", "twiml")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in sorted(names_in(path))
        if any(phrase in name for phrase in PHRASES)
    ]
    assert not found, "\n".join(found)


def test_a_metaphor_is_noticed() -> None:
    assert words("SipHouse") == words("_sip_house") == ["sip", "house"]
    assert "house" not in words("warehouse_keys")


def test_names_in_comments_and_docstrings_exist() -> None:
    """A comment with the old name of a class or module misleads its reader."""
    dotted = re.compile(r"(?<!/)\bbridge(?:\.\w+)+")  # not a host in a URL
    folders = (ROOT / "bridge", ROOT / "twiml")
    files = [it for folder in folders for it in folder.rglob("*.py")]
    modules = {
        ".".join(it.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for it in files
    }
    names = frozenset().union(*map(names_in, files))
    found = []
    for path in files:
        for name in dotted.findall(path.read_text("utf-8")):
            known = [it for it in modules if f"{name}.".startswith(f"{it}.")]
            rest = name.removeprefix(max(known, key=len, default="")).strip(".")
            if not known or not set(filter(None, rest.split("."))) <= names:
                found.append(f"{path.relative_to(ROOT)}: {name}")
    assert not found, "\n".join(found)


def test_the_root_of_the_package_has_few_modules() -> None:
    """A new module belongs into the folder of its subject."""
    modules = {path.name for path in (ROOT / "bridge").glob("*.py")}
    assert modules == {"__init__.py", "__main__.py"}


LONGEST_FUNCTION = 50
"""Lines of a function, with its signature and its docstring."""


def long_functions(source: str) -> list[str]:
    """The functions over the limit, those inside functions and classes included."""
    return [
        f"{node.lineno}: {node.name} has {lines} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]


def test_every_function_fits_on_a_screen() -> None:
    """A function that a reader cannot see as a whole has parts that deserve a name."""
    found = [
        f"{path.relative_to(ROOT)}:{it}"
        for folder in ("bridge", "twiml")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for it in long_functions(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_a_long_function_is_noticed() -> None:
    body = "    pass\n" * (LONGEST_FUNCTION - 1)
    method = "class A:\n" + indent(f"async def long():\n{body}    pass\n", "    ")

    assert not long_functions(f"def short():\n{body}")
    assert long_functions(method) == ["2: long has 51 lines"]
