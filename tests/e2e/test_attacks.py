"""Attacks on a bridge in a deployment: the answer to each (SECURITY.md).

Signatures are made by Twilio's own library. The attacker knows everything except the
auth token, unless a test says otherwise.
"""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from xml.etree import ElementTree

import aiohttp
import pytest
from pydantic import SecretStr
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bridge.http.tickets import Tickets
from bridge.http.webhooks import MAX_REFUSALS
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, RunningBridge, bridge

PUBLIC, HOST = "https://bridge.example", "bridge.example"
TOKEN, SECOND = "0123456789abcdef0123456789abcdef", "f" * 32
ACCOUNT, THEIRS = "AC" + "0" * 31 + "1", "AC" + "e" * 32
CALL, OTHER_CALL = "CA" + "1" * 32, "CA" + "2" * 32
REQUESTS = itertools.count()
"""Twilio asks for no document twice under one URL."""
FORM = {
    "AccountSid": ACCOUNT,
    "CallSid": CALL,
    "From": "+15551230001",
    "To": "+15557650002",
}


@asynccontextmanager
async def deployed(**conf: Any) -> AsyncIterator[RunningBridge]:
    """A bridge with every setting that `bridge serve` requires."""
    secure = {
        "public_url": PUBLIC,
        "twilio_auth_token": SecretStr(TOKEN),
        "twilio_account_sid": ACCOUNT,
    }
    behaviour = Behaviour(fallback=[PlayRuler(300)])
    async with bridge(behaviour, **{**secure, **conf}) as place:
        yield place


def sign(url: str, form: dict[str, str] | None = None, token: str = TOKEN) -> str:
    return str(RequestValidator(token).compute_signature(url, form or {}))


