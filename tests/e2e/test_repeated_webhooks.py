"""A webhook that is sent again, by the balancer, by Twilio or by an attacker who has
recorded it; two bridges on one real Redis.

The documents are requested as Twilio does, with the same fields each time: the URL
alone tells two requests apart.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp import web
from pydantic import SecretStr

from bridge.app.background_tasks import BackgroundTasks
from bridge.fleet import CallEntry, InstanceLoad, NextStep, Then
from bridge.fleet.formats import FORMAT
from bridge.fleet.ignored import Ignored
from bridge.fleet.redis import redis_registry
from bridge.http import repeated_webhooks
from bridge.http.repeated_webhooks import NotRepeated, RepeatedWebhooks
from bridge.http.webhooks import (
    LATE_TICKET,
    MAX_REFUSALS,
    MAX_RESTART_WAITS,
    MAX_RESUMES,
)
from tests.e2e.bridge import RunningBridge
from tests.e2e.test_attacks import CALL, FORM, PUBLIC, deployed, post, refusals, sign
from tests.e2e.test_full import TALK
from tests.fleet.redis_server import RedisServer
from tests.http.divisions import RECORDED, Recorded, joined, remade
from tests.support.waiting import until

NUMBER = "+15550009999"
TWILIO = {**FORM, "CallStatus": "in-progress", "Direction": "inbound"}


@asynccontextmanager
async def pair(
    server: RedisServer, **conf: Any
) -> AsyncIterator[tuple[RunningBridge, RunningBridge]]:
    """Two bridges that know each other."""
    conf = {"redis_url": SecretStr(server.url), **conf}
    async with deployed(**conf) as one, deployed(**conf) as two:
        yield one, two


async def ask(
    place: RunningBridge, url: str, form: Mapping[str, str] = TWILIO
) -> tuple[int, str]:
    """A request of Twilio for one of the bridge's public URLs."""
    path = url.removeprefix(PUBLIC)
    return await post(place, dict(form), sign(PUBLIC + path, dict(form)), path)


def repeats(place: RunningBridge, result: str) -> float:
    return place.metric(f'bridge_repeated_webhooks_total{{result="{result}"}}')


# --- the same webhook again ---


async def test_a_repeated_webhook_gets_the_first_answer(server: RedisServer) -> None:
    """From whichever instance. The second one has no effect: the call keeps all its
    resumes, however often an attacker sends the recorded request."""
    async with pair(server) as (one, two):
        await one.server.registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        first = await ask(one, "/voice/next?once=a")
        again = [
            await ask(place, "/voice/next?once=a")
            for place in (two, one) * (MAX_RESUMES + 1)
        ]
        # The genuine caller still has all resumes but one.
        later = [
            await ask(two, f"/voice/next?once={n}") for n in range(MAX_RESUMES - 1)
        ]

        assert first[0] == 200 and "<Stream" in first[1]
        assert set(again) == {first}
        assert all("<Stream" in text for _, text in later)
        assert repeats(one, "answered") + repeats(two, "answered") == len(again)


async def test_one_of_many_equal_webhooks_at_once_is_answered(
    server: RedisServer,
) -> None:
    """The balancer gave up one instance and asked the other, while the first was still
    at work: both give the same document, with the same ticket."""
    async with pair(server) as (one, two):
        for turn in range(20):
            url = f"/voice?turn={turn}"
            answers = await asyncio.gather(
                *(ask(place, url) for place in (one, two) * 4)
            )
            assert {status for status, _ in answers} == {200}
            assert len(set(answers)) == 1, "an instance has given a second ticket"


async def test_a_status_that_is_sent_again(server: RedisServer) -> None:
    """Answers without a document are repeated, too."""
    async with pair(server) as (one, two):
        form = {**TWILIO, "CallStatus": "completed", "SequenceNumber": "3"}
        answers = [await ask(it, "/call-status", form) for it in (one, two, one)]

        assert answers == [(204, "")] * 3
        assert repeats(one, "answered") == repeats(two, "answered") == 1


