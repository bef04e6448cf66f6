"""Checks that a request is Twilio's: path and method, signature, account, form of the
fields, and that it did not come before.

It answers only requests that came by GET.
"""

import re
from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web
from multidict import MultiDict
from twilio.request_validator import (  # type: ignore[import-untyped]
    SIGNATURE_HEADER,
)

import twiml
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.app.warm_calls import OF_CALL
from bridge.fleet.ignored import Ignored
from bridge.fleet.plan import PLAN_SECONDS
from bridge.http.attempts import take_attempt
from bridge.http.authenticated import mark_authenticated
from bridge.http.parameters import TWILIOS
from bridge.http.repeated_webhooks import NotRepeated, RepeatedWebhooks
from bridge.http.signature import Signatures
from bridge.http.webhook_fields import (
    FORM,
    JSON,
    Webhook,
    form_of,
    json_of,
    misdivided,
    read_body,
)
from bridge.http.webhook_urls import BY_GET, EXPECTED, ONCE, url

log = structlog.get_logger()

MAX_GETS = 4
"""Limit per call: more of them are a loop of Twilio and a proxy, in which the caller
would hear nothing."""

DOCUMENTS = frozenset({"/voice", "/voice/next"})
"""Paths whose answer says what a caller hears."""

SCREENS = frozenset(
    {
        "/voice/whisper",
        "/voice/accept",
        "/voice/warm",
        "/voice/warm/answer",
        "/warm-status",
    }
)
"""Paths whose query names a call, besides the one of the webhook."""

_ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?", re.ASCII)


