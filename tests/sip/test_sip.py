"""Calls on the Realtime Calls API, from the webhook to the end, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from agents import (
    GuardrailFunctionOutput,
    HostedMCPTool,
    OutputGuardrail,
    RunContextWrapper,
    function_tool,
)
from agents.realtime import RealtimeAgent, realtime_handoff
from aiohttp import web
from openai.types.realtime import RealtimeSessionCreateRequest
from pydantic import SecretStr
from structlog.testing import capture_logs

from bridge.agent.events import CallEvent
from bridge.agent.live import BadRequest, CallOver, LiveCall, NotAllowed, Transfer
from bridge.agent.loader import AgentSource
from bridge.app.routes import (
    HangUpAction,
    ReportTarget,
    Route,
    Routes,
    Silence,
    TellAction,
)
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.call import sip_leg
from bridge.core.rules import Prices
from bridge.fleet.memory import MemoryRegistry
from bridge.http import sip_calls
from bridge.http.sip_calls import SipCalls, facts_of, number_of
from bridge.model import calls_api
from bridge.model.calls_api import (
    CallGone,
    CallsApi,
    CallsApiError,
    control_url,
    rest_url,
)
from bridge.model.session_settings import SessionSettings
from bridge.model.sip_session import ATTACH_TRIES
from bridge.privacy.redaction import KEYS, Redaction
from bridge.records.report import CallReport
from bridge.records.standard_webhooks import signed, signing_key
from bridge.sim.model import (
    Behaviour,
    CallTool,
    Fail,
    ModelServer,
    ModelSession,
    SayText,
    Turn,
)
from bridge.sim.realtime.calls import CallsServer, new_secret
from bridge.sim.realtime.phone_call import PhoneCall, SipCallState
from bridge.telemetry.trace import read, replay
from tests.sim.realtime_client import QUICK, speech
from tests.support.traces import text_of
from tests.support.waiting import until

Answer = tuple[int, str]

DESK = "+14155550199"
CALLER, CALLED = "+14155550123", "+14155550100"
GREETING = "Greet the caller."
PREMIUM = "+19005550100"
LONG = "This is a long answer which goes on and on, so that there is time to interrupt."
PLAIN: RealtimeAgent[LiveCall] = RealtimeAgent(name="plain", instructions="Be kind.")


@function_tool
async def weather(context: RunContextWrapper[LiveCall], city: str) -> str:
    """The weather."""
    return f"Rain in {city}, for {context.context.facts.from_number}."


@function_tool
async def hang_up(context: RunContextWrapper[LiveCall]) -> str:
    """Ends the call."""
    return str(await context.context.hang_up())


@function_tool
async def transfer(context: RunContextWrapper[LiveCall]) -> str:
    """Puts the caller through."""
    try:
        return str(await context.context.transfer(DESK))
    except (BadRequest, CallOver) as error:
        return f"{type(error).__name__}: {error}"


HELPFUL: RealtimeAgent[LiveCall] = RealtimeAgent(
    name="helpful", instructions="Help.", tools=[weather, hang_up, transfer]
)


@dataclass
class SipSetup:
    """A bridge's SIP side, OpenAI's side, and what came of calls."""

    model: ModelServer
    calls: CallsServer
    sip: SipCalls
    services: Services
    url: str
    begun: list[LiveCall] = field(default_factory=list)
    events: list[CallEvent] = field(default_factory=list)
    reports: list[CallReport] = field(default_factory=list)

    def instance(self, **changes: Any) -> SipCalls:
        """Another SIP side, with other services."""
        services = replace(self.services, **changes)
        return SipCalls(services, self.calls.secret, "sk-sim", self.calls.url)

    async def incoming(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Takes a webhook; a test may put a balancer here."""
        return await self.sip.incoming(headers, body)

    async def ring(self, **how: Any) -> PhoneCall:
        how = {"caller": CALLER, "called": CALLED} | how
        return await self.calls.ring(self.url, **how)

    async def talk(self, **how: Any) -> tuple[PhoneCall, ModelSession, LiveCall]:
        """A call whose session has begun."""
        call = await self.ring(**how)
        await until(lambda: call.session is not None and bool(call.session.received))
        assert call.session is not None
        return call, call.session, self.begun[-1]

    async def over(self) -> None:
        """Waits until nothing of any call is left."""
        await until(lambda: self.sip.calls == 0)
        assert await self.services.registry.calls() == []
        await until(lambda: self.model.active == 0)
        await until(lambda: not any(name.startswith("rtc_") for name in tasks()))

    @property
    def ends(self) -> list[str]:
        """The outcomes of the calls that have ended, as the metrics count them."""
        (counted,) = self.services.metrics.calls.collect()
        totals = [it for it in counted.samples if it.name.endswith("_total")]
        return [it.labels["outcome"] for it in totals for _ in range(int(it.value))]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.services.metrics.registry.get_sample_value(name, labels)

    def said(self) -> list[str]:
        return [it.data["heard"] for it in self.events if it.type == "said"]

    def types(self) -> list[str]:
        return [event.type for event in self.events]


def talking(*turns: Turn) -> Behaviour:
    return Behaviour(turns=turns, **QUICK)


def tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks()]


@asynccontextmanager
async def place(
    behaviour: Behaviour | None = None,
    agent: AgentSource = PLAIN,
    *,
    greeting: str = GREETING,
    route: Route | None = None,
    connect: Any = None,
    conf: Mapping[str, Any] | None = None,
    **how: Any,
) -> AsyncIterator[SipSetup]:
    route = route or Route(silence=None)
    route = replace(
        route, name="main", on_call="begin", report=ReportTarget(to="report")
    )
    app = web.Application()
    runner = web.AppRunner(app)

    async def begin(live: LiveCall) -> None:
        here.begun.append(live)
        live.on(here.events.append)

    async def report(it: CallReport) -> None:
        here.reports.append(it)

    limits = {"calls_per_number": 0, "calls_per_number_hour": 0}
    settings = Settings(
        insecure=True,
        openai_api_key=SecretStr("sk-sim"),
        model="gpt-realtime-mini",
        voice="cedar",
        transcription_model="gpt-transcribe",
        greeting=greeting,
        transfer_prefixes=("+1415",),
        **(limits | dict(conf or {})),
    )
    functions: dict[str, Callable[..., Any]] = {"begin": begin, "report": report}
    user_code = UserCode(
        agent, Routes(routes=(route,)), functions=functions, connect=connect
    )
    async with (
        ModelServer(behaviour or Behaviour(**QUICK), api_key="sk-sim") as model,
        CallsServer(model, **how) as calls,
        start_services(settings, user_code, model.url) as services,
        SipCalls(services, calls.secret, "sk-sim", calls.url) as calls_here,
    ):

        async def take(request: web.Request) -> web.Response:
            body = await request.read()
            status, text = await here.incoming(request.headers, body)
            return web.Response(status=status, text=text)

        app.router.add_post("/openai/webhook", take)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/openai/webhook"
        here = SipSetup(model, calls, calls_here, services, url)
        try:
            yield here
        finally:
            await runner.cleanup()


