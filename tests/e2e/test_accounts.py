"""A bridge that takes the calls of several Twilio accounts.

Each token is valid for its own account: neither for another account's SID, nor for a
call of another account, nor for its streams. The attacker is a customer: they have the
token of their own account.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from multidict import MultiDict
from pydantic import SecretStr
from twilio.request_validator import RequestValidator

from bridge.fleet import CallEntry, NextStep, Then
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, RunningBridge
from tests.e2e.test_attacks import (
    ACCOUNT,
    CALL,
    FORM,
    HOST,
    OTHER_CALL,
    PUBLIC,
    THEIRS,
    TOKEN,
    asked_of_the_model,
    close_code,
    deployed,
    opened,
    post,
    refusals,
    refused,
    sign,
    start,
    stream_path,
)
from tests.fleet.redis_server import RedisServer

SUB, NEIGHBOUR = "AC" + "5" * 32, "AC" + "7" * 32
SUB_TOKEN, NEIGHBOUR_TOKEN = "5" * 32, "7" * 32
SUB_OTHER = "8" * 32
TOKENS = {ACCOUNT: TOKEN, SUB: SUB_TOKEN, NEIGHBOUR: NEIGHBOUR_TOKEN}
ACCOUNTS: dict[str, Any] = {
    "twilio_accounts": {SUB: (SUB_TOKEN,), NEIGHBOUR: (NEIGHBOUR_TOKEN,)}
}
TALK = [steps.SayStep(HELLO), steps.ListenStep(quiet_seconds=0.3), steps.HangUpStep()]
PATHS = ["/voice", "/voice/next", "/stream-status", "/call-status", "/amd-status"]


DETAILS = {"CallStatus": "completed", "AnsweredBy": "human"}
DETAILS |= {"StreamEvent": "stream-started", "StreamSid": "MZ" + "1" * 32}
"""What Twilio sends to one or another of PATHS."""


def form_of(account: str, call: str = CALL) -> dict[str, str]:
    return {**FORM, "AccountSid": account, "CallSid": call}


async def posted(
    place: RunningBridge, form: dict[str, str], token: str, path: str = "/voice"
) -> tuple[int, str]:
    """The answer to a webhook that is signed with this token."""
    return await post(place, form, sign(PUBLIC + path, form, token), path)


async def path_of(place: RunningBridge, account: str, call: str = CALL) -> str:
    """Path of the stream of a call of this account."""
    status, text = await posted(place, form_of(account, call), TOKENS[account])
    stream = ElementTree.fromstring(text).find(".//Stream")
    assert status == 200 and stream is not None
    return stream.attrib["url"].removeprefix(f"wss://{HOST}")


@pytest.mark.parametrize("account", TOKENS)
async def test_each_account_has_its_calls(account: str) -> None:
    """Callers of each account talk to the agent: webhooks, stream and status callbacks
    are signed with the account's own token."""
    async with deployed(**ACCOUNTS) as place:
        caller = place.caller(
            auth_token=TOKENS[account], signed_origin=PUBLIC, account_sid=account
        )
        record = await caller.call(TALK)
        await place.empty()

    assert record.error is None
    assert read_ruler(record.heard).heard_ms == {1: 300}
    assert sum(refusals(place, it) for it in ("signature", "account")) == 0


@pytest.mark.parametrize("path", PATHS)
async def test_a_token_is_not_valid_for_another_account(path: str) -> None:
    """The token of one account, also of the main one, signs no webhook of another."""
    async with deployed(**ACCOUNTS) as place:
        for account in TOKENS:
            for signer, token in TOKENS.items():
                if signer != account:
                    form = form_of(account)
                    assert (await posted(place, form, token, path))[0] == 403

        assert refusals(place, "signature") == 6


