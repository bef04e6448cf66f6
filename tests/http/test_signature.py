"""Twilio's signatures, made with Twilio's own library: which requests are accepted."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict, MultiDictProxy
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

from bridge.http.signature import Signatures, websocket_origin

TOKEN = "0123456789abcdef0123456789abcdef"
ORIGIN = "https://bridge.example.com"
FORM = {"CallSid": "CA1", "From": "+14155550100", "To": "+14155550199", "Empty": ""}


def headers(signature: str | None, settings: str | None = None) -> CIMultiDict[str]:
    """Header names in lower case, as in a handshake."""
    found = {"x-twilio-signature": signature}
    found["x-twilio-webhooks-signature-settings"] = settings
    return CIMultiDict({name: it for name, it in found.items() if it is not None})


def sign(url: str, form: object = None, token: str = TOKEN) -> str:
    """The signature that Twilio would send."""
    return str(RequestValidator(token).compute_signature(url, form or {}))


@pytest.fixture
def signatures() -> Signatures:
    return Signatures(ORIGIN, [TOKEN])


# --- webhooks ---


def test_the_example_of_twilios_security_page() -> None:
    """The one example whose result Twilio has published."""
    form = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    signatures = Signatures("https://mycompany.com", ["12345"])

    assert signatures.form(
        "/myapp.php?foo=1&bar=2", form, headers("RSOYDt4T1cUTdK1PDd93/VVr8B8=")
    )


@pytest.mark.parametrize("target", ["/voice", "/voice/next?a=1&b=%20x", "/voice/"])
@pytest.mark.parametrize("port", ["", ":443"])
def test_a_signed_webhook_is_accepted(
    signatures: Signatures, target: str, port: str
) -> None:
    """Twilio's request is accepted whether its URL was signed with or without the
    port."""
    signed = sign(f"{ORIGIN}{port}{target}", FORM)

    assert signatures.form(target, FORM, headers(signed)) is True


def test_an_origin_with_a_port() -> None:
    """A bridge on port 8443 gets calls like any other."""
    signatures = Signatures("https://bridge.example.com:8443", [TOKEN])

    assert signatures.form(
        "/voice", FORM, headers(sign("https://bridge.example.com:8443/voice", FORM))
    )
    assert signatures.handshake(
        "/media", headers(sign("wss://bridge.example.com:8443/media"))
    )
    assert not signatures.handshake(
        "/media", headers(sign("wss://bridge.example.com:80/media"))
    )


def test_repeated_form_names_are_all_signed(signatures: Signatures) -> None:
    """A form with a repeated name is accepted, and none of its values can be
    changed."""
    form = MultiDict([*FORM.items(), ("Digits", "2"), ("Digits", "1")])
    signed = sign(f"{ORIGIN}/voice", form)
    changed = MultiDict([*FORM.items(), ("Digits", "2"), ("Digits", "3")])

    assert signatures.form("/voice", MultiDictProxy(form), headers(signed))
    assert not signatures.form("/voice", changed, headers(signed))
    assert not signatures.form("/voice", {**FORM, "Digits": "2"}, headers(signed))


@pytest.mark.parametrize("signature", [None, "", "x", "é" * 28, "=" * 28])
def test_a_missing_or_wrong_signature_is_refused(
    signatures: Signatures, signature: str | None
) -> None:
    """A stranger who knows the URL cannot start a call at the user's expense."""
    assert signatures.form("/voice", FORM, headers(signature)) is False
    assert signatures.handshake("/media", headers(signature)) is False


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
    """A caller cannot use another caller's number."""
    signed = sign(f"{ORIGIN}/voice", FORM)

    assert not signatures.form("/voice", form, headers(signed))  # type: ignore[arg-type]


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
    """A signature for one URL is not valid for another."""
    assert not signatures.form("/voice", FORM, headers(sign(url, FORM)))


def test_another_accounts_signature_is_refused(signatures: Signatures) -> None:
    """A signature made with another account's token is refused."""
    assert not signatures.form(
        "/voice", FORM, headers(sign(f"{ORIGIN}/voice", FORM, "f" * 32))
    )
    theirs = sign("wss://bridge.example.com/media", token="f" * 32)
    assert not signatures.handshake("/media", headers(theirs))


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
def test_a_signed_stream_is_accepted(signatures: Signatures, url: str) -> None:
    """Every form in which Twilio was seen to sign a stream is accepted."""
    assert signatures.handshake("/media", headers(sign(url))) is True


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
    """A signature for another URL opens no paid session here."""
    assert not signatures.handshake("/media", headers(sign(url)))


def test_a_form_signature_is_not_valid_for_a_stream(signatures: Signatures) -> None:
    """The signature of a webhook is not valid for a stream."""
    assert not signatures.handshake("/media", headers(sign(f"{ORIGIN}/media", FORM)))


def test_a_stream_on_an_http_origin() -> None:
    """In development without TLS, the stream is signed as ws."""
    signatures = Signatures("http://127.0.0.1:8080", [TOKEN])

    assert signatures.handshake("/media", headers(sign("ws://127.0.0.1:8080/media")))
    assert not signatures.handshake(
        "/media", headers(sign("wss://127.0.0.1:8080/media"))
    )