def sent(session: ModelSession, kind: str) -> list[dict[str, Any]]:
    """Events of one type that the bridge has sent."""
    return [event for _, event in session.received if event["type"] == kind]


# --- the webhook


async def test_a_signed_webhook_is_taken_at_once() -> None:
    """OpenAI gets its answer before the call has an agent."""
    async with place() as here:
        call = await here.ring()

        assert call.answers == [200]
        assert call.state is SipCallState.RINGING


@pytest.mark.parametrize(
    "how",
    [
        {"secret": new_secret()},
        {"age": 301.0},
        {"age": -305.0},
        {"without": ["webhook-id"]},
        {"without": ["webhook-timestamp"]},
        {"without": ["webhook-signature"]},
    ],
)
async def test_a_webhook_that_is_not_openais_is_refused(how: dict[str, Any]) -> None:
    """A forged, old, early or unsigned webhook gets 401, and no call begins."""
    async with place() as here:
        call = await here.ring(**how)

        assert call.answers == [401]
        assert (here.sip.calls, here.calls.requests) == (0, [])


async def test_a_signature_that_is_no_text_is_refused() -> None:
    """An invalid header is a refusal, not an error of the bridge."""
    async with place() as here:
        headers = {
            "webhook-id": "wh_1",
            "webhook-timestamp": "1",
            "webhook-signature": "v1,\N{SNOWMAN}",
        }
        for stamp in ("1", "soon", "9" * 5000):
            headers["webhook-timestamp"] = stamp
            assert (await here.sip.incoming(headers, b"{}"))[0] == 401
        assert (await here.sip.incoming({}, b"\xff"))[0] == 401


@pytest.mark.parametrize("age", [0.0, 200.0])
async def test_a_delivery_at_an_instance_whose_clock_is_behind(age: float) -> None:
    """The clock of this instance is 400 s behind that of the registry, which remembers
    calls. A recorded delivery is too old by the registry's clock, so it begins no
    second call."""
    async with place() as here:
        wall = time.time() + 400 - time.monotonic()
        late = here.instance(registry=MemoryRegistry(epoch=wall))
        async with late:
            here.incoming = late.incoming  # type: ignore[method-assign]
            call = await here.ring(age=age)

        assert call.answers == [401]


async def test_the_id_of_a_delivery_contains_no_dot() -> None:
    """Id, timestamp and body are signed with dots in between: with a dot in the id, the
    same text could be another delivery."""
    async with place() as here:
        headers = signed(
            signing_key(here.calls.secret), "wh.1", int(time.time()), b"{}"
        )

        assert (await here.sip.incoming(headers, b"{}"))[0] == 401


async def test_a_second_delivery_begins_no_second_call() -> None:
    """OpenAI delivers at least once; the bridge starts one call."""
    async with place() as here:
        call = await here.ring(copies=3)
        await call.until(SipCallState.TALKING)

        assert call.answers == [200, 200, 200]
        assert [verb for verb, _ in here.calls.requests] == ["accept"]


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"type": "response.completed", "data": {"id": "resp_1"}}, 200),
        ({"type": "live.transport.incoming", "data": {"session_id": "x"}}, 200),
        ({"type": "something.new"}, 200),
        ({"type": "realtime.call.incoming", "data": {}}, 400),
        ({"type": "realtime.call.incoming"}, 400),
        ({"type": "realtime.call.incoming", "data": {"call_id": "../x"}}, 400),
        ({"no": "type"}, 400),
    ],
)
async def test_other_events_begin_no_call(event: dict[str, Any], status: int) -> None:
    """The project's webhook may be used for other events, too."""
    async with place() as here:
        assert await here.calls.send(here.url, event) == [status]
        assert (here.sip.calls, here.calls.requests) == (0, [])


async def test_a_full_bridge_says_busy() -> None:
    """The caller hears the busy tone."""
    async with place() as here:
        here.services.capacity.draining = True
        call = await here.ring()
        await call.until(SipCallState.REJECTED)

        assert call.answers == [200]
        assert call.sip_status == 486
        assert here.sip.calls == 0


async def test_a_caller_who_gave_up_is_not_turned_away() -> None:
    """The caller hung up before the bridge could reject the call."""
    async with place() as here:
        here.services.capacity.draining = True
        here.calls.fail["reject"] = 404
        call = await here.ring()
        await until(lambda: bool(here.calls.requests))
        here.calls.fail["reject"] = 400
        await here.ring()
        await until(lambda: len(here.calls.requests) == 2)

        assert call.state is SipCallState.RINGING
        assert here.sip.calls == 0


class Silent(MemoryRegistry):
    """A registry that cannot be reached."""

    async def set_if_absent(self, name: str, seconds: float) -> bool:
        raise ConnectionError


async def test_a_registry_that_is_not_there() -> None:
    """503: OpenAI tries again, as the bridge cannot know if this is the first
    delivery."""
    async with place() as here:
        async with here.instance(registry=Silent()) as deaf:
            here.incoming = deaf.incoming  # type: ignore[method-assign]
            call = await here.ring()

        assert call.answers == [503]


async def test_a_running_call_is_found_by_its_sid() -> None:
    """The control API finds a running call by its id."""
    async with place() as here:
        call, _, live = await here.talk()

        assert here.sip.live(call.id) is live
        assert here.sip.live("rtc_no") is None
        (entry,) = await here.services.registry.calls()
        assert entry.call_sid == call.id


async def test_a_bridge_that_has_closed_takes_none() -> None:
    """503: OpenAI tries again, and may reach another instance."""
    async with place() as here:
        async with here.instance() as closed:
            pass
        here.incoming = closed.incoming  # type: ignore[method-assign]
        call = await here.ring()

        assert call.answers == [503]


@pytest.mark.parametrize("secret", ["", "abc", "whsec_!", "b3RoZXI="])
async def test_a_secret_that_is_none_is_told_at_start(secret: str) -> None:
    """Otherwise the first call would be refused as forged."""
    async with place() as here:
        with pytest.raises(ValueError, match="secret"):
            SipCalls(here.services, secret, "sk-sim")