async def test_the_shared_key_of_the_main_account() -> None:
    """TWILIO_SHARED_KEYS belong to the main account, and are valid for no other."""
    secret = "the-secret-of-the-shared-key"
    named = {"X-Twilio-Webhooks-Signature-Settings": "key=k1,algorithm=HMAC_SHA256"}
    async with deployed(twilio_shared_keys={"k1": secret}, **ACCOUNTS) as place:
        answers = []
        for account in TOKENS:
            form, url = form_of(account), f"{PUBLIC}/voice"
            signed = RequestValidator(secret).compute_signature(
                url, form, "HMAC_SHA256"
            )
            answers.append((await post(place, form, str(signed), **named))[0])

    assert answers == [200, 403, 403]


async def test_an_account_that_is_not_known() -> None:
    """Its request is refused and counted, whichever of our tokens has signed it."""
    async with deployed(**ACCOUNTS) as place:
        form = form_of(THEIRS)
        for token in (*TOKENS.values(), "e" * 32):
            assert (await posted(place, form, token))[0] == 403

        assert (refusals(place, "account"), refusals(place, "signature")) == (1, 3)


async def test_a_form_with_two_accounts() -> None:
    """A customer cannot name their own account for the check, and another one for the
    call."""
    async with deployed(**ACCOUNTS) as place:
        call, own, main = (
            ("CallSid", CALL),
            ("AccountSid", SUB),
            ("AccountSid", ACCOUNT),
        )
        for pairs in ([call, own, main], [call, main, own]):
            form: Any = MultiDict(pairs)
            signed = sign(f"{PUBLIC}/voice", form, SUB_TOKEN)
            status, text = await post(place, form, signed)
            assert status != 200 or f"/media/{SUB}/" in text


# --- streams ---


async def test_a_stream_is_signed_with_the_token_of_its_account() -> None:
    """Somebody who knows the url of a stream of another account cannot open it."""
    async with deployed(**ACCOUNTS) as place:
        path = await path_of(place, SUB)
        assert await refused(place, path, token=NEIGHBOUR_TOKEN) == 403
        assert await refused(place, path, token=TOKEN) == 403
        assert await refused(place, "/media", token=SUB_TOKEN) == 403
        assert refusals(place, "signature") == 3
        # The attempts did not use the ticket up.
        socket = await opened(place, path, token=SUB_TOKEN)
        await socket.send(start(account=SUB))
        await socket.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(socket) == 1000
        await place.empty()


async def test_a_ticket_of_another_account() -> None:
    """A ticket of one account opens no stream of another, not even with the signature
    of that account, and its `start` cannot name another account."""
    async with deployed(**ACCOUNTS) as place:
        path = await path_of(place, SUB)
        changed = path.replace(SUB, NEIGHBOUR)
        assert await refused(place, changed, token=NEIGHBOUR_TOKEN) == 403
        assert refusals(place, "ticket_forged") == 1

        socket = await opened(place, path, token=SUB_TOKEN)
        await socket.send(start(account=NEIGHBOUR))
        assert await close_code(socket) == 1008
        assert refusals(place, "other_call") == 1
        await place.empty()

    assert asked_of_the_model(place) == []


# --- calls ---


async def test_the_whisper_of_another_account() -> None:
    """A customer who knows the SID of another account's call does not hear what is said
    to the person to whom its caller is transferred."""
    step = NextStep(Then.TRANSFER, "+14155550100", whisper="A secret.", accept=True)
    path = f"/voice/whisper?call={CALL}"
    async with deployed(**ACCOUNTS) as place:
        await path_of(place, SUB)
        await place.server.registry.closed(CallEntry(CALL, "MZ1", 1.0), step)

        theft = await posted(
            place, form_of(NEIGHBOUR, OTHER_CALL), NEIGHBOUR_TOKEN, path
        )
        leg = form_of(SUB, "CA" + "9" * 32)
        own = await posted(place, leg, SUB_TOKEN, path)

    assert theft[0] == 403 and "secret" not in theft[1]
    assert own[0] == 200 and "A secret." in own[1]


