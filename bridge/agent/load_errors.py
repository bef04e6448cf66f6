"""Why the user's file or module cannot be imported: the error, its line, what to do.

For the author of the agent, at start and in `bridge check`. Runs no user code.
"""

import importlib.util
import linecache
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path

from bridge.agent import tool_definitions, user_errors

MAX_LISTED = 20
"""Names that a message lists."""


def why_not_imported(error: BaseException, wanted: str = "") -> str:
    """The type and text of an error that an import raised, the user's line, and what to
    do about it. `wanted`: the module that was to be imported, if it has a name."""
    if refused := tool_definitions.explained(error):
        return refused  # the SDK's text names neither the tool nor its argument
    said = str(error)
    if isinstance(error, SyntaxError) and error.filename:
        said, place = error.msg, _place(error.filename, error.lineno or 0, error.text)
    elif frame := user_errors.last_frame(error):
        place = _place(frame.filename, frame.lineno or 0, frame.line)
    else:
        place = ""
    told = f"{type(error).__name__}: {said}" if said else type(error).__name__
    hint = _hint(error, wanted)
    return f"{told}{place}{f'. {hint}' if hint else ''}"


def do_you_mean(name: str, names: Iterable[str]) -> str:
    """`do you mean a or b?`; empty if no name is near."""
    private = name.startswith("_")
    others = {it for it in names if it != name and it.startswith("_") == private}
    near = get_close_matches(name, sorted(others), 3, 0.7)
    return f"do you mean {' or '.join(near)}?" if near else ""


def _place(file: str, line: int, code: str | None) -> str:
    code = " ".join((code or linecache.getline(file, line)).split())
    return f" ({file}:{line}{f': {code}' if code else ''})"


def _hint(error: BaseException, wanted: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing(error.name, wanted)
    if isinstance(error, ImportError) and error.name in sys.modules:
        name = getattr(error, "name_from", None) or _quoted(str(error))
        return _capital(do_you_mean(name, dir(sys.modules[error.name])))
    if isinstance(error, AttributeError) and error.name and error.obj is not None:
        return _capital(do_you_mean(error.name, dir(error.obj)))
    return ""


def _missing(name: str, wanted: str) -> str:
    """What to do about a module that is not there. `wanted`: as in
    `why_not_imported`."""
    top = name.partition(".")[0]
    if top != name and importlib.util.find_spec(top) is not None:
        return f"{top} is installed, but has no {name}"
    near = do_you_mean(top, {*sys.stdlib_module_names, *_installed(), *_neighbours()})
    if name == wanted or wanted.startswith(f"{name}."):
        text = f"It is searched in {Path.cwd()} and among the installed packages"
        return f"{text}; {near}" if near else text
    pip = Path(sys.executable).parent / "pip"
    install = (
        f"Install the package that has {top} (`{pip} install ...`; in the image as "
        "docs/image.md says)"
    )
    return f"{_capital(near)} {install}" if near else install


def _installed() -> Iterable[str]:
    return metadata.packages_distributions()


def _neighbours() -> Iterable[str]:
    """Modules in the folders in which user code is searched."""
    for folder in {str(Path.cwd()), *sys.path[:2]}:
        if Path(folder).is_dir():
            yield from (it.stem for it in Path(folder).glob("*.py"))


def _quoted(text: str) -> str:
    """The first quoted name. Python 3.11 gives the name only in the text."""
    parts = text.split("'")
    return parts[1] if len(parts) > 1 else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
