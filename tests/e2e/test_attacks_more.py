"""More attacks on a bridge in a deployment: the answer to each."""

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from urllib.parse import urlencode

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from tests.e2e.test_attacks import (
    FORM,
    OTHER_CALL,
    PUBLIC,
    close_code,
    deployed,
    opened,
    refusals,
    refused,
    sign,
    start,
    stream_path,
)

# --- handshakes of streams ---


async def test_capacity_that_is_reserved_for_a_returning_caller() -> None:
    """On a full instance that expects a caller back, another stream is refused, and its
    ticket stays valid for another instance."""
    async with deployed(max_calls=1) as place:
        theirs = await stream_path(place, {**FORM, "CallSid": OTHER_CALL})
        back = await stream_path(place)
        socket = await opened(place, await stream_path(place))
        await socket.send(start())
        await asyncio.sleep(0.1)
        socket.transport.abort()  # no `stop`: the connection broke
        await asyncio.sleep(0.1)

        assert await refused(place, theirs) == 503

        again = await opened(place, back)
        await again.send(start())
        await again.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(again) == 1000
        await place.empty()
        # The ticket was not used up.
        await (await opened(place, theirs)).close()

    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


# --- resources of the process ---


@pytest.mark.parametrize(("hard", "told"), [(5000, 0), (300, 1)])
def test_idle_connections_leave_enough_file_descriptors(hard: int, told: int) -> None:
    """Connections that send nothing do not take the file descriptors that calls need,
    whatever limit the shell has set. If they could, the operator is told."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
from bridge.cli.commands import _raise_file_limit
from bridge.app.settings import Settings
found = _raise_file_limit(Settings())
print(len(found), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    most = 2 * 500 + 256 + 4 * 200 + 100
    assert done.stdout.split() == [str(told), str(min(most, hard))]


BODY = json.dumps(FORM)
HASH = hashlib.sha256(BODY.encode()).hexdigest()


@pytest.mark.parametrize(
    ("query", "body", "kind", "status"),
    [
        (f"bodySHA256={HASH}", BODY, "json", 200),
        (f"bodySHA256={HASH.upper()}", BODY, "json", 403),
        (f"bodySHA256=0&bodySHA256={HASH}", BODY, "json", 403),
        (f"bodysha256={HASH}", BODY, "json", 403),
        ("bodySHA256=", BODY, "json", 403),
        ("x=1", BODY, "json", 403),
        (f"bodySHA256={HASH}", BODY.replace("0001", "0009"), "json", 403),
        (f"bodySHA256={HASH}", urlencode(FORM), "json", 400),
        # Only the URL is signed: no form may come with it.
        (
            f"bodySHA256={hashlib.sha256(urlencode(FORM).encode()).hexdigest()}",
            urlencode(FORM),
            "x-www-form-urlencoded",
            403,
        ),
        (
            f"bodySHA256={HASH}",
            '{"CallSid":' + "9" * 5000 + "}",
            "json",
            400,
        ),
    ],
)
async def test_a_body_that_was_not_signed(
    query: str, body: str, kind: str, status: int
) -> None:
    """Twilio's signature of a URL is valid only for the one body whose hash the URL
    contains."""
    target = f"/voice?{query}"
    headers = {
        "X-Twilio-Signature": sign(PUBLIC + target),
        "Content-Type": f"application/{kind}",
    }
    async with deployed() as place, aiohttp.ClientSession() as http:
        url = URL(place.url + target, encoded=True)
        async with http.post(url, data=body.encode(), headers=headers) as answer:
            assert answer.status == status


async def test_a_client_that_resets_after_its_handshake() -> None:
    """Its capacity is freed at once, and its ticket is used up."""
    async with deployed(max_calls=1) as place:
        path = await stream_path(place)
        (await opened(place, path)).transport.abort()
        await asyncio.sleep(0.1)

        assert await refused(place, path) == 403
        other = await opened(place, await stream_path(place))
        await other.send(start())
        await other.send('{"event":"stop","streamSid":"MZ1"}')
        assert await close_code(other) == 1000
        await place.empty()


async def test_a_forged_sip_webhook() -> None:
    """A webhook that OpenAI has not signed is refused, and the operator sees the
    refusal."""
    secret = SecretStr("whsec_" + "A" * 32)
    headers = {"webhook-id": "wh_1", "webhook-signature": "v1,AAAA"}
    headers["webhook-timestamp"] = str(int(time.time()))
    conf = {"openai_api_key": SecretStr("sk-x"), "openai_webhook_secret": secret}
    async with deployed(**conf) as place, aiohttp.ClientSession() as http:
        url = f"{place.url}/openai/webhook"
        async with http.post(url, data=b"{}", headers=headers) as answer:
            assert answer.status == 401

    assert refusals(place, "signature") == 1


# --- what is told to whom ---


@pytest.mark.parametrize(
    "name",
    ["Via", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"],
)
async def test_metrics_are_not_public_behind_other_proxies(name: str) -> None:
    """Some proxies do not send `X-Forwarded-For` but another header."""
    async with deployed() as place, aiohttp.ClientSession() as http:
        for path in ("/metrics", "/readyz", "/%6detrics", "/readyz?x"):
            url = URL(place.url + path, encoded=True)
            async with http.get(url, headers={name: "203.0.113.9"}) as answer:
                assert answer.status == 404, path