@pytest.mark.parametrize("path", PATHS)
async def test_a_call_of_another_account(path: str) -> None:
    """A customer who knows the SID of another account's call can neither ask for its
    next step, nor end or change it, nor get a stream that takes it over."""
    async with deployed(**ACCOUNTS) as place:
        victim = await opened(place, await path_of(place, SUB), token=SUB_TOKEN)
        await victim.send(start(account=SUB))

        for thief in (NEIGHBOUR, ACCOUNT):
            form = {**form_of(thief), **DETAILS, "DialCallStatus": "completed"}
            assert (await posted(place, form, TOKENS[thief], path))[0] == 403

        assert refusals(place, "account") == 2
        own = form_of(NEIGHBOUR, OTHER_CALL)
        assert (await posted(place, own, NEIGHBOUR_TOKEN))[0] == 200
        await victim.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(victim) == 1000
        await place.empty()


async def test_a_call_of_another_account_on_another_instance(tmp_path: Path) -> None:
    """Every instance of a fleet knows to which account a call belongs."""
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        shared = {"redis_url": SecretStr(redis.url), **ACCOUNTS}
        async with deployed(**shared) as one, deployed(**shared) as other:
            await path_of(one, SUB)
            thief = {**form_of(NEIGHBOUR), **DETAILS}
            for path in PATHS:
                assert (await posted(other, thief, NEIGHBOUR_TOKEN, path))[0] == 403
            assert refusals(other, "account") == len(PATHS)
            own = await posted(other, form_of(SUB), SUB_TOKEN, "/voice/next")
            assert own[0] == 200
    finally:
        redis.stop()


# --- rotation ---


async def test_the_token_of_one_account_is_rotated() -> None:
    """Both tokens of that account are accepted, and nothing changes for the others. A
    call whose ticket was issued before the change gets its stream."""
    both: dict[str, Any] = {
        "twilio_accounts": {
            SUB: (SUB_OTHER, SUB_TOKEN),
            NEIGHBOUR: (NEIGHBOUR_TOKEN,),
        }
    }
    async with deployed(**both) as place:
        for account, token in (
            (SUB, SUB_TOKEN),
            (SUB, SUB_OTHER),
            (NEIGHBOUR, NEIGHBOUR_TOKEN),
            (ACCOUNT, TOKEN),
        ):
            caller = place.caller(
                auth_token=token, signed_origin=PUBLIC, account_sid=account
            )
            record = await caller.call(TALK)
            assert read_ruler(record.heard).heard_ms == {1: 300}, account
        for account in (NEIGHBOUR, ACCOUNT):
            assert (await posted(place, form_of(account), SUB_OTHER))[0] == 403
        # Twilio changes the key between the webhook and the handshake.
        path = await path_of(place, SUB, OTHER_CALL)
        await (await opened(place, path, token=SUB_OTHER)).close()
        await place.empty()


async def test_the_token_of_the_main_account_is_rotated() -> None:
    """Streams of the other accounts are accepted all the while, although their tickets
    are signed under the tokens of the main account."""
    both = {"twilio_auth_token_secondary": SecretStr("9" * 32)}
    async with deployed(**both, **ACCOUNTS) as place:
        path = await path_of(place, SUB)
        assert await refused(place, path, token="9" * 32) == 403
        await (await opened(place, path, token=SUB_TOKEN)).close()
        await place.empty()


async def test_an_account_that_was_removed() -> None:
    """Its token opens nothing any more, not even a stream whose ticket is still
    valid."""
    async with deployed(**ACCOUNTS) as before, deployed() as place:
        path = await path_of(before, SUB)
        assert await refused(place, path, token=SUB_TOKEN) == 403
        assert (await posted(place, form_of(SUB), SUB_TOKEN))[0] == 403


async def test_one_account_is_as_before() -> None:
    """Without TWILIO_ACCOUNTS nothing is stored about a call's account."""
    async with deployed() as place:
        await stream_path(place)
        assert await place.server.registry.get(f"account:{CALL}") is None
    async with deployed(**ACCOUNTS) as place:
        await stream_path(place)
        known = await place.server.registry.get(f"account:{CALL}")
        assert known == ACCOUNT.encode()