async def test_a_recorded_webhook_after_its_answer_was_deleted(
    server: RedisServer,
) -> None:
    """Nobody but an attacker sends it so late: it is refused as long as the call may
    last, and the operator sees the refusal."""
    async with pair(server) as (one, two):
        assert (await ask(one, "/voice"))[0] == 200
        await until(lambda: len(server.client.keys("*webhook_answer:*")) == 1)
        await until(lambda: _stored(server, b"answered "))
        server.let_pass(repeated_webhooks.ANSWER_SECONDS + 1)
        assert (await ask(two, "/voice"))[0] == 403
        server.let_pass(repeated_webhooks.ANSWERED_SECONDS - 300)
        assert (await ask(two, "/voice"))[0] == 403

        assert refusals(two, "repeated") == 2


def _stored(server: RedisServer, text: bytes) -> bool:
    names: Any = server.client.keys("bridge:*:webhook:*")
    return any(text in (server.client.get(it) or b"") for it in names)  # type: ignore[operator]


async def test_the_phone_number_is_stored_for_two_minutes(server: RedisServer) -> None:
    """What is kept for hours has neither the number nor the ticket."""
    async with pair(server) as (one, _):
        await ask(one, "/voice")
        await until(lambda: _stored(server, b"answered "))
        server.let_pass(repeated_webhooks.ANSWER_SECONDS + 1)
        names: Any = server.client.keys("bridge:*:webhook*")
        kept: Any = [it + (server.client.get(it) or b"") for it in names]  # type: ignore[operator]

    assert kept
    for text in kept:
        assert b"1555" not in text and b"media" not in text


async def test_the_same_signature_with_other_fields(server: RedisServer) -> None:
    """A form that says the same in other words has a recorded signature: refused."""
    async with pair(server) as (one, two):
        signature = sign(f"{PUBLIC}/voice", TWILIO)
        text = {**TWILIO, "Dire": "ctioninbound"}
        del text["Direction"]
        assert joined(text.items()) == joined(TWILIO.items())

        assert (await post(one, TWILIO, signature))[0] == 200
        assert (await post(two, text, signature))[0] == 403
        assert refusals(two, "repeated") == 1


async def test_redis_is_away(server: RedisServer) -> None:
    """A caller is answered without Redis. The operator sees how many webhooks nobody
    could compare with those of the other instance; the own ones are known."""
    async with pair(server) as (one, two):
        server.stop()
        first, again = [await ask(one, "/voice") for _ in range(2)]
        other = await ask(two, "/voice")

        assert (first[0], other[0]) == (200, 200)
        assert again == first != other
        assert repeats(one, "unknown") == repeats(two, "unknown") == 1
        assert repeats(one, "answered") == 1


async def test_one_bridge_without_redis() -> None:
    """A single instance has no Redis and needs none for this."""
    async with deployed() as place:
        answers = {await ask(place, "/voice") for _ in range(3)}

        assert len(answers) == 1
        assert (repeats(place, "answered"), repeats(place, "unknown")) == (2, 0)


async def test_documents_of_the_previous_version(server: RedisServer) -> None:
    """While a version is rolled out, calls have documents whose URL is the same each
    time: each request gets a new answer."""
    async with pair(server) as (one, two):
        await one.server.registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        answers = [await ask(place, "/voice/next") for place in (one, two)]

        assert all("<Stream" in text for _, text in answers)
        assert answers[0] != answers[1]


# --- an instance that fails or is killed while it answers ---


@dataclass
class Instance:
    repeated: RepeatedWebhooks
    counted: list[str]