# --- the accept


async def test_the_accept_is_a_session_of_the_agent() -> None:
    """The vendor's type accepts it, and it has no settings that the line negotiates."""
    settings = {
        "turn_detection": {
            "type": "server_vad",
            "threshold": 0.4,
            "prefix_padding_ms": 200,
            "silence_duration_ms": 300,
            "idle_timeout_ms": 6000,
        },
        "truncation": "disabled",
        "speed": 1.1,
    }
    route = Route(session=SessionSettings.read(settings))
    with capture_logs() as logs:
        async with place(agent=HELPFUL, route=route) as here:
            for _ in range(2):
                _, session, _ = await here.talk()

    body = here.calls.requests[0][1]
    RealtimeSessionCreateRequest.model_validate(body, strict=True)
    assert body["type"] == "realtime"
    assert body["model"] == "gpt-realtime-mini"
    assert body["instructions"] == "Help."
    assert body["truncation"] == "disabled"
    assert body["audio"]["output"] == {"voice": "cedar", "speed": 1.1}
    assert "format" not in body["audio"]["input"]
    detection = body["audio"]["input"]["turn_detection"]
    assert detection["type"] == "server_vad" and detection["idle_timeout_ms"] == 6000
    assert not {"threshold", "prefix_padding_ms"} & detection.keys()
    assert {tool["name"] for tool in body["tools"]} >= {"weather", "hang_up"}
    assert session.errors_sent == []
    told = [it for it in logs if it["event"] == "sip_settings_ignored"]
    assert len(told) == 1
    assert told[0]["settings"] == "threshold, prefix_padding_ms, silence_duration_ms"


async def test_what_follows_agrees_with_the_accept() -> None:
    """The SDK's own session update changes neither the line nor the model."""
    async with place(agent=HELPFUL) as here:
        _, session, _ = await here.talk()
        await until(lambda: bool(session.responses))
        updates = [it["session"] for it in sent(session, "session.update")]

        assert session.errors_sent == []
        assert session.model == "gpt-realtime-mini"
        assert session.appends == 0
        assert updates and not any("model" in it for it in updates)
        assert "format" not in updates[0]["audio"]["output"]


async def test_a_call_is_attached_to_though_it_is_early() -> None:
    """Just after the accept the server does not know the call yet."""
    async with place(late=2) as here:
        call, _, _ = await here.talk()

        assert here.model.refused == [404, 404]
        assert call.attached == 1


async def test_a_socket_that_is_refused_ends_the_call() -> None:
    """An accepted call without an agent would be silence, so it is hung up."""
    async with place() as here:
        here.model.behaviour = Behaviour(refuse=429)
        call = await here.ring()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert (call.ended_by, here.ends) == ("api", ["model_refused"])


async def test_a_socket_that_stays_unknown_is_a_call_that_is_over() -> None:
    """404 for seconds, also from the API: the caller has hung up."""
    async with place(late=99) as here:
        call = await here.ring()
        await call.until(SipCallState.TALKING)
        call.hang_up()
        await here.over()

        assert here.ends == ["caller_hung_up"]
        assert len(here.model.refused) == ATTACH_TRIES


async def test_a_call_that_cannot_be_attached_to_does_not_go_on() -> None:
    """The socket stays unknown, but the API has the call: the caller would hear
    silence, and the call would cost money."""
    async with place(late=99) as here:
        call = await here.ring()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert (call.ended_by, here.ends) == ("api", ["model_refused"])


async def test_a_server_that_is_not_there() -> None:
    """The API answers, but its socket does not."""

    async def nowhere(url: str, headers: dict[str, str]) -> Any:
        raise ConnectionRefusedError

    async with place(connect=nowhere) as here:
        call = await here.ring()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert here.ends == ["model_refused"]


async def test_an_accept_that_fails_is_no_endless_ringing() -> None:
    """The trunk gets 503, and may try another gateway."""
    async with place(fail={"accept": 400}) as here:
        call = await here.ring()
        await call.until(SipCallState.REJECTED)
        await here.over()

        assert call.sip_status == 503
        assert here.ends == ["model_refused"]


async def test_an_accept_whose_answer_is_lost_leaves_nobody_in_silence() -> None:
    """OpenAI has accepted the call, but the bridge got an error: the call is hung
    up."""
    async with place(lose=["accept"]) as here:
        call = await here.ring()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert (call.ended_by, here.ends) == ("api", ["model_refused"])
        verbs = [verb for verb, _ in here.calls.requests]
        assert verbs == ["accept", "accept", "reject", "hangup"]


async def test_an_accepted_call_that_cannot_be_rejected_is_hung_up() -> None:
    """The answer to the accept is lost, the call ends, and OpenAI knows no call that
    rings: the call would go on, and cost money."""
    async with place(lose=["accept"]) as here:
        here.calls.fail["reject"] = 404
        call = await here.ring()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert call.ended_by == "api"


async def test_an_agent_that_cannot_be_had_rejects_the_call() -> None:
    """The user's function fails, so the call is not accepted."""

    def broken(live: LiveCall) -> RealtimeAgent[Any]:
        raise LookupError("no agent")

    async with place(agent=broken) as here:
        call = await here.ring()
        await call.until(SipCallState.REJECTED)
        await here.over()

        assert call.sip_status == 503
        assert here.ends == ["bridge_agent_failed"]


async def test_a_caller_who_gave_up_is_no_failure() -> None:
    """The caller hung up while it rang: there is no call to accept."""
    ringing: list[SipSetup] = []

    def made(live: LiveCall) -> RealtimeAgent[Any]:
        ringing[0].calls.calls[0].hang_up()
        return PLAIN

    async with place(agent=made) as here:
        ringing.append(here)
        call = await here.ring()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert here.ends == ["caller_hung_up"]
        assert [verb for verb, _ in here.calls.requests] == ["accept"]


# --- the conversation


async def test_the_agent_greets_and_is_heard() -> None:
    """The history has what the server reports as heard."""
    async with place(talking([SayText("Hello, how can I help?")])) as here:
        _, session, live = await here.talk()
        await until(lambda: bool(session.responses))
        assert await live.heard() is True

        assert [it.kind for it in live.history] == ["system", "assistant"]
        assert live.history[0].text == GREETING
        assert live.transcript[0].text == "Hello, how can I help?"
        assert here.said() == ["Hello, how can I help?"]
        assert live.facts.from_number == CALLER and live.facts.to_number == CALLED
        assert live.facts.route == "main"
        assert live.output_tokens > 0