def test_the_origin_of_a_stream() -> None:
    """The scheme of the stream's URL matches that of the webhooks."""
    assert websocket_origin("https://a.example") == "wss://a.example"
    assert websocket_origin("http://a.example:8080") == "ws://a.example:8080"


@given(
    st.text(max_size=30),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    st.text(max_size=30),
)
def test_a_guessed_signature_is_never_accepted(
    path: str, form: dict[str, str], signature: str
) -> None:
    """Without the token no request is accepted, whatever its path, form and
    signature."""
    signatures = Signatures(ORIGIN, [TOKEN])

    assert signatures.form(f"/{path}", form, headers(signature)) is False
    assert signatures.handshake(f"/{path}", headers(signature)) is False


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("http://[::1]/media", id="a whole url, as to a proxy"),
        pytest.param(":99999/media", id="a port that is none"),
        pytest.param("/media\udcff", id="a byte that is no text"),
    ],
)
def test_a_malformed_target_is_refused(signatures: Signatures, target: str) -> None:
    """A malformed target is refused, and no traceback is logged."""
    assert signatures.handshake(target, headers("x" * 28)) is False
    assert signatures.form(target, FORM, headers("x" * 28)) is False


# --- two tokens, shared keys, JSON bodies ---


@pytest.mark.parametrize("token", [TOKEN, "f" * 32])
def test_both_tokens_are_accepted_during_a_rotation(token: str) -> None:
    """Calls are accepted before, during and after a change of the token at Twilio."""
    signatures = Signatures(ORIGIN, [TOKEN, "f" * 32])

    signed = sign(f"{ORIGIN}/voice", FORM, token)
    assert signatures.form("/voice", FORM, headers(signed))
    stream = sign("wss://bridge.example.com/media", token=token)
    assert signatures.handshake("/media", headers(stream))
    third = sign(f"{ORIGIN}/voice", FORM, "e" * 32)
    assert not signatures.form("/voice", FORM, headers(third))


KEY_ID, KEY = "webhooks_sharedkey_1", "the-secret-of-the-shared-key"
NAMED = f"key={KEY_ID},algorithm=HMAC_SHA256"


def shared(url: str, form: object = None, key: str = KEY) -> str:
    """A signature by a SharedKey, as Twilio would send it."""
    validator = RequestValidator(key)
    return str(validator.compute_signature(url, form or {}, "HMAC_SHA256"))


@pytest.fixture
def with_shared_key() -> Signatures:
    return Signatures(ORIGIN, [TOKEN], {KEY_ID: KEY})


def test_a_webhook_signed_with_a_shared_key(with_shared_key: Signatures) -> None:
    """Calls of an account that signs with SharedKeys are accepted; the token still
    works."""
    signed = shared(f"{ORIGIN}/voice", FORM)

    assert with_shared_key.form("/voice", FORM, headers(signed, NAMED))
    spaced = f"algorithm=hmac_sha256 , key={KEY_ID}"
    assert with_shared_key.form("/voice", FORM, headers(signed, spaced))
    stream = shared("wss://bridge.example.com/media")
    assert with_shared_key.handshake("/media", headers(stream, NAMED))
    by_token = sign(f"{ORIGIN}/voice", FORM)
    assert with_shared_key.form("/voice", FORM, headers(by_token))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        pytest.param("key=another,algorithm=HMAC_SHA256", KEY, id="an unknown key"),
        pytest.param("algorithm=HMAC_SHA256", KEY, id="no key is named"),
        pytest.param(NAMED, TOKEN, id="the token under another algorithm"),
        pytest.param(NAMED, "", id="an empty secret"),
        pytest.param(f"key={KEY_ID},algorithm=HMAC_MD5", KEY, id="another algorithm"),
        pytest.param(f"key={KEY_ID},algorithm=none", KEY, id="no algorithm"),
        pytest.param(f"key={KEY_ID}", KEY, id="the old algorithm"),
        pytest.param("", KEY, id="nothing is named"),
    ],
)
def test_the_settings_header_is_not_trusted(
    with_shared_key: Signatures, settings: str, key: str
) -> None:
    """The header that names key and algorithm is not trusted."""
    signed = shared(f"{ORIGIN}/voice", FORM, key)

    assert not with_shared_key.form("/voice", FORM, headers(signed, settings))


def test_a_json_webhook(signatures: Signatures) -> None:
    """The URL is signed and contains the hash of the body, so neither can be
    changed."""
    body = '{"CallSid": "CA1", "CallerName": "Zoë"}'.encode()
    target = f"/voice?bodySHA256={sha256(body).hexdigest()}"
    signed = headers(sign(ORIGIN + target))

    assert signatures.json(target, body, signed)
    assert not signatures.json(target, body + b" ", signed)
    assert not signatures.json("/voice", body, headers(sign(f"{ORIGIN}/voice")))
    assert not signatures.json(target, b"\xff", signed)
    other = f"/voice?bodySHA256={sha256(b'{}').hexdigest()}"
    assert not signatures.json(other, b"{}", signed)