@asynccontextmanager
async def instance(url: str) -> AsyncIterator[Instance]:
    counted: list[str] = []
    async with (
        redis_registry(url, lambda: InstanceLoad(1, 0)) as registry,
        BackgroundTasks(0.2) as tasks,
    ):
        ignored = Ignored(counted.append)
        repeated = RepeatedWebhooks(registry, tasks, counted.append, ignored)
        yield Instance(repeated, counted)


async def answer() -> web.Response:
    return web.Response(text="<Response />", content_type="text/xml")


async def test_a_webhook_that_failed_is_answered_anew(server: RedisServer) -> None:
    """The first instance had a bug or was cancelled: the retry gets a call."""
    async with instance(server.url) as one, instance(server.url) as two:

        async def fails() -> web.Response:
            raise RuntimeError("a bug")

        async def waits() -> web.Response:
            await asyncio.sleep(60)
            raise AssertionError

        with pytest.raises(RuntimeError):
            await one.repeated.answer("signature", "content", fails)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await one.repeated.answer("other", "content", waits)
        for signature in ("signature", "other"):
            found = await two.repeated.answer(signature, "content", answer)
            assert found.text == "<Response />"


async def test_an_instance_is_killed_while_it_answers(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balancer asks the next instance, which waits for the first one's answer,
    gives 503, and at the next attempt answers itself: the caller is not lost."""
    monkeypatch.setattr(repeated_webhooks, "CLAIM_SECONDS", 1.0)
    monkeypatch.setattr(repeated_webhooks, "WAIT_SECONDS", 0.6)
    async with instance(server.url) as two:
        async with instance(server.url) as one:
            registry = one.repeated._registry
            key = repeated_webhooks._digest("signature")
            assert await registry.set_if_absent(f"webhook:{key}", 1.0)
        # Nothing is left of the first one but its claim.
        with pytest.raises(web.HTTPServiceUnavailable):
            await two.repeated.answer("signature", "content", answer)
        found = await two.repeated.answer("signature", "content", answer)

        assert found.text == "<Response />"
        assert two.counted == ["waited"]


async def test_another_content(server: RedisServer) -> None:
    """A signature is valid for what was first received with it."""
    async with instance(server.url) as one, instance(server.url) as two:
        await one.repeated.answer("signature", "content", answer)
        with pytest.raises(NotRepeated):
            await two.repeated.answer("signature", "another content", answer)


# --- the bridge's own documents never lead to the same request twice ---


def action(text: str) -> str:
    """The URL that Twilio requests after this document."""
    document = ElementTree.fromstring(text)
    for element in document.iter():
        if element.tag in ("Connect", "Dial") and "action" in element.attrib:
            return element.attrib["action"]
        if element.tag == "Redirect":
            return element.text or ""
    return ""


async def follow(
    place: RunningBridge, url: str, form: Mapping[str, str] = TWILIO, most: int = 20
) -> list[list[str]]:
    """The verbs of the documents that lead from one to the next."""
    seen, found = set[str](), []
    while url and len(found) < most:
        assert url not in seen, "Twilio would ask the same again"
        seen.add(url)
        status, text = await ask(place, url, form)
        assert status == 200
        found.append([it.tag for it in ElementTree.fromstring(text)])
        url = action(text)
    assert repeats(place, "answered") == 0
    return found


async def test_streams_that_break_again_and_again(server: RedisServer) -> None:
    """Each lost stream gets another one, up to the limit; then the apology."""
    async with pair(server) as (one, _):
        await one.server.registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        found = await follow(one, "/voice/next")

    assert found == [["Connect"]] * MAX_RESUMES + [["Say", "Hangup"]]


async def test_a_first_stream_that_is_refused(server: RedisServer) -> None:
    """Twilio's handshake came late twice: two more streams, then the apology."""
    async with pair(server) as (one, _):
        found = []
        url = "/voice"
        for _turn in range(MAX_REFUSALS + 2):
            status, text = await ask(one, url)
            assert status == 200
            found.append([it.tag for it in ElementTree.fromstring(text)])
            url = action(text)
            await one.server.registry.put(f"{LATE_TICKET}:{CALL}", b"1", 60)

        assert repeats(one, "answered") == 0
    assert found == [["Connect"]] * (MAX_REFUSALS + 1) + [["Say", "Hangup"]]


async def test_turns_in_the_queue(server: RedisServer) -> None:
    """Each turn is a new request, until the wait is over or a line is free. So is the
    first stream after the wait, and the wait of a call that returns."""
    async with deployed(when_full="queue", max_calls=1) as place:
        place.server._services.capacity.streams = 1
        waiting = await follow(place, "/voice", most=6)
        place.server._services.capacity.streams = 0
        await place.server.registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        place.server._services.capacity.streams = 1
        entry = CallEntry(CALL, "MZ1", 0.0)
        await place.server.registry.closed(entry, NextStep(Then.RESUME))
        returning = await follow(place, "/voice/next", most=6)

    for found in (waiting, returning):
        assert [it[-1] for it in found] == ["Redirect"] * 6


async def test_all_instances_stop(server: RedisServer) -> None:
    """A caller who waits for the restart asks twice, and gets two answers."""
    async with deployed(redis_url=SecretStr(server.url)) as place:
        await place.server.registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        place.server._services.capacity.draining = True
        found = await follow(place, "/voice/next")

    restarts = [["Say", "Pause", "Redirect"]] * MAX_RESTART_WAITS
    assert found == [*restarts, ["Say", "Hangup"]]


async def test_transfers_that_nobody_answers(server: RedisServer) -> None:
    """The caller comes back from each transfer. Twilio sends no `DialCallSid` for a
    number that it could not dial, so the fields are the same each time."""
    dialled = {**TWILIO, "DialCallStatus": "failed"}
    async with deployed() as place:
        registry, found = place.server.registry, []
        await registry.put(f"snapshot:{CALL}", TALK.encoded(FORMAT), 60)
        url = "/voice/next"
        for _turn in range(3):
            step = NextStep(Then.TRANSFER, NUMBER)
            await registry.opened(CallEntry(CALL, f"MZ{_turn}", 0.0))
            await registry.closed(CallEntry(CALL, f"MZ{_turn}", 0.0), step)
            status, text = await ask(place, url.partition("?back")[0])
            assert status == 200
            found.append(ElementTree.fromstring(text)[0].tag)
            status, text = await ask(place, action(text), dialled)
            assert status == 200
            found.append(ElementTree.fromstring(text)[0].tag)
            url = f"/voice/next?once={_turn}"

        assert repeats(place, "answered") == 0
        assert (await ask(place, "/voice/next?dialled=1", TWILIO))[0] == 400
    assert found == ["Dial", "Connect"] * 3


# --- one recorded webhook, many forms ---


@pytest.mark.parametrize(
    "name", ["a call", "the end of a transfer", "a status", "a detection"]
)
async def test_a_recorded_webhook_is_not_another_one(name: str) -> None:
    """An attacker sends every form with the recorded signature: all are refused, no
    call is answered, and the operator sees it."""
    recorded = RECORDED[name]
    account = recorded.form["AccountSid"]
    async with deployed(twilio_account_sid=account) as place:
        url = PUBLIC + recorded.target
        signature = sign(url, dict(recorded.form))
        forms = [dict(it) for it in itertools.islice(remade(recorded), 150)]
        assert len(forms) > 50
        answers = [await _send(place, recorded, it, signature) for it in forms]
        genuine = await _send(place, recorded, recorded.form, signature)

        assert not [it for it in answers if it < 400]
        assert refusals(place, "fields") + refusals(place, "account") == len(forms)
        assert genuine in (200, 204)


async def _send(
    place: RunningBridge, recorded: Recorded, form: Mapping[str, str], signature: str
) -> int:
    status, _ = await post(place, dict(form), signature, recorded.target)
    return status