async def test_a_tool_runs_with_the_call_as_its_context() -> None:
    """The same agent as on a media stream works."""
    async with place(
        talking(
            [SayText("Hello.")],
            [CallTool("weather", {"city": "Oslo"})],
            [SayText("Rain.")],
        ),
        HELPFUL,
    ) as here:
        call, session, live = await here.talk()
        await until(lambda: here.said() == ["Hello."])
        call.say(speech())
        await until(lambda: here.said() == ["Hello.", "Rain."])

        outputs = [it.text for it in live.history if it.kind == "tool_output"]
        assert outputs == [f"Rain in Oslo, for {CALLER}."]
        assert {"tool_start", "tool_end", "caller_said"} <= set(here.types())
        assert session.errors_sent == []


async def test_a_tool_hangs_up_when_all_was_heard() -> None:
    """The goodbye is played to its end, then the call is hung up."""
    async with place(
        talking(
            [SayText("Thank you for your call, goodbye."), CallTool("hang_up", {})]
        ),
        HELPFUL,
    ) as here:
        call, session, live = await here.talk()
        await call.until(SipCallState.ENDED)
        await here.over()

        seconds = sum(len(it[2]) for it in session.sent_deltas) / 8000
        assert here.said() == ["Thank you for your call, goodbye."]
        assert session.now() - session.opened_at >= seconds
        assert (call.ended_by, here.ends) == ("api", ["agent_hung_up"])
        assert [verb for verb, _ in here.calls.requests] == ["accept", "hangup"]
        assert live.over
        with pytest.raises(CallOver):
            live.tell("too late")


async def test_a_caller_who_speaks_keeps_the_call() -> None:
    """Interrupted in the goodbye: hang_up returns False, and the caller is answered."""
    async with place(
        talking([SayText(LONG), CallTool("hang_up", {})], [SayText("Yes?")]), HELPFUL
    ) as here:
        call, _, live = await here.talk()
        await until(lambda: "tool_start" in here.types())
        await asyncio.sleep(1.0)
        call.say(speech())
        await until(lambda: "Yes?" in here.said())

        cut = next(it for it in live.history if it.cut)
        assert cut.generated == LONG
        assert LONG.startswith(cut.text) and 0 < len(cut.text) < 50
        assert [it.text for it in live.history if it.kind == "tool_output"] == ["False"]
        assert {"audio_interrupted", "agent_interrupted"} <= set(here.types())
        assert call.state is SipCallState.TALKING


async def test_a_tool_puts_the_caller_through() -> None:
    """One REFER once all was heard, and no hang-up after it."""
    async with place(
        talking([SayText("One moment."), CallTool("transfer", {})]), HELPFUL
    ) as here:
        call, _, _ = await here.talk()
        await call.until(SipCallState.REFERRED)
        await here.over()

        assert call.target == f"tel:{DESK}"
        assert here.ends == ["agent_transferred"]
        assert [verb for verb, _ in here.calls.requests] == ["accept", "refer"]


async def test_a_transfer_that_is_refused_is_told_to_the_agent() -> None:
    """The call goes on, and the caller hears why."""
    behaviour = talking([CallTool("transfer", {})], [SayText("I am sorry.")])
    async with place(behaviour, HELPFUL, fail={"refer": 400}) as here:
        call, _, live = await here.talk()
        await until(lambda: "I am sorry." in here.said())

        (output,) = [it.text for it in live.history if it.kind == "tool_output"]
        assert output == "BadRequest: OpenAI refused the transfer of the SIP call"
        assert call.state is SipCallState.TALKING


async def test_a_number_that_is_not_allowed_is_not_dialled() -> None:
    """A forbidden number is not dialled, whatever the caller made the agent do; the
    call goes on."""
    async with place() as here:
        call, session, live = await here.talk()
        await until(lambda: bool(session.responses))
        with pytest.raises(NotAllowed):
            await live.transfer(PREMIUM)

        assert call.state is SipCallState.TALKING
        assert [verb for verb, _ in here.calls.requests] == ["accept"]
        await until(lambda: "limit_hit" in here.types())


async def test_a_caller_with_too_many_calls_hears_the_line_busy() -> None:
    """The call gets 486, the model is never contacted, and the log names the limit."""
    async with place(conf={"calls_per_number": 1}) as here:
        await here.talk()
        with capture_logs() as lines:
            call = await here.ring()
            await call.until(SipCallState.REJECTED)

        assert call.sip_status == 486 and len(here.model.sessions) == 1
        assert [it["why"] for it in lines if it["event"] == "call_refused"] == [
            "calls_of_number"
        ]


@pytest.mark.parametrize("verb", ["refer", "hangup"])
async def test_a_caller_who_is_gone_first(verb: str) -> None:
    """The caller hung up before the transfer or the hang-up: the call has just
    ended."""
    tool = {"refer": "transfer", "hangup": "hang_up"}[verb]
    async with place(talking([CallTool(tool, {})]), HELPFUL, fail={verb: 404}) as here:
        await here.talk()
        await here.over()

        assert here.ends == ["caller_hung_up" if verb == "refer" else "agent_hung_up"]
        assert [verb for verb, _ in here.calls.requests] == ["accept", verb]


async def test_the_caller_hangs_up() -> None:
    """A broken socket is the caller's hang-up, and not a failure."""
    async with place() as here:
        call, _, live = await here.talk()
        call.hang_up()
        await here.over()

        assert here.ends == ["caller_hung_up"]
        assert live.over and here.types()[-1] == "call_ended"
        assert call.attached == 1


async def test_a_broken_network_is_not_the_callers_hang_up() -> None:
    """The socket breaks as if the caller had hung up, but OpenAI still has the call:
    the operator sees `model_lost`, and the call is hung up."""
    async with place() as here:
        call, session, _ = await here.talk()
        session.abort("network")
        await here.over()

        assert here.ends == ["model_lost"]
        assert (call.state, call.ended_by) == (SipCallState.ENDED, "api")
        assert here.types()[-2:] == ["model_gone", "call_ended"]
        assert here.events[-1].data["by"] == "model"


async def test_a_hang_up_whose_answer_is_lost_does_not_blame_the_caller() -> None:
    """The second try finds no call, because the first one has ended it."""
    async with place(lose=["hangup"]) as here:
        _, session, _ = await here.talk()
        session.abort("network")
        await here.over()

        assert here.ends == ["model_lost"]


async def test_an_api_that_cannot_tell_leaves_the_model_lost() -> None:
    """Neither the socket nor the API works: the network is broken."""
    async with place(fail={"hangup": 400}) as here:
        _, session, _ = await here.talk()
        with capture_logs() as lines:
            session.abort("network")
            await here.over()

        assert here.ends == ["model_lost"]
        assert [it["why"] for it in lines if it["event"] == "sip_hang_up_failed"] == [
            "HTTP 400 scripted"
        ]