class SignedRequests:
    """`signatures` None: unsigned requests are accepted."""

    def __init__(
        self, settings: Settings, services: Services, signatures: Signatures | None
    ) -> None:
        self._settings = settings
        self._services = services
        self._registry = services.registry
        self._signatures = signatures
        self._repeated = RepeatedWebhooks(
            services.registry,
            services.background_tasks,
            services.metrics.repeated,
            Ignored(services.metrics.key_ignored),
        )

    def routes(
        self, answers: Mapping[str, Callable[[Webhook], Awaitable[web.Response]]]
    ) -> list[web.RouteDef]:
        """`answers`: path -> what answers its signed requests."""
        # A proxy may leave the path of BRIDGE_PUBLIC_URL, and may add a slash.
        prefixes = dict.fromkeys(("", self._settings.url_path))
        places = [(prefix, slash) for prefix in prefixes for slash in ("", "/")]
        found = []
        for path, it in answers.items():
            post, get = self._signed(path, it), self._by_get(path)
            for prefix, slash in places:
                found.append(web.post(f"{prefix}{path}{slash}", post))
                if path in DOCUMENTS:
                    address = f"{prefix}{path}{slash}"
                    found.append(web.get(address, get, allow_head=False))
        return found

    @web.middleware
    async def count_unknown(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Says why a request with Twilio's signature finds nothing: its URL has another
        path than ours, or a redirect has made another method of POST."""
        error = request.match_info.http_exception
        if error is not None and SIGNATURE_HEADER in request.headers:
            is_path = isinstance(error, web.HTTPNotFound)
            self._note_refusal("", "path" if is_path else "method")
        return await handler(request)

    def _by_get(
        self, path: str
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Answers a request for a document that came by GET: the number is set to GET,
        or a proxy's redirect (http to https) has made a GET of Twilio's POST. Twilio
        is told to POST to the public URL. The answer needs no signature: it says
        nothing else. A second GET is answered with the apology; if a proxy has removed
        the query that tells them apart, the last of MAX_GETS."""

        async def handle(request: web.Request) -> web.Response:
            self._note_refusal(path, "method")
            if BY_GET in request.query:
                return _document(twiml.sorry())
            kept: dict[str, str] = {}
            if self._signatures and self._signatures.of(
                request.query.get("AccountSid", "")
            ).form(request.raw_path, {}, request.headers):
                name = f"by_get:{request.query.get('CallSid', '')}"
                if not await take_attempt(self._registry, name, MAX_GETS - 1):
                    return _document(twiml.sorry())
                kept = {
                    name: text
                    for name, text in request.query.items()
                    if not TWILIOS.fullmatch(name)
                }
            origin = self._origin(request)
            webhook = Webhook(request, MultiDict(), origin)
            return _document(twiml.redirect(url(webhook, path, {**kept, BY_GET: "1"})))

        return handle

    def _signed(
        self, path: str, answer: Callable[[Webhook], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Passes on requests that Twilio signed for this account; 403 for others. 415,
        413, 408 or 400 if a request cannot be read."""

        async def handle(request: web.Request) -> web.Response:
            if request.content_type not in (FORM, JSON):
                raise web.HTTPUnsupportedMediaType(
                    text="the body is not a form or JSON"
                )
            body = await read_body(request.read(), self._services)
            form = form_of(body) if request.content_type == FORM else json_of(body)
            if self._signatures and not self._is_signed(request, form, body):
                raise self._refused(path, "signature", "not signed by Twilio")
            accounts = self._settings.account_sids
            if accounts and form.get("AccountSid") not in accounts:
                raise self._refused(path, "account", "AccountSid is of another account")
            required = [it for name, it in EXPECTED.items() if name in request.query]
            if wrong := misdivided(path, request.raw_path, form, *required):
                log.warning("webhook_refused", path=path, why=wrong)
                self._services.metrics.refused("fields")
                raise web.HTTPBadRequest(text=wrong)
            webhook = Webhook(request, form, self._origin(request))
            calls = [webhook.call_sid]
            if path in SCREENS:
                calls.append(webhook.query.get(OF_CALL, ""))
            for call_sid in calls:
                if not await self._is_of_account(call_sid, webhook.account_sid):
                    what = "the call is of another account"
                    raise self._refused(path, "account", what)
            return await self._answer_once(webhook, path, answer)

        return handle

    async def _answer_once(
        self,
        webhook: Webhook,
        path: str,
        answer: Callable[[Webhook], Awaitable[web.Response]],
    ) -> web.Response:
        """A request whose signature was seen before gets the first answer, and proves
        nothing about its sender; 403 if it can be no request of Twilio."""
        request = webhook.request
        if not self._signatures or not _is_used_once(request, path):
            return await answer(webhook)

        async def first() -> web.Response:
            mark_authenticated(request)
            return await answer(webhook)

        signature = request.headers[SIGNATURE_HEADER]
        content = repr((request.raw_path, sorted(webhook.form.items())))
        try:
            return await self._repeated.answer(signature, content, first)
        except NotRepeated:
            why = "repeated"
            raise self._refused(path, why, "the signature was used before") from None

    def _is_signed(
        self, request: web.Request, form: "MultiDict[str]", body: bytes
    ) -> bool:
        assert self._signatures, "checked only if there are signatures"
        target, headers = request.raw_path, request.headers
        signatures = self._signatures.of(form.get("AccountSid", ""))
        if request.content_type == JSON:
            return signatures.json(target, body, headers)
        return signatures.form(target, form, headers)

    async def _is_of_account(self, call_sid: str, account_sid: str) -> bool:
        """False if an earlier webhook named the call as one of another account: whoever
        has the token of one account must not reach the calls of another one."""
        if not self._settings.twilio_accounts:
            return True
        name, account = f"account:{call_sid}", account_sid.encode()
        known = await self._registry.get(name)
        if known is None:
            # Another account may name the call at the same time, on any instance.
            if await self._registry.set_if_absent(name, PLAN_SECONDS, account):
                return True
            known = await self._registry.get(name)
        return known == account

    def _refused(self, path: str, why: str, text: str) -> web.HTTPForbidden:
        self._note_refusal(path, why)
        return web.HTTPForbidden(text=text)

    def _note_refusal(self, path: str, why: str) -> None:
        log.warning("webhook_refused", path=path, why=why)
        self._services.metrics.refused(why)

    def _origin(self, request: web.Request) -> str:
        """The origin from the settings. Without one (development only), the origin that
        the request or the tunnel names."""
        if self._settings.public_url:
            return self._settings.public_url
        scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
        host = request.headers.get("X-Forwarded-Host", request.host)
        origin = f"{scheme.split(',')[0].strip()}://{host.split(',')[0].strip()}"
        if not _ORIGIN.fullmatch(origin):
            raise web.HTTPBadRequest(text="the Host header is missing or malformed")
        return origin


def _is_used_once(request: web.Request, path: str) -> bool:
    """Twilio requests this URL once with the same fields. Not `/voice/next` as a TwiML
    Bin and the previous version name it; `/stream-status` changes nothing."""
    if path == "/voice/next":
        return ONCE in request.query
    return path != "/stream-status"


def _document(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
