"""A fake of OpenAI's side of SIP calls: the webhook that announces a call, and the REST
API that decides about it. ModelServer has the control socket.

Written from OpenAI's documentation and the Standard Webhooks specification, not from
the `openai` package: a fake must not share the mistakes of the code that it checks.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

from bridge.sim.model import ModelServer
from bridge.sim.realtime.client_events import InvalidRequestError, Json, check
from bridge.sim.realtime.leg import check_formats
from bridge.sim.realtime.phone_call import PhoneCall, SipCallState

WEBHOOK_SECONDS = 15.0
# The turn detection of a SIP leg accepts none of these (openai-agents-js, transport
# guide).
NOT_ON_SIP = ("threshold", "prefix_padding_ms", "silence_duration_ms")
_SIP_STATUSES = range(300, 700)
_BODY_BYTES = 1024 * 1024


class CallsServer:
    """`async with CallsServer(model) as calls:`, then `await calls.ring(webhook)`.

    The API is at `calls.url`. An accepted call's control socket is at `model.url`.
    """

    def __init__(
        self,
        model: ModelServer,
        *,
        api_key: str = "sk-sim",
        secret: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        late: int = 0,
        fail: Mapping[str, int] | None = None,
        lose: Collection[str] = (),
        stall: Mapping[str, int] | None = None,
    ) -> None:
        """`late`: this many handshakes after an accept are refused as too early (404).

        `fail`: verb ("accept", "refer" ...) -> HTTP status of its answer. `lose`: verbs
        that are carried out, but answered with 500. `stall`: verb -> number of its next
        requests that are neither carried out nor answered.
        """
        self.secret = secret or new_secret()
        self.calls: list[PhoneCall] = []
        self.requests: list[tuple[str, Json]] = []  # (verb, request body), in order
        self.fail = dict(fail or {})
        self.lose = frozenset(lose)
        self.stall = dict(stall or {})
        self._closing = asyncio.Event()
        self._model = model
        self._api_key = api_key
        self._host = host
        self._port = port
        self._late = late
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        assert self._runner is not None
        return f"http://{self._host}:{self._runner.addresses[0][1]}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_BODY_BYTES)
        verbs: dict[str, Callable[[PhoneCall, Json], None]] = {
            "accept": self._accept,
            "reject": self._reject,
            "refer": self._refer,
            "hangup": self._hang_up,
        }
        for verb, act in verbs.items():
            path = f"/v1/realtime/calls/{{call_id}}/{verb}"
            app.router.add_post(path, self._endpoint(verb, act))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        limit = aiohttp.ClientTimeout(total=WEBHOOK_SECONDS)
        self._http = aiohttp.ClientSession(timeout=limit)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._runner is not None and self._http is not None
        self._closing.set()
        await self._http.close()
        await self._runner.cleanup()

    # --- the phone rings ---

    async def ring(
        self,
        webhook_url: str,
        *,
        caller: str = "+14155550123",
        called: str = "+14155550100",
        headers: Mapping[str, str] | None = None,
        copies: int = 1,
        age: float = 0.0,
        secret: str | None = None,
        without: Collection[str] = (),
    ) -> PhoneCall:
        """Announce a call. Returns when its webhook has been answered.

        `headers`: added to the usual headers of the INVITE. `copies`: deliveries under
        one webhook-id. `age`: seconds between signing and sending. `secret`: signs with
        this secret instead of the right one. `without`: webhook headers that are left
        out.
        """
        call_id = f"rtc_{secrets.token_hex(12)}"
        call = PhoneCall(call_id, caller, called, late=self._late)
        self.calls.append(call)
        self._model.calls[call.id] = call
        event = incoming(call, headers or {})
        for status in await self.send(
            webhook_url, event, copies=copies, age=age, secret=secret, without=without
        ):
            call.answers.append(status)
        return call

    async def send(
        self,
        webhook_url: str,
        event: Json,
        *,
        copies: int = 1,
        age: float = 0.0,
        secret: str | None = None,
        without: Collection[str] = (),
    ) -> list[int]:
        """Send any event, signed. Returns the HTTP status of each delivery."""
        assert self._http is not None
        body = json.dumps(event).encode()
        stamp = int(time.time() - age)
        webhook_id = f"wh_{secrets.token_hex(16)}"
        headers = {
            "content-type": "application/json",
            "user-agent": "OpenAI/1.0 (+https://platform.openai.com/docs/webhooks)",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(stamp),
            "webhook-signature": sign(secret or self.secret, webhook_id, stamp, body),
        }
        for name in without:
            del headers[name]
        statuses = []
        for _ in range(copies):
            async with self._http.post(
                webhook_url, data=body, headers=headers
            ) as response:
                statuses.append(response.status)
        return statuses

    # --- the API ---

    def _endpoint(
        self, verb: str, act: Callable[[PhoneCall, Json], None]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            if scheme != "Bearer" or key != self._api_key:
                return _error(401, "Incorrect API key provided.", "invalid_api_key")
            raw = await request.read()
            try:
                body = json.loads(raw) if raw else {}
            except ValueError:
                return _error(400, "The body is not JSON.", "invalid_json")
            self.requests.append((verb, body))
            if self.stall.get(verb):
                self.stall[verb] -= 1
                await self._closing.wait()
                return _error(500, "Stalled.", "stalled")
            if verb in self.fail:
                return _error(self.fail[verb], "Scripted.", "scripted")
            call_id = request.match_info["call_id"]
            call = self._model.calls.get(call_id)
            if call is None or call.state not in (
                SipCallState.RINGING,
                SipCallState.TALKING,
            ):
                message = f"No session found for call_id {call_id}"
                return _error(404, message, "call_id_not_found")
            try:
                act(call, body)
            except InvalidRequestError as refused:
                return _error(400, refused.message, refused.code, refused.param)
            if verb in self.lose:
                return _error(500, "The answer was lost.", "lost")
            return web.Response(status=200)

        return answer

    def _accept(self, call: PhoneCall, body: Json) -> None:
        # The error code of a second accept is undocumented.
        if call.state is not SipCallState.RINGING:
            raise InvalidRequestError(
                "This call was accepted before.", "call_already_accepted"
            )
        try:
            check({"type": "session.update", "session": body})
            check_formats(body)
        except InvalidRequestError as refused:
            param = (refused.param or "").removeprefix("session.")
            raise InvalidRequestError(refused.message, refused.code, param) from None
        detection = (body.get("audio", {}).get("input") or {}).get("turn_detection")
        for name in NOT_ON_SIP:
            if name in (detection or {}):
                param = f"audio.input.turn_detection.{name}"
                problem = f"Unknown parameter: '{param}'."
                raise InvalidRequestError(problem, "unknown_parameter", param)
        call.body = body
        call.move(SipCallState.TALKING)

    def _reject(self, call: PhoneCall, body: Json) -> None:
        if call.state is not SipCallState.RINGING:
            raise InvalidRequestError(
                "This call was accepted before.", "call_already_accepted"
            )
        status = body.get("status_code", 603)
        if type(status) is not int or status not in _SIP_STATUSES:
            raise InvalidRequestError(
                "Not a SIP status.", "invalid_value", "status_code"
            )
        call.sip_status = status
        call.end(SipCallState.REJECTED, "api")

    def _refer(self, call: PhoneCall, body: Json) -> None:
        self._check_talking(call)
        target = body.get("target_uri")
        if not isinstance(target, str) or not target.startswith(("tel:", "sip:")):
            raise InvalidRequestError(
                "Not a tel: or sip: URI.", "invalid_value", "target_uri"
            )
        call.target = target
        call.end(SipCallState.REFERRED, "api")

    def _hang_up(self, call: PhoneCall, body: Json) -> None:
        self._check_talking(call)
        call.end(SipCallState.ENDED, "api")

    def _check_talking(self, call: PhoneCall) -> None:
        if call.state is not SipCallState.TALKING:
            raise InvalidRequestError(
                "This call was not accepted.", "call_not_accepted"
            )


def incoming(call: PhoneCall, headers: Mapping[str, str]) -> Json:
    """The realtime.call.incoming event of `call`, with the headers of its INVITE."""
    host = "sip.example.com"
    sip = {
        "From": f'"A caller" <sip:{call.caller}@{host};user=phone>;tag=a1b2',
        "To": f"<sip:{call.called}@sip.api.openai.com;transport=tls>",
        "Call-ID": f"{secrets.token_hex(8)}@{host}",
        **headers,
    }
    return {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "created_at": int(time.time()),
        "type": "realtime.call.incoming",
        "data": {
            "call_id": call.id,
            "sip_headers": [{"name": n, "value": v} for n, v in sip.items()],
            "sip_media_security": "srtp",
        },
    }


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header of a delivery.

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec: HMAC-SHA256
    over id, timestamp and body. The key is the base64 text after `whsec_`.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def _error(
    status: int, message: str, code: str | None, param: str | None = None
) -> web.Response:
    error = {
        "message": message,
        "type": "invalid_request_error" if status < 500 else "server_error",
        "param": param,
        "code": code,
    }
    return web.json_response({"error": error}, status=status)