async def test_a_transfer_whose_answer_is_lost_is_a_transfer() -> None:
    """The second try finds no call, because the first one has transferred it."""
    async with place(
        talking([CallTool("transfer", {})]), HELPFUL, lose=["refer"]
    ) as here:
        call, _, _ = await here.talk()
        await here.over()

        assert (call.state, here.ends) == (
            SipCallState.REFERRED,
            ["agent_transferred"],
        )
        assert [verb for verb, _ in here.calls.requests] == ["accept", "refer", "refer"]


async def test_a_slow_hang_up_is_carried_through() -> None:
    """The API does not answer the first try. The call is reported and the instance may
    end, but the call does not go on at OpenAI."""
    async with place(stall={"hangup": 1}) as here:
        call, _, _ = await here.talk()
        here.sip.end("cost")
        await until(lambda: here.sip.calls == 0)

        assert here.ends == ["bridge_cost"]
        assert call.state is SipCallState.TALKING
        await call.until(SipCallState.ENDED)
        assert call.ended_by == "api"


async def test_a_shutdown_waits_for_a_hang_up() -> None:
    """The hang-up that begins with the shutdown gets its second try."""
    async with place(stall={"hangup": 1}) as here:
        call, _, _ = await here.talk()

    assert (call.state, call.ended_by) == (SipCallState.ENDED, "api")


async def test_a_shutdown_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenAI cannot be reached: the instance ends, and logs the call that may go on."""
    monkeypatch.setattr("bridge.http.sip_calls.CLOSE_SECONDS", 0.2)
    with capture_logs() as lines:
        async with place(stall={"hangup": 99}) as here:
            call, _, _ = await here.talk()
            here.sip.end("cost")
            await until(lambda: here.sip.calls == 0)

    failed = [it for it in lines if it["event"] == "sip_hang_up_failed"]
    assert [(it["call_sid"], it["why"]) for it in failed] == [(call.id, "shutdown")]


def test_the_limits_of_the_api_fit_each_other() -> None:
    """A request has time for all its tries, and a hang-up for all its requests."""
    pauses = sum(0.5 * 2**number for number in range(calls_api.RETRIES))
    tries = (calls_api.RETRIES + 1) * calls_api.REQUEST_SECONDS

    assert tries + pauses <= calls_api.LIMIT_SECONDS
    assert sip_leg.HANG_UP_TRIES * calls_api.LIMIT_SECONDS < sip_leg.HANG_UP_SECONDS
    assert sip_calls.CLOSE_SECONDS >= calls_api.LIMIT_SECONDS


async def test_an_end_of_the_bridge_hangs_up() -> None:
    """Otherwise the call would go on at OpenAI, without tools and without an end."""
    async with place() as here:
        call, _, _ = await here.talk()
        here.sip.end("shutdown")
        await here.over()

        assert (call.state, call.ended_by) == (SipCallState.ENDED, "api")
        assert here.ends == ["bridge_shutdown"]


async def test_leaving_ends_the_calls() -> None:
    """Stopping the bridge ends its calls."""
    async with place() as here:
        call, _, _ = await here.talk()

    assert call.state is SipCallState.ENDED
    assert here.ends == ["bridge_shutdown"]


async def test_a_hang_up_that_the_api_refuses_is_tried_once_more() -> None:
    """The session ends anyway: the agent does not talk on after its goodbye."""
    turns = talking([SayText("Goodbye."), CallTool("hang_up", {})])
    async with place(turns, HELPFUL, fail={"hangup": 400}) as here:
        await here.talk()
        await here.over()

        verbs = [verb for verb, _ in here.calls.requests]
        assert verbs == ["accept", "hangup", "hangup"]
        assert here.ends == ["agent_hung_up"]


async def test_a_tool_that_raises_is_told() -> None:
    """Listeners get an event, and the agent goes on."""

    @function_tool(failure_error_function=None)
    async def broken() -> str:
        """Breaks."""
        raise LookupError

    agent = RealtimeAgent[Any](name="poor", instructions="Try.", tools=[broken])
    async with place(
        talking([CallTool("broken", {})], [SayText("Sorry.")]), agent
    ) as here:
        await here.talk()
        await until(lambda: "Sorry." in here.said())

        (failed,) = [it.data for it in here.events if it.type == "tool_failed"]
        assert (failed["tool"], failed["error"]) == ("broken", "LookupError")
        assert failed["exception"].endswith("\nLookupError")


async def test_a_server_that_talks_nonsense_is_not_followed() -> None:
    """Unreadable frames are counted, and the call goes on."""
    garbage: list[str | bytes] = [
        b"\x00",
        "{",
        '{"type": "output_audio_buffer.stopped"}',
    ]
    behaviour = Behaviour(turns=[[SayText("Hello.")]], garbage=garbage, **QUICK)
    async with place(behaviour) as here:
        await here.talk()
        await until(lambda: here.said() == ["Hello."])

        reasons = {it.data["reason"] for it in here.events if it.type[:5] == "proto"}
        assert reasons == {
            "binary event",
            "event is no JSON",
            "output_audio_buffer.stopped of the wrong shape",
        }


async def test_a_server_that_closes_ends_the_call() -> None:
    """After sixty minutes OpenAI closes: the call is hung up, and not recorded as the
    caller's hang-up."""
    async with place(Behaviour(expire_after=0.5, **QUICK)) as here:
        call, _, _ = await here.talk()
        await here.over()

        assert (call.state, here.ends) == (SipCallState.ENDED, ["model_closed"])


async def test_a_failed_answer_is_requested_again() -> None:
    """The caller gets an answer after two failures, as on a media stream."""
    failed = Fail("server_error")
    async with place(talking([failed], [failed], [SayText("Here I am.")])) as here:
        _, session, _ = await here.talk()
        await until(lambda: here.said() == ["Here I am."])

        assert [it.status for it in session.responses][:2] == ["failed", "failed"]
        assert here.types().count("answer_retried") == 2


async def test_a_failure_that_no_retry_mends_ends_the_call() -> None:
    """The caller would hear silence."""
    async with place(talking([Fail("insufficient_quota")])) as here:
        call, session, _ = await here.talk()
        await here.over()

        assert len(session.responses) == 1
        assert (call.state, here.ends) == (SipCallState.ENDED, ["model_failed"])


