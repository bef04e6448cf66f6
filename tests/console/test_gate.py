"""Who gets into the control API, and what all others are told."""

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from bridge.console import gate
from bridge.console.api import application
from bridge.console.gate import MAX_ADDRESSES, MAX_BODY_BYTES, Rates
from tests.console.desk import TOKEN, Desk, Switchboard, desk

# --- the token ---


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer t\u00f6ken",
    ],
)
async def test_nobody_gets_in_without_the_token(given: str | None) -> None:
    """A stranger learns nothing, not even which calls or paths there are."""
    async with desk() as at:
        at.auth = {} if given is None else {"Authorization": given}
        for path in ("/calls", "/calls/{sid}/history"):
            answer = await at.get(path)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Bearer realm=")
            assert answer.json["title"] == "The API's token is needed"
        assert (await at.get("/nothing")).status == 401


async def test_the_scheme_is_read_as_http_says() -> None:
    """`bearer` is `Bearer`."""
    async with desk() as at:
        at.auth = {"Authorization": f"bearer  {TOKEN} "}
        assert (await at.get("/calls")).status == 200


def test_an_empty_token_opens_nothing() -> None:
    """A forgotten setting does not leave the API open to all."""
    with pytest.raises(ValueError, match="token"):
        application(Switchboard(), "")


# --- origins ---


async def test_pages_of_other_origins_are_refused() -> None:
    """A web page somebody looks at cannot steer calls through their browser."""
    async with desk() as at:
        for origin in ("https://evil.example", "null", "http://[", "http://127.0.0.1"):
            answer = await at.ask("GET", "/calls", headers={"Origin": origin})
            assert answer.status == 403
        own = at.url.removesuffix("/api")
        assert (await at.ask("GET", "/calls", headers={"Origin": own})).status == 200
        answer = await at.ask("OPTIONS", "/calls", headers={"Origin": own})
        assert answer.status == 405


# --- what is sent ---


async def test_what_is_no_json_is_refused() -> None:
    """A form, a slip of the keyboard, half a body: each is told apart."""
    text = "/calls/{sid}/text"
    async with desk() as at:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        plain = await at.ask("POST", text, headers=form, raw=b"text=hello")
        assert plain.status == 415
        as_json = {"Content-Type": "application/json"}
        for raw in (b'{"text": ', b"", b"\xff\xfe", b"{'text': 'a'}"):
            broken = await at.ask("POST", text, headers=as_json, raw=raw)
            assert broken.status == 400, raw
            assert broken.json["errors"]
        assert at.line.asked == []


async def test_every_mistake_is_named() -> None:
    """One look at the answer is enough to mend a request."""
    async with desk() as at:
        body = {"text": 5, "role": "assistant", "colour": "red"}
        answer = await at.post("/calls/{sid}/text", body)

    assert answer.status == 422
    assert sorted(it["at"] for it in answer.json["errors"]) == [
        "colour",
        "role",
        "text",
    ]
    assert all(it["what"] for it in answer.json["errors"])


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_has_its_limit(chunked: bool) -> None:
    """A body of a gigabyte is not read into memory."""
    raw = json.dumps({"text": "a" * MAX_BODY_BYTES}).encode()

    async with desk() as at:
        if not chunked:
            headers = {"Content-Type": "application/json"}
            answer = await at.ask("POST", "/calls/{sid}/text", headers=headers, raw=raw)
            assert answer.status == 413
        else:
            assert b" 413 " in await _raw(
                at,
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
                % (len(raw), raw),
            )


async def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that stalls holds nothing up."""
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    async with desk() as at:
        assert b" 408 " in await _raw(at, b'Content-Length: 50\r\n\r\n{"text"')


async def test_a_body_that_is_broken_is_no_fault_of_ours() -> None:
    """It is refused, and nothing is logged as a bug."""
    packed = b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nno gzip, "
    with capture_logs() as logged:
        async with desk() as at:
            assert b" 400 " in await _raw(at, packed)

    assert logged == []


async def _raw(at: Desk, rest: bytes) -> bytes:
    """The first bytes of the answer to a request written by hand."""
    host = at.url.removeprefix("http://").removesuffix("/api")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    sid = at.live.call_sid
    writer.write(
        f"POST /api/calls/{sid}/text HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        "Connection: close\r\n".encode()
        + rest
    )
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


# --- paths ---


async def test_what_there_is_not_is_a_problem_too() -> None:
    """A client needs to understand one kind of error only."""
    async with desk() as at:
        lost = await at.get("/nothing")
        assert (lost.status, lost.json["title"]) == (404, "There is no such path")
        wrong = await at.ask("DELETE", "/calls")
        assert (wrong.status, wrong.headers["allow"]) == (405, "GET, POST")
        assert wrong.json["detail"] == "It knows GET, POST."


async def test_a_bug_is_a_problem_without_particulars() -> None:
    """A stranger to the code sees no traceback; the log has it."""
    with capture_logs() as logged:
        async with desk() as at:
            at.calls.fails = RuntimeError("secret particulars")
            answer = await at.get("/calls")

    assert answer.status == 500
    assert [line["event"] for line in logged] == ["api_failed"]
    assert "secret" not in answer.text


# --- rates ---


async def test_a_client_that_hammers_is_slowed_down() -> None:
    """A loop gone wild does not take the calls' time; it is told when to come back."""
    async with desk(Rates(per_second=0.5, burst=1)) as at:
        assert (await at.get("/calls")).status == 200
        answer = await at.get("/calls")

    assert answer.status == 429
    assert answer.headers["retry-after"] == "2"


async def test_who_guesses_is_slowed_down_and_keeps_nobody_out() -> None:
    """Behind a proxy all have one address: strangers do not use up what whoever has
    the token may ask."""
    async with desk(Rates(per_second=0.01, burst=1)) as at:
        token, at.auth = at.auth, {"Authorization": "Bearer a guess"}
        guesses = [(await at.get("/calls")).status for _ in range(3)]
        at.auth = token

        assert guesses == [401, 429, 429]
        assert (await at.get("/calls")).status == 200


def test_a_bucket_fills_again() -> None:
    """After a rest a client may come as often as before, and no more often."""
    rates = Rates(per_second=2.0, burst=3.0)

    assert [rates.take("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rates.take("b", 0.0) == 0.0
    assert rates.take("a", 0.5) == 0.0
    assert [rates.take("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_addresses_are_forgotten() -> None:
    """A million clients do not fill the memory; one that hammers stays known."""
    rates = Rates(per_second=1.0, burst=2.0)
    for number in range(MAX_ADDRESSES):
        rates.take(str(number), 0.0)
    for _ in range(2):
        rates.take("0", 0.5)
    assert rates.take("new", 1.0) == 0.0

    assert set(rates._buckets) == {"0", "new"}
