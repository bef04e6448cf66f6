"""Where user code raised: file, line, and a traceback for the log.

The text of an exception may quote the caller: who asks for a traceback says what is
removed from the texts. The frames are the user's source code.
"""

import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import agents
from pydantic import ValidationError

from bridge.agent.user_code import raised

FRAMES = 3
"""Frames of a traceback that `where` gives."""

MAX_FRAMES = 20
"""Frames of one exception that `traceback_of` gives: the first and the last ones."""

FIRST_FRAMES = 5

MAX_EXCEPTIONS = 6
"""Exceptions that `traceback_of` gives: causes, and the parts of groups."""

MAX_TEXT_CHARS = 500
"""Characters of the text of one exception."""

_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(f"{_PATHS[name]}{os.sep}" for name in ("purelib", "platlib"))
_STDLIB = tuple(
    f"{it}{os.sep}" for it in (_PATHS["stdlib"], Path(os.__file__).resolve().parent)
)
_MACHINERY = tuple(
    f"{it}{os.sep}"
    for it in (Path(__file__).resolve().parent.parent, Path(agents.__file__).parent)
)
_CAUSE = "\nThe exception above is the cause of this one:\n\n"
_CONTEXT = "\nWhile the exception above was handled, this one was raised:\n\n"
_PART = "\nThe exception above is part of this group:\n\n"


def where(error: BaseException) -> str:
    """The user's lines that raised, the innermost last: `file:line function`.

    If no frame is the user's, those of a library. A timeout names the line that was
    waiting.
    """
    chain = list(_chain(raised(error)))
    frames = next((own for it in chain if (own := _own_frames(it))), None)
    if frames is None:
        frames = next((all_ for it in chain if (all_ := _frames(it))), [])
    frames = frames[-FRAMES:]
    return " > ".join(f"{it.filename}:{it.lineno} {it.name}" for it in frames)


def traceback_of(error: BaseException, hide: Callable[[str], str]) -> str:
    """The traceback as Python prints it, from the first frame that belongs neither to
    the bridge nor to the SDK. `hide` is applied to the texts of the exceptions."""
    return "".join(_formatted(raised(error), hide, [0])).rstrip("\n")


def own_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame of the user's own code; None if there is none."""
    frames = _own_frames(error)
    return frames[-1] if frames else None


def last_frame(error: BaseException) -> traceback.FrameSummary | None:
    """As `own_frame`; else the innermost frame of a library. None: only the bridge,
    the SDK and Python itself were running."""
    own = own_frame(error)
    others = [it for it in _frames(error) if not _is_machinery(it)]
    return own or (others[-1] if others else None)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames behind those with which the bridge and the SDK call user code; all
    frames, if the error was raised in these."""
    frames = list(traceback.extract_tb(error.__traceback__))
    theirs = next((n for n, it in enumerate(frames) if not _is_machinery(it)), 0)
    return frames[theirs:]


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [
        it
        for it in _frames(error)
        if not _is_machinery(it) and not it.filename.startswith(_LIBRARIES)
    ]


def _is_machinery(frame: traceback.FrameSummary) -> bool:
    name = frame.filename
    if name.startswith("<"):  # frozen modules of Python, generated code
        return True
    if name.startswith(_LIBRARIES):
        return name.startswith(_MACHINERY)
    return name.startswith((*_MACHINERY, *_STDLIB))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then its causes."""
    seen = set[int]()
    it: BaseException | None = error
    while it is not None and id(it) not in seen and len(seen) < MAX_EXCEPTIONS:
        yield it
        seen.add(id(it))
        it = _cause_of(it)


def _cause_of(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _formatted(
    error: BaseException, hide: Callable[[str], str], count: list[int]
) -> Iterator[str]:
    """The lines of the causes, of the parts, then of the error itself. `count`: how
    many exceptions were given; each once, so that a circle ends."""
    count[0] += 1
    cause = _cause_of(error)
    if cause is not None and count[0] < MAX_EXCEPTIONS:
        yield from _formatted(cause, hide, count)
        yield _CAUSE if error.__cause__ is not None else _CONTEXT
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            if count[0] < MAX_EXCEPTIONS:
                yield from _formatted(part, hide, count)
                yield _PART
    yield "Traceback (most recent call last):\n"
    frames = _frames(error)
    if len(frames) > MAX_FRAMES:
        last = frames[FIRST_FRAMES - MAX_FRAMES :]
        yield from traceback.format_list(frames[:FIRST_FRAMES])
        yield f"  [{len(frames) - MAX_FRAMES} more frames]\n"
        frames = last
    yield from traceback.format_list(frames)
    text = hide(text_of(error)[:MAX_TEXT_CHARS])
    yield f"{_type_name(error)}{': ' if text else ''}{text}\n"


def _type_name(error: BaseException) -> str:
    module = type(error).__module__
    name = type(error).__qualname__
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def text_of(error: BaseException) -> str:
    """The exception's own text. pydantic's would quote parts of the input."""
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False)
        return "; ".join(f"{_place(it['loc'])}: {it['type']}" for it in found)
    try:
        return str(error)
    except Exception as failed:
        # User code: an exception whose __str__ raises.
        return f"(its text cannot be read: {type(failed).__name__})"


def _place(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)) or "(all)"