async def test_a_handoff_keeps_line_and_model() -> None:
    """The update has the new agent's instructions, and no format and no model."""
    other: RealtimeAgent[Any] = RealtimeAgent(name="other", instructions="Be short.")
    first = RealtimeAgent[Any](
        name="first", instructions="Hand over.", handoffs=[realtime_handoff(other)]
    )
    turns = talking([CallTool("transfer_to_other", {})], [SayText("Other here.")])
    async with place(turns, first) as here:
        _, session, live = await here.talk()
        await until(lambda: "Other here." in here.said())

        assert live.agent_name == "other"
        assert session.session["instructions"] == "Be short."
        assert session.errors_sent == []
        assert "handoff" in here.types()


async def test_a_tool_waits_for_approval() -> None:
    """The tool runs once it is approved."""

    @function_tool(needs_approval=True)
    async def pay() -> str:
        """Pays."""
        return "Paid."

    agent = RealtimeAgent[Any](name="till", instructions="Pay.", tools=[pay])
    async with place(talking([CallTool("pay", {})], [SayText("Done.")]), agent) as here:
        _, _, live = await here.talk()
        await until(lambda: bool(live.approvals))
        await live.approve(live.approvals[0].call_id)
        await until(lambda: "Done." in here.said())

        outputs = [it.text for it in live.history if it.kind == "tool_output"]
        assert outputs == ["Paid."]


async def test_a_rejected_tool_does_not_run() -> None:
    """The model is told the given message."""

    @function_tool(needs_approval=True)
    async def pay() -> str:
        """Pays."""
        return "Paid."

    agent = RealtimeAgent[Any](name="till", instructions="Pay.", tools=[pay])
    async with place(talking([CallTool("pay", {})], [SayText("No.")]), agent) as here:
        _, _, live = await here.talk()
        await until(lambda: bool(live.approvals))
        await live.reject(live.approvals[0].call_id, message="Not today.")
        await until(lambda: "No." in here.said())

        outputs = [it.text for it in live.history if it.kind == "tool_output"]
        assert outputs == ["Not today."]


async def test_a_guardrail_stops_the_agent() -> None:
    """Audio that the server has not played yet is not heard."""

    def is_long(context: Any, agent: Any, output: str) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=LONG in output)

    agent = RealtimeAgent[Any](
        name="careful",
        instructions="Be careful.",
        output_guardrails=[OutputGuardrail(is_long)],
    )
    # The SDK runs guardrails for every hundred characters of an answer.
    async with place(
        talking([SayText(f"{LONG} {LONG}")], [SayText("Sorry.")]), agent
    ) as here:
        _, session, _ = await here.talk()
        await until(lambda: "Sorry." in here.said())

        assert sent(session, "output_audio_buffer.clear")
        assert len(here.said()[0]) < len(LONG)
        assert "guardrail_tripped" in here.types()


async def test_a_hosted_tool_is_in_the_session_from_the_accept_on() -> None:
    """Such tools work on SIP calls although the SDK rejects them."""
    config: Any = {
        "type": "mcp",
        "server_label": "docs",
        "server_url": "https://mcp.example.com",
        "require_approval": "never",
    }
    agent = RealtimeAgent[Any](
        name="reader", instructions="Read.", tools=[HostedMCPTool(tool_config=config)]
    )
    async with place(talking([SayText("Hello.")]), agent) as here:
        _, session, _ = await here.talk()
        await until(lambda: here.said() == ["Hello."])

        for tools in (here.calls.requests[0][1]["tools"], session.session["tools"]):
            assert [tool["server_label"] for tool in tools] == ["docs"]
        assert session.errors_sent == []


# --- actions of user code


async def test_words_are_put_in_and_answered() -> None:
    """Text works before the model is there, and while the model speaks (answered
    afterwards)."""
    async with place(talking([SayText(LONG)], [SayText("Noted.")])) as here:
        _, session, live = await here.talk()
        await until(lambda: bool(session.responses))
        live.tell("Their order is ready.", role="system")
        await until(lambda: "Noted." in here.said())

        assert "Their order is ready." in [it.text for it in live.history]
        assert session.errors_sent == []


async def test_an_interruption_clears_what_was_not_played() -> None:
    """Audio queued at the server is not heard; waits end with False."""
    async with place(talking([SayText(LONG)])) as here:
        _, session, live = await here.talk()
        await until(lambda: any(it.status == "completed" for it in session.responses))
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(live.heard())
            await asyncio.sleep(0.3)
            live.interrupt()
        await until(lambda: bool(here.said()))

        assert waiting.result() is False
        assert len(here.said()[0]) < len(LONG) / 2
        assert sent(session, "output_audio_buffer.clear")


async def test_an_interruption_cancels_what_is_being_made() -> None:
    """A response that is still generated is cancelled first, then its audio cleared."""
    async with place(Behaviour(turns=[[SayText(LONG)]], speed=1.5)) as here:
        _, session, live = await here.talk()
        await until(lambda: bool(session.sent_deltas))
        live.interrupt()
        await until(lambda: bool(here.said()))

        assert session.responses[0].status == "cancelled"
        assert session.errors_sent == []


async def test_a_muted_caller_is_not_heard() -> None:
    """The caller gets no answer; after unmuting they do, with the earlier settings."""
    async with place(
        Behaviour(fallback=[SayText("Yes.")], **QUICK), greeting=""
    ) as here:
        call, session, live = await here.talk()
        await until(lambda: bool(session.session["instructions"]))
        detection = session.session["audio"]["input"]["turn_detection"]
        live.mute()
        await until(lambda: session.session["audio"]["input"]["turn_detection"] is None)
        call.say(speech())
        live.mute(False)
        await until(
            lambda: session.session["audio"]["input"]["turn_detection"] == detection
        )
        assert session.caller_turns == 0
        call.say(speech())
        await until(lambda: "Yes." in here.said())

        assert session.caller_turns == 1
        assert session.errors_sent == []


async def test_muted_stays_muted_whatever_the_session_becomes() -> None:
    """A session update by user code does not unmute the caller."""
    async with place() as here:
        _, session, live = await here.talk()
        await until(lambda: bool(session.responses))
        live.mute()
        audio = {"input": {"turn_detection": {"type": "semantic_vad"}}}
        change = {"type": "realtime", "audio": audio, "max_output_tokens": 99}
        live.send_raw({"type": "session.update", "session": change})
        await until(lambda: session.session["max_output_tokens"] == 99)

        assert session.session["audio"]["input"]["turn_detection"] is None


