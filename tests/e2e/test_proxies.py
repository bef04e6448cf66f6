"""What a proxy in front of the bridge does to Twilio's requests: a path, a slash, a
redirect, an order of the query. The caller hears the agent all the same."""

from xml.etree import ElementTree

import aiohttp
import pytest
from structlog.testing import capture_logs

from tests.e2e.bridge import RunningBridge
from tests.e2e.test_attacks import FORM, deployed, opened, post, refusals, sign

ORIGIN = "https://bridge.example"
PUBLIC = f"{ORIGIN}/phone"


def stream_of(document: str) -> str:
    found = ElementTree.fromstring(document).find(".//Stream")
    assert found is not None
    return found.attrib["url"]


@pytest.mark.parametrize("passes", ["/phone", ""])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_public_url_with_a_path(passes: str, slash: str) -> None:
    """The proxy passes the path on or takes it away, and may add a slash."""
    async with deployed(public_url=PUBLIC) as place:
        signed = sign(f"{PUBLIC}/voice?a=1", FORM)
        path = f"{passes}/voice{slash}?a=1"
        status, document = await post(place, FORM, signed, path)
        assert status == 200
        url = stream_of(document)
        assert url.startswith("wss://bridge.example/phone/media/")
        action = ElementTree.fromstring(document)[0].attrib["action"]
        assert action.startswith(f"{PUBLIC}/voice/next?")
        target = passes + url.removeprefix("wss://bridge.example/phone") + slash
        async with await opened(place, target, signed=url) as socket:
            assert socket.state.name == "OPEN"

        assert refusals(place, "signature") == 0


async def test_a_query_may_be_signed_as_sent_or_sorted() -> None:
    """Twilio signs the parameters of some urls in another order than it sends them. A
    query with another content is refused."""
    sent, in_order = "/voice?tenant=x&a=1", "/voice?a=1&tenant=x"
    async with deployed(public_url=ORIGIN) as place:
        for number, signed in enumerate((sent, in_order)):
            form = {**FORM, "CallSid": f"CA{number}" + "1" * 31}
            good = await post(place, form, sign(ORIGIN + signed, form), sent)
            assert good[0] == 200
        other = sign(f"{ORIGIN}/voice?a=2&tenant=x", FORM)
        assert (await post(place, FORM, other, sent))[0] == 403


async def by_get(
    place: RunningBridge, path: str, signature: str = ""
) -> tuple[int, str]:
    headers = {"X-Twilio-Signature": signature} if signature else {}
    async with (
        aiohttp.ClientSession() as http,
        http.get(place.url + path, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def redirected_to(document: str) -> str:
    [verb] = ElementTree.fromstring(document)
    assert verb.tag == "Redirect" and verb.attrib["method"] == "POST"
    return str(verb.text)


async def test_a_post_that_a_redirect_has_made_a_get() -> None:
    """Twilio is told to POST to the https url, and the caller gets the agent, with the
    query of the operator's url. The operator sees why."""
    query = "tenant=acme&AccountSid=AC1&CallToken=secret"
    with capture_logs() as lines:
        async with deployed(public_url=ORIGIN) as place:
            target = f"/voice?{query}"
            status, document = await by_get(place, target, sign(ORIGIN + target))
            assert status == 200
            url = redirected_to(document)
            assert "tenant=acme" in url and "secret" not in url
            path = url.removeprefix(ORIGIN)
            assert (await post(place, FORM, sign(url, FORM), path))[0] == 200
            # Without a signature nothing of the request is repeated.
            unsigned = redirected_to((await by_get(place, target))[1])
            assert unsigned.startswith(f"{ORIGIN}/voice?by_get=1&once=")
            # A proxy that redirects every request: the caller hears an apology.
            again = (await by_get(place, path))[1]
            assert "<Say" in again and "<Redirect" not in again
            assert refusals(place, "method") == 3

    refused = [it for it in lines if it["event"] == "webhook_refused"]
    assert {(it["path"], it["why"]) for it in refused} == {("/voice", "method")}


async def test_a_redirect_that_also_drops_the_query() -> None:
    """Twilio and the proxy would send each other on for four hours: the caller hears an
    apology. Another caller is not affected."""
    async with deployed(public_url=ORIGIN) as place:

        async def verbs(call: str, count: int) -> list[str]:
            target = f"/voice/?AccountSid=AC1&CallSid={call}"
            answers = [
                await by_get(place, target, sign(ORIGIN + target)) for _ in range(count)
            ]
            return [ElementTree.fromstring(text)[0].tag for _, text in answers]

        assert await verbs("CA1", 5) == [*3 * ["Redirect"], "Say", "Say"]
        assert await verbs("CA2", 1) == ["Redirect"]


async def test_a_signed_request_for_another_path_is_counted() -> None:
    """An operator who has a typing error in the console finds the reason."""
    async with deployed(public_url=ORIGIN) as place:
        assert (await post(place, FORM, sign(f"{ORIGIN}/voic", FORM), "/voic"))[
            0
        ] == 404
        async with aiohttp.ClientSession() as http:
            headers = {"X-Twilio-Signature": "x"}
            async with http.get(f"{place.url}/call-status", headers=headers) as got:
                assert got.status == 405
        assert (await post(place, FORM, None, "/voic"))[0] == 404  # a stranger

        assert (refusals(place, "path"), refusals(place, "method")) == (1, 1)
