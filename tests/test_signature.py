"""Twilio's signatures, made by Twilio's own library: who may come in, and who not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict, MultiDictProxy
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from bridge.signature import Signatures, websocket_origin

TOKEN = "0123456789abcdef0123456789abcdef"
ORIGIN = "https://bridge.example.com"
FORM = {"CallSid": "CA1", "From": "+14155550100", "To": "+14155550199", "Empty": ""}


def sign(url: str, form: object = None, token: str = TOKEN) -> str:
    """As Twilio signs it."""
    return str(RequestValidator(token).compute_signature(url, form or {}))


@pytest.fixture
def signatures() -> Signatures:
    return Signatures(ORIGIN, TOKEN)


# --- webhooks ---


def test_the_example_of_twilios_security_page() -> None:
    """Somebody else's arithmetic: the one example whose result Twilio has printed."""
    form = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    signatures = Signatures("https://mycompany.com", "12345")

    assert signatures.webhook(
        "/myapp.php?foo=1&bar=2", form, "RSOYDt4T1cUTdK1PDd93/VVr8B8="
    )


@pytest.mark.parametrize("target", ["/voice", "/voice/next?a=1&b=%20x", "/voice/"])
@pytest.mark.parametrize("port", ["", ":443"])
def test_a_signed_webhook_comes_in(
    signatures: Signatures, target: str, port: str
) -> None:
    """Twilio's request is served, whether it signs with the port or without."""
    signed = sign(f"{ORIGIN}{port}{target}", FORM)

    assert signatures.webhook(target, FORM, signed) is True


def test_an_origin_with_a_port_of_its_own() -> None:
    """A bridge on port 8443 is called as any other."""
    signatures = Signatures("https://bridge.example.com:8443", TOKEN)

    assert signatures.webhook(
        "/voice", FORM, sign("https://bridge.example.com:8443/voice", FORM)
    )
    assert signatures.handshake("/media", sign("wss://bridge.example.com:8443/media"))
    assert not signatures.handshake("/media", sign("wss://bridge.example.com:80/media"))


def test_a_name_that_comes_twice_is_signed_twice(signatures: Signatures) -> None:
    """A form with a repeated name is Twilio's too; none of its values can change."""
    form = MultiDict([*FORM.items(), ("Digits", "2"), ("Digits", "1")])
    signed = sign(f"{ORIGIN}/voice", form)
    changed = MultiDict([*FORM.items(), ("Digits", "2"), ("Digits", "3")])

    assert signatures.webhook("/voice", MultiDictProxy(form), signed)
    assert not signatures.webhook("/voice", changed, signed)
    assert not signatures.webhook("/voice", {**FORM, "Digits": "2"}, signed)


@pytest.mark.parametrize("signature", [None, "", "x", "é" * 28, "=" * 28])
def test_without_a_signature_nobody_comes_in(
    signatures: Signatures, signature: str | None
) -> None:
    """A stranger who knows the url opens no call on somebody else's bill."""
    assert signatures.webhook("/voice", FORM, signature) is False
    assert signatures.handshake("/media", signature) is False


@pytest.mark.parametrize(
    "form",
    [
        {**FORM, "From": "+19005550100"},
        {**FORM, "Extra": "1"},
        {key: value for key, value in FORM.items() if key != "To"},
        {},
    ],
)
def test_a_changed_form_is_refused(signatures: Signatures, form: object) -> None:
    """Nobody calls in under another's number."""
    signed = sign(f"{ORIGIN}/voice", FORM)

    assert not signatures.webhook("/voice", form, signed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        f"{ORIGIN}/voice/next",
        f"{ORIGIN}/voice?x=1",
        f"{ORIGIN}/Voice",
        "https://other.example.com/voice",
        "https://bridge.example.com:8443/voice",
    ],
)
def test_a_signature_of_another_url_is_refused(
    signatures: Signatures, url: str
) -> None:
    """What was signed for one door opens no other."""
    assert not signatures.webhook("/voice", FORM, sign(url, FORM))


def test_another_accounts_signature_is_refused(signatures: Signatures) -> None:
    """Another customer of Twilio's is a stranger here."""
    assert not signatures.webhook(
        "/voice", FORM, sign(f"{ORIGIN}/voice", FORM, "f" * 32)
    )
    theirs = sign("wss://bridge.example.com/media", token="f" * 32)
    assert not signatures.handshake("/media", theirs)


# --- the media stream ---


@pytest.mark.parametrize(
    "url",
    [
        "wss://bridge.example.com/media",
        "wss://bridge.example.com/media/",
        "wss://bridge.example.com:443/media",
        "wss://bridge.example.com:443/media/",
    ],
)
def test_a_signed_stream_comes_in(signatures: Signatures, url: str) -> None:
    """Each way in which Twilio has been seen to sign a stream connects the caller."""
    assert signatures.handshake("/media", sign(url)) is True


@pytest.mark.parametrize(
    "url",
    [
        "wss://bridge.example.com/other",
        "wss://bridge.example.com:8443/media",
        "wss://other.example.com/media",
        "wss://bridge.example.com/media?x=1",
        "https://bridge.example.com/media",
        "ws://bridge.example.com/media",
    ],
)
def test_a_stream_signed_for_another_url_is_refused(
    signatures: Signatures, url: str
) -> None:
    """A signature that was seen elsewhere opens no paid session here."""
    assert not signatures.handshake("/media", sign(url))


def test_a_signed_form_is_no_signed_stream(signatures: Signatures) -> None:
    """The signature of a webhook does not open the stream."""
    assert not signatures.handshake("/media", sign(f"{ORIGIN}/media", FORM))


def test_a_stream_on_an_http_origin() -> None:
    """While developing behind no TLS, the stream is signed as ws."""
    signatures = Signatures("http://127.0.0.1:8080", TOKEN)

    assert signatures.handshake("/media", sign("ws://127.0.0.1:8080/media"))
    assert not signatures.handshake("/media", sign("wss://127.0.0.1:8080/media"))


def test_the_origin_of_a_stream() -> None:
    """The stream's url has the scheme that goes with the webhooks'."""
    assert websocket_origin("https://a.example") == "wss://a.example"
    assert websocket_origin("http://a.example:8080") == "ws://a.example:8080"


@given(
    st.text(max_size=30),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    st.text(max_size=30),
)
def test_a_guess_never_comes_in(
    path: str, form: dict[str, str], signature: str
) -> None:
    """Whatever is asked and however it is signed, without the token nobody comes in."""
    signatures = Signatures(ORIGIN, TOKEN)

    assert signatures.webhook(f"/{path}", form, signature) is False
    assert signatures.handshake(f"/{path}", signature) is False


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("http://[::1]/media", id="a whole url, as to a proxy"),
        pytest.param(":99999/media", id="a port that is none"),
        pytest.param("/media\udcff", id="a byte that is no text"),
    ],
)
def test_a_target_that_is_no_path_is_refused(
    signatures: Signatures, target: str
) -> None:
    """A stranger's nonsense is turned away, and fills no log with tracebacks."""
    assert signatures.handshake(target, "x" * 28) is False
    assert signatures.webhook(target, FORM, "x" * 28) is False