async def test_the_history_is_edited() -> None:
    """Items are removed from the model's conversation, or their text is replaced."""
    async with place(talking([SayText("Hello there.")])) as here:
        _, session, live = await here.talk()
        await until(lambda: bool(here.said()))
        system, assistant = live.history
        live.update_history(remove=[system.id], correct={assistant.id: "Good day."})
        await until(lambda: [it.text for it in live.history] == ["Good day."])

        assert session.items[system.id].deleted and session.items[assistant.id].deleted
        assert session.errors_sent == []


async def test_what_a_sip_call_cannot_do_is_told() -> None:
    """Each error message says what a SIP call cannot do."""
    async with place() as here:
        _, session, live = await here.talk()
        await until(lambda: bool(session.responses))
        with pytest.raises(BadRequest, match="cannot send digits"):
            await live.send_digits("1")
        with pytest.raises(BadRequest, match="number that is shown"):
            await live.transfer(DESK, caller_id=CALLED)
        with pytest.raises(BadRequest, match="does not pass the bridge"):
            live.send_raw({"type": "input_audio_buffer.append", "audio": ""})


async def test_before_there_is_a_model() -> None:
    """Text and the mute are kept for later; a client event raises BadRequest."""
    refused: list[str] = []

    def made(live: LiveCall) -> RealtimeAgent[Any]:
        live.tell("They called twice today.", role="system", respond=False)
        live.mute()
        with pytest.raises(BadRequest) as error:
            live.send_raw({"type": "response.create"})
        refused.append(str(error.value))
        return PLAIN

    async with place(agent=made) as here:
        _, session, live = await here.talk()
        await until(lambda: len(live.history) > 2)
        await until(lambda: session.session["audio"]["input"]["turn_detection"] is None)

        assert "They called twice today." in [it.text for it in live.history]
        assert refused == ["the model is not connected yet"]
        assert session.errors_sent == []


# --- keys, silence


async def test_keys_are_one_input() -> None:
    """The input ends with `#` or a pause; the agent stops, and answers it."""
    behaviour = Behaviour(fallback=[SayText("Thank you.")], **QUICK)
    route = Route(key_pause_seconds=0.3)
    async with place(behaviour, greeting="", route=route) as here:
        call, _, live = await here.talk()
        for key in "12#":
            call.press(key)
        await until(lambda: "Thank you." in here.said())
        call.press("7")
        await until(lambda: len(here.said()) == 2)

        words = [it.text for it in live.history if it.kind == "user"]
        assert words == [
            "(The caller pressed these keys on the phone: 12)",
            "(The caller pressed these keys on the phone: 7)",
        ]


async def test_a_key_that_transfers() -> None:
    """The caller is put through at once; what the agent says is cut off."""
    route = Route(keys={"9": Transfer(DESK, caller_id=CALLED)})
    async with place(talking([SayText(LONG)]), route=route) as here:
        call, session, _ = await here.talk()
        await until(lambda: bool(session.responses))
        call.press("9")
        await call.until(SipCallState.REFERRED)
        await here.over()

        assert call.target == f"tel:{DESK}"
        assert here.ends == ["agent_transferred"]


async def test_a_transfer_by_key_that_is_refused_ends_nothing() -> None:
    """The operator sees the refusal in the log, and the caller talks on."""
    route = Route(keys={"9": Transfer(DESK), "0": TellAction("Say bye.")})
    async with place(greeting="", route=route, fail={"refer": 400}) as here:
        call, _, live = await here.talk()
        with capture_logs() as lines:
            call.press("9")
            await until(lambda: "key_action_failed" in here.types())
        call.press("0")
        await until(lambda: "Say bye." in [it.text for it in live.history])

        assert call.state is SipCallState.TALKING
        failed = [it for it in lines if it["event"] == "key_action_failed"]
        assert [it["error"] for it in failed] == ["BadRequest"]


async def test_a_key_that_hangs_up() -> None:
    """The call ends at once."""
    async with place(route=Route(keys={"0": HangUpAction()})) as here:
        call, _, _ = await here.talk()
        call.press("0")
        await call.until(SipCallState.ENDED)
        await here.over()

        assert (call.ended_by, here.ends) == ("api", ["agent_hung_up"])


async def test_keys_with_an_action_are_no_word_to_the_agent() -> None:
    """The route's action is taken, and the agent is not told of the keys."""
    route = Route(keys={"0": TellAction("They want the desk.")})
    async with place(greeting="", route=route) as here:
        call, _, live = await here.talk()
        call.press("0")
        await until(lambda: bool(live.history))

        assert [(it.kind, it.text) for it in live.history] == [
            ("system", "They want the desk.")
        ]


async def test_a_silent_caller_is_asked_then_left() -> None:
    """A line without a caller does not cost money for ever."""
    route = Route(silence=Silence(0.3, ask=1))
    turns = talking([SayText("Hello?")], [SayText("Goodbye.")])
    async with place(turns, greeting="", route=route) as here:
        call, _, _ = await here.talk()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert here.said() == ["Hello?", "Goodbye."]
        assert (call.ended_by, here.ends) == ("api", ["bridge_silent"])


# --- what the operator has of a call


async def test_a_sip_call_has_a_trace(tmp_path: Path) -> None:
    """Its replay gives the commands that the call gave."""
    route = Route(keys={"9": HangUpAction()})
    conf = {"record_dir": tmp_path}
    async with place(talking([SayText("Hello.")]), route=route, conf=conf) as here:
        call, _, _ = await here.talk()
        await until(lambda: here.said() == ["Hello."])
        call.press("9")
        await here.over()

    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"{call.id}.")
    pairs = list(replay(path))
    assert len(pairs) > 10 and all(then == now for then, now in pairs)
    assert {"to_model", "switch", "pressed", "end"} <= {it["kind"] for it, _ in pairs}


async def test_what_a_route_redacts_is_in_no_trace(tmp_path: Path) -> None:
    """A caller types the number of a card: neither the trace nor the report has it."""
    route = Route(redact=Redaction(cards=True), silence=None)
    behaviour = Behaviour(fallback=[SayText("Thank you.")], **QUICK)
    conf = {"record_dir": tmp_path}
    async with place(behaviour, greeting="", route=route, conf=conf) as here:
        call, _, live = await here.talk()
        for key in "4111111111111111#":
            call.press(key)
        await until(lambda: here.said() == ["Thank you."])
        assert live.facts.call_sid == call.id
        call.hang_up()
        await here.over()
        await until(lambda: bool(here.reports))

    (path,) = tmp_path.iterdir()
    keys = [it["in"]["event"] for it in read(path) if "event" in it.get("in", {})]
    pressed = [it["event"] for it in keys if it["type"].endswith("dtmf_event_received")]
    assert pressed == [KEYS] * 17
    assert "41111" not in text_of(path) + repr(here.reports)
    assert list(replay(path))