async def post(
    place: RunningBridge,
    form: dict[str, str],
    signature: str | None,
    path: str = "/voice",
    **headers: str,
) -> tuple[int, str]:
    if signature is not None:
        headers["X-Twilio-Signature"] = signature
    async with (
        aiohttp.ClientSession() as http,
        http.post(place.url + path, data=form, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def stream_path(place: RunningBridge, form: dict[str, str] | None = None) -> str:
    """Path of the stream that the webhook tells Twilio to open for this call."""
    form, path = form or FORM, f"/voice?request={next(REQUESTS)}"
    status, text = await post(place, form, sign(PUBLIC + path, form), path)
    assert status == 200
    stream = ElementTree.fromstring(text).find(".//Stream")
    assert stream is not None
    return stream.attrib["url"].removeprefix(f"wss://{HOST}")


async def opened(
    place: RunningBridge,
    path: str,
    *,
    token: str | None = TOKEN,
    signed: str | None = None,
) -> ClientConnection:
    """Opens a stream: signed with that token, or with the signature of that URL.
    InvalidStatus if the handshake is refused."""
    headers = {}
    if token is not None:
        headers["X-Twilio-Signature"] = sign(signed or f"wss://{HOST}{path}", {}, token)
    return await connect(
        f"ws://{HOST}{path}",
        host="127.0.0.1",
        port=place.server.port,
        additional_headers=headers,
        compression=None,
        proxy=None,
    )


async def refused(place: RunningBridge, path: str, **how: Any) -> int:
    """The HTTP status of a refused handshake."""
    with pytest.raises(InvalidStatus) as error:
        await opened(place, path, **how)
    return error.value.response.status_code


def start(call: str = CALL, account: str = ACCOUNT) -> str:
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    details = {"callSid": call, "accountSid": account, "mediaFormat": form}
    return json.dumps({"event": "start", "streamSid": "MZ1", "start": details})


async def close_code(socket: ClientConnection) -> int | None:
    async with asyncio.timeout(2):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else None


def asked_of_the_model(place: RunningBridge) -> list[object]:
    """What the model was sent, and the connections that are open. (It is dialled with
    the handshake of a stream that has a ticket, which costs nothing.)"""
    sent = [event for it in place.model.sessions for event in it.received]
    return [*sent, *range(place.model.active)]


def refusals(place: RunningBridge, why: str) -> float:
    return place.metric(f'bridge_refusals_total{{why="{why}"}}')


# --- the handshake ---


async def test_a_stream_without_a_signature() -> None:
    """A stranger who knows the URL of a stream gets 403 and starts no session."""
    async with deployed() as place:
        path = await stream_path(place)
        assert await refused(place, path, token=None) == 403
        assert await refused(place, path, token=SECOND) == 403
        assert refusals(place, "signature") == 2
        # The attempt did not use the ticket up: Twilio's own stream is accepted.
        await (await opened(place, path)).close()

    assert asked_of_the_model(place) == []


async def test_a_replayed_handshake_is_refused() -> None:
    """An attacker who recorded a handshake with its signature cannot use it, neither
    during the call nor after it."""
    async with deployed() as place:
        path = await stream_path(place)
        socket = await opened(place, path)
        await socket.send(start())
        assert await refused(place, path) == 403
        await socket.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(socket) == 1000
        assert await refused(place, path) == 403
        assert refusals(place, "ticket_used") == 2
        await place.empty()

    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def test_one_of_two_equal_handshakes_at_once_is_accepted() -> None:
    """Of two at the same moment exactly one is accepted."""
    async with deployed() as place:
        path = await stream_path(place)
        both = await asyncio.gather(
            *(opened(place, path) for _ in range(8)), return_exceptions=True
        )
        came_in = [it for it in both if isinstance(it, ClientConnection)]
        for socket in came_in:
            await socket.close()

    assert len(came_in) == 1


async def test_a_stolen_ticket_for_another_call() -> None:
    """An attacker who has the ticket of one call, and even Twilio's signature for it,
    can neither enter another call nor take over that one."""
    async with deployed() as place:
        victim = await opened(place, await stream_path(place))
        await victim.send(start())
        other = {**FORM, "CallSid": OTHER_CALL}
        path = await stream_path(place, other)
        changed = path.replace(OTHER_CALL, CALL)
        assert await refused(place, changed) == 403
        assert refusals(place, "ticket_forged") == 1

        thief = await opened(place, path)
        await thief.send(start(CALL))

        assert await close_code(thief) == 1008
        assert refusals(place, "other_call") == 1
        assert [it for it in await place.server.registered()] == [CALL]
        await victim.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(victim) == 1000
        await place.empty()

    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def test_a_forged_start_behind_unknown_messages() -> None:
    """Unknown messages before the forged `start` do not help the attacker."""
    async with deployed() as place:
        other = {**FORM, "CallSid": OTHER_CALL}
        for noise in ('{"event":"party"}', b"\x00", "x" * 300_000):
            thief = await opened(place, await stream_path(place, other))
            for _ in range(12):
                with contextlib.suppress(ConnectionClosed):
                    await thief.send(noise)
                    await thief.send(start(CALL))
            assert await close_code(thief) in (1008, 1009)
        await place.empty()

    assert asked_of_the_model(place) == []


async def test_a_start_of_another_account() -> None:
    """A ticket is bound to an account, too."""
    async with deployed(twilio_account_sid=None) as place:
        socket = await opened(place, await stream_path(place))
        await socket.send(start(account=THEIRS))
        assert await close_code(socket) == 1008
        await place.empty()

    assert asked_of_the_model(place) == []


async def test_a_ticket_with_another_key() -> None:
    """A ticket that was signed with another token counts as no ticket."""
    async with deployed() as place:
        forged = Tickets([SECOND], place.server.registry).path(ACCOUNT, CALL)
        assert await refused(place, forged) == 403
        assert await refused(place, "/media") == 403
        assert await refused(place, f"/media/{ACCOUNT}/{CALL}/x") == 403
        assert (
            refusals(place, "ticket_forged"),
            refusals(place, "ticket_missing"),
        ) == (
            2,
            1,
        )


async def test_an_old_ticket() -> None:
    """A ticket from a log of a minute ago is refused."""
    async with deployed() as place:
        late = Tickets([TOKEN], place.server.registry, lambda: 1_700_000_000.0)
        assert await refused(place, late.path(ACCOUNT, CALL)) == 403
        assert refusals(place, "ticket_expired") == 1


async def test_a_caller_whose_ticket_has_expired() -> None:
    """Twilio was slow, or asked twice: the caller gets another stream and hears no
    apology, but only a limited number of times."""
    async with deployed() as place:
        late = Tickets([TOKEN], place.server.registry, lambda: 1_700_000_000.0)
        verbs = []
        for turn in range(MAX_REFUSALS + 1):
            path = f"/voice/next?once={turn}"
            assert await refused(place, late.path(ACCOUNT, CALL)) == 403
            _, text = await post(place, FORM, sign(PUBLIC + path, FORM), path)
            verbs.append([it.tag for it in ElementTree.fromstring(text)])

    assert verbs[:-1] == [["Connect"]] * MAX_REFUSALS
    assert verbs[-1] == ["Say", "Hangup"]


async def test_a_stream_without_a_start() -> None:
    """A valid ticket and then silence: the socket is closed, and no call is counted."""
    async with deployed(start_seconds=0.3) as place:
        socket = await opened(place, await stream_path(place))
        assert await close_code(socket) == 1008
        await place.empty()

    assert place.metric('bridge_limit_hits_total{limit="start_late"}') == 1
    assert asked_of_the_model(place) == []


async def test_a_stream_from_a_twiml_bin() -> None:
    """If the operator allows it, a signature without a ticket is enough. A stream that
    has a ticket must have a valid one all the same."""
    async with deployed(tickets="off") as place:
        socket = await opened(place, "/media")
        await socket.send(start())
        await socket.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(socket) == 1000
        assert await refused(place, "/media", token=None) == 403
        path = await stream_path(place)
        changed = path.replace(CALL, OTHER_CALL)
        assert await refused(place, changed) == 403
        await place.empty()


# --- the webhooks ---


async def test_a_signature_for_another_host() -> None:
    """Neither the Host header nor a proxy's headers change the URL that must be
    signed."""
    evil = "https://evil.example"
    headers = {
        "Host": "evil.example",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Original-URL": "/voice",
        "Forwarded": "host=evil.example;proto=https",
    }
    async with deployed() as place:
        theirs = await post(place, FORM, sign(f"{evil}/voice", FORM), **headers)
        ours = await post(place, FORM, sign(f"{PUBLIC}/voice", FORM), **headers)

    assert theirs[0] == 403
    assert ours[0] == 200
    assert "evil" not in ours[1]
    assert refusals(place, "signature") == 1


@pytest.mark.parametrize("path", ["/voice", "/voice/next", "/call-status"])
async def test_another_customer_of_twilio(path: str) -> None:
    """Twilio signs that customer's requests too, but not with our token. Our token does
    not help with another account either."""
    form = {**FORM, "AccountSid": THEIRS}
    async with deployed() as place:
        url = PUBLIC + path
        assert (await post(place, form, sign(url, form, SECOND), path))[0] == 403
        assert (await post(place, form, sign(url, form), path))[0] == 403
        assert (refusals(place, "signature"), refusals(place, "account")) == (1, 1)


async def test_calls_are_accepted_while_the_token_is_rotated() -> None:
    """Before, during and after the time in which Twilio signs with the other token."""
    both = {"twilio_auth_token_secondary": SecretStr(SECOND)}
    script = [
        steps.SayStep(HELLO),
        steps.ListenStep(quiet_seconds=0.3),
        steps.HangUpStep(),
    ]
    async with deployed(**both) as place:
        for token in (TOKEN, SECOND):
            caller = place.caller(auth_token=token, signed_origin=PUBLIC)
            record = await caller.call(script)
            assert read_ruler(record.heard).heard_ms == {1: 300}, token


async def test_markup_in_a_callers_name_breaks_no_document() -> None:
    """A number or a name is text in the TwiML, whatever it contains, or it is left
    out."""
    evil = '"/></Stream></Connect><Dial>+19005550100</Dial><Say x="'
    other = "</Parameter>\r\n\x00"
    async with deployed() as place:
        form = {**FORM, "From": evil, "To": other, "CallerName": evil}
        form |= {"Caller": evil, "Called": other}
        status, text = await post(place, form, sign(f"{PUBLIC}/voice", form))

    document = ElementTree.fromstring(text)
    assert status == 200
    assert [it.tag for it in document.iter()].count("Dial") == 0
    assert {it.attrib["value"] for it in document.iter("Parameter")} == {evil}


@pytest.mark.parametrize(
    "sid", ["../../etc", "a/b?c#d", "CA\r\nX-Evil: 1", "%2e%2e", "é"]
)
async def test_a_call_sid_that_is_a_path(sid: str) -> None:
    """Twilio has no such calls, so the bridge answers none."""
    async with deployed() as place:
        form = {**FORM, "CallSid": sid}
        assert (await post(place, form, sign(f"{PUBLIC}/voice", form)))[0] == 400
        assert refusals(place, "fields") == 1


# --- metrics and logs ---


async def test_metrics_are_not_public() -> None:
    """A request through a proxy, and so from anywhere, cannot read the number of
    calls."""
    token = SecretStr("the-token-of-the-api")
    async with deployed(api_token=token) as place, aiohttp.ClientSession() as http:
        for path in ("/metrics", "/readyz"):
            for headers, status in (
                ({}, 200),
                ({"X-Forwarded-For": "203.0.113.9"}, 404),
                ({"Forwarded": "for=203.0.113.9"}, 404),
                ({"X-Forwarded-For": "1.2.3.4", "Authorization": "Bearer no"}, 404),
                (
                    {
                        "X-Forwarded-For": "1.2.3.4",
                        "Authorization": f"Bearer {token.get_secret_value()}",
                    },
                    200,
                ),
            ):
                async with http.get(place.url + path, headers=headers) as answer:
                    assert answer.status == status, (path, headers)


async def test_nothing_secret_is_logged(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log of a call and of attacks on it has no token, number, ticket or
    signature."""
    signature = sign(f"{PUBLIC}/voice", FORM)
    with caplog.at_level(logging.DEBUG):
        async with deployed() as place:
            path = await stream_path(place)
            await refused(place, path, token=None)
            await refused(place, path.replace(CALL, OTHER_CALL))
            await post(place, {**FORM, "From": "+15550001111"}, signature)
            caller = place.caller(auth_token=TOKEN, signed_origin=PUBLIC)
            await caller.call([steps.SayStep(HELLO), steps.HangUpStep()])
            await place.empty()

    ours = [it for it in caplog.records if not it.name.startswith("websockets")]
    logged = "\n".join([capsys.readouterr().out, *(it.getMessage() for it in ours)])
    assert "stream_refused" in logged
    ticket = path.rsplit("/", 1)[1]
    for secret in (TOKEN, signature, ticket, "+1555", FORM["From"], FORM["To"]):
        assert secret not in logged, secret
