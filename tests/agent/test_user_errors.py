"""Where user code raised: the lines that its author must look at."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from agents.handoffs import Handoff
from pydantic import BaseModel

from bridge.agent import user_code, user_errors

HERE = __file__


def line_of(function: Callable[..., object], offset: int) -> int:
    return function.__code__.co_firstlineno + offset


def error_of(function: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as raised:
        function()
    return raised.value


async def error_in_task(work: Coroutine[Any, Any, object]) -> BaseException:
    """As the bridge sees it: with no frame of this test around it."""
    task = asyncio.get_running_loop().create_task(work)
    await asyncio.wait([task])
    error = task.exception()
    assert error is not None
    return error


def plain(text: str) -> str:
    return text


def fails() -> None:
    json.loads("{")


def wraps() -> None:
    try:
        fails()
    except ValueError as error:
        raise LookupError("no Miller") from error


def loses() -> None:
    try:
        fails()
    except ValueError:
        raise KeyError("Miller") from None


def stumbles() -> None:
    try:
        fails()
    except ValueError:
        print(1 / 0)


def test_the_place_is_the_users_line_not_the_librarys() -> None:
    """json's frames are below it in the traceback."""
    places = user_errors.where(error_of(fails)).split(" > ")

    assert places[-1] == f"{HERE}:{line_of(fails, 1)} fails"
    assert not any("json/" in place for place in places)


async def test_the_bridges_and_the_sdks_frames_are_left_out() -> None:
    """They call user code, and say nothing about it."""
    error = await error_in_task(user_code.call(fails, name="CA1", seconds=5))
    exits = await error_in_task(user_code.call(sys.exit, 3, name="CA1", seconds=5))

    begin, frame, rest = user_errors.traceback_of(error, plain).splitlines()[:3]
    assert begin == "Traceback (most recent call last):"
    assert frame == f'  File "{HERE}", line {line_of(fails, 1)}, in fails'
    assert rest.strip() == 'json.loads("{")'
    assert user_errors.traceback_of(exits, plain).endswith("SystemExit: 3")


def test_an_error_without_a_frame_of_the_user_names_the_librarys() -> None:
    def asks() -> None:
        Handoff.get_transfer_message(object(), object())  # type: ignore[arg-type]

    error = error_of(asks)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # as if the SDK had called itself
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next

    assert user_errors.where(error).endswith(" get_transfer_message")
    assert user_errors.own_frame(error) is None
    assert user_errors.where(ValueError()) == ""


async def test_a_timeout_names_the_line_that_waited() -> None:
    async def waits() -> None:
        await asyncio.sleep(60)

    error = await error_in_task(user_code.call(waits, name="CA1", seconds=0.01))

    assert isinstance(error, TimeoutError)
    assert user_errors.where(error).endswith(f":{line_of(waits, 1)} waits")


def test_causes_stand_before_the_error() -> None:
    """With the words that hide nothing from the operator but what a person has said."""
    text = user_errors.traceback_of(
        error_of(wraps), lambda it: it.replace("Miller", "[argument]")
    )

    assert text.index("json.decoder.JSONDecodeError: ") < text.index("is the cause of")
    assert text.endswith("\nLookupError: no [argument]")
    assert "JSONDecodeError" not in user_errors.traceback_of(error_of(loses), plain)
    assert "was handled, this one was raised" in user_errors.traceback_of(
        error_of(stumbles), plain
    )


def test_the_parts_of_a_group_are_given() -> None:
    def both() -> None:
        raise ExceptionGroup("both", [error_of(fails), error_of(loses)])  # type: ignore[list-item]

    text = user_errors.traceback_of(error_of(both), plain)

    assert "JSONDecodeError" in text and "KeyError: 'Miller'" in text
    assert text.endswith("ExceptionGroup: both (2 sub-exceptions)")


def test_a_traceback_is_bounded() -> None:
    """In depth, in causes, in text; a circle of causes ends."""

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
            return
        raise ValueError("x" * 10_000)

    error = error_of(lambda: deep(200))
    last = error
    for _ in range(50):
        last.__context__ = ValueError()
        last = last.__context__
    last.__context__ = error
    text = user_errors.traceback_of(error, plain)

    assert "more frames]" in text and len(text) < 10_000
    assert text.count("ValueError") <= user_errors.MAX_EXCEPTIONS + 1
    assert user_errors.where(error)


def test_pydantics_text_names_no_value() -> None:
    """It quotes a part of the input, from which no word can be removed."""

    class Order(BaseModel):
        name: str
        slices: int

    error = error_of(lambda: Order.model_validate({"name": "ham", "slices": "Miller"}))

    assert user_errors.text_of(error) == "slices: int_parsing"
    whole = error_of(lambda: Order.model_validate("Miller"))
    assert user_errors.text_of(whole) == "(all): model_type"


def test_an_error_whose_text_raises_is_still_reported() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert user_errors.text_of(Odd()) == "(its text cannot be read: RuntimeError)"