async def test_a_sip_call_is_counted_and_reported() -> None:
    """The metrics count it while it runs and when it has ended; its report has words
    and usage."""
    prices = Prices(output_audio=10.0)
    conf = {"prices": prices, "calls_per_number": 1}
    async with place(talking([SayText("Hello.")]), conf=conf) as here:
        call, _, live = await here.talk()
        await until(lambda: here.said() == ["Hello."])
        assert here.metric("bridge_calls_active") == 1
        assert len(await here.services.registry.calls()) == 1
        live.take_message("Call me back.")
        call.hang_up()
        await here.over()
        await until(lambda: bool(here.reports))
        again = await here.ring()
        await again.until(SipCallState.TALKING)

        (report,) = here.reports
        assert here.metric("bridge_calls_active") == 1
        assert here.metric("bridge_calls_total", outcome="caller_hung_up") == 1
        assert (report.call_sid, report.route) == (call.id, "main")
        assert (report.ended_by, report.ended_why) == ("caller", "hung_up")
        assert [it.text for it in report.transcript] == ["Hello."]
        assert report.messages[0].text == "Call me back."
        assert report.usage.cost > 0 and report.usage.output_tokens > 0


async def test_a_sip_call_is_of_no_twilio_account() -> None:
    """A bridge that refuses streams of other Twilio accounts takes SIP calls."""
    async with place(conf={"twilio_account_sid": "AC" + "1" * 32}) as here:
        call, _, _ = await here.talk()

        assert call.state is SipCallState.TALKING


async def test_a_connection_that_breaks_in_a_transfer_is_the_transfer() -> None:
    """A REFER ends the connection before its answer arrives: the call was transferred,
    and is not a lost model."""
    behaviour = talking([CallTool("transfer", {})])
    async with place(behaviour, HELPFUL, stall={"refer": 1}) as here:
        call, session, _ = await here.talk()
        await until(
            lambda: ("refer", {"target_uri": f"tel:{DESK}"}) in here.calls.requests
        )
        session.abort("transferred")
        await here.over()

        assert here.ends == ["agent_transferred"]
        assert call.target == f"tel:{DESK}"
        assert "model_gone" not in here.types()


async def test_the_log_of_a_sip_call() -> None:
    """The notes of the core are in the log, with the call's id and without words."""
    with capture_logs() as lines:
        async with place(talking([SayText("Hello.")]), HELPFUL) as here:
            call, _, _ = await here.talk()
            await until(lambda: here.said() == ["Hello."])
            call.hang_up()
            await here.over()

    ours = [it for it in lines if it.get("call_sid") == call.id]
    names = [it["event"] for it in ours]
    assert names[0] == "call_started" and names[-1] == "call_ended"
    assert {"ready", "first_audio", "response_done", "usage", "said"} <= set(names)
    assert "model_gone" not in names
    assert "Hello." not in repr(ours)


async def test_a_call_that_lasts_too_long_ends_after_a_goodbye() -> None:
    """The agent gets the time to say it, and the limit is in the metrics."""
    turns = talking([SayText("Hello.")], [SayText("Goodbye.")])
    async with place(turns, route=Route(longest_seconds=1.0)) as here:
        call, _, _ = await here.talk()
        await call.until(SipCallState.ENDED)
        await here.over()

        assert here.said() == ["Hello.", "Goodbye."]
        assert (call.ended_by, here.ends) == ("api", ["bridge_longest"])
        assert here.metric("bridge_limit_hits_total", limit="longest") == 1


# --- headers, urls, the API client


@pytest.mark.parametrize(
    ("header", "number"),
    [
        ("sip:+14155550123@sip.example.com", "+14155550123"),
        ('"Ann <x>" <sip:+14155550123@h;user=phone>;tag=1', "+14155550123"),
        ("<sips:%2B14155550123@h:5061>", "+14155550123"),
        ("<tel:+14155550123>", "+14155550123"),
        ("<sip:anonymous@anonymous.invalid>", "anonymous"),
        ("<sip:ann@example.com;transport=tls>", "sip:ann@example.com"),
        ("<sip:100@h>", "sip:100@h"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_the_number_of_a_header(header: str, number: str) -> None:
    """As routes need it: E.164 if there is a number."""
    assert number_of(header) == number


def test_the_facts_of_an_invite() -> None:
    """Headers are untrusted: the first of each name counts, X- headers are
    parameters."""
    headers = [
        ("From", "<sip:+14155550123@h>"),
        ("from", "<sip:+14155550999@h>"),
        ("To", "<sip:+14155550100@h>"),
        ("X-Campaign", "spring"),
        ("Call-ID", "1"),
    ]
    facts = facts_of("rtc_1", iter(headers))

    assert (facts.from_number, facts.to_number) == (CALLER, CALLED)
    assert facts.parameters == {"From": CALLER, "To": CALLED, "x-campaign": "spring"}


@pytest.mark.parametrize(
    ("model", "rest", "control"),
    [
        (
            "wss://api.openai.com/v1/realtime",
            "https://api.openai.com/v1",
            "wss://api.openai.com/v1/realtime?call_id=rtc_1",
        ),
        (
            "ws://127.0.0.1:9/v1/realtime?model=m&x=1",
            "http://127.0.0.1:9/v1",
            "ws://127.0.0.1:9/v1/realtime?x=1&call_id=rtc_1",
        ),
    ],
)
def test_addresses(model: str, rest: str, control: str) -> None:
    """One setting, the model's url, gives all urls of the API."""
    assert rest_url(model) == rest
    assert control_url(model, "rtc_1") == control


async def test_an_api_that_says_no_is_told_in_a_fixed_phrase() -> None:
    """The phrase is safe to log; 404 means that the call has ended."""
    async with place() as here:
        api = CallsApi("sk-sim", here.calls.url)
        with pytest.raises(CallGone):
            await api.hang_up("rtc_1")
        here.calls.fail["hangup"] = 418
        with pytest.raises(CallsApiError) as refused:
            await api.hang_up("rtc_1")
        await api.close()

        assert refused.value.why == "HTTP 418 scripted"


async def test_an_api_that_is_not_there() -> None:
    """Nothing listens at the address."""
    async with place() as here:
        nobody = here.calls.url
    api = CallsApi("sk-sim", nobody)
    with pytest.raises(CallsApiError) as refused:
        await api.hang_up("rtc_1")
    await api.close()

    assert refused.value.why == "unreachable (APIConnectionError)"
