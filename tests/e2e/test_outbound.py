"""Outbound calls: the REST API, answering machines, the control API, the command."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from bridge.app.routes import ReportTarget, Route
from bridge.fleet.formats import FORMAT
from bridge.fleet.plan import Plan
from bridge.http.api import client
from bridge.sim.model import Behaviour, CallTool, PlayRuler, SayText
from bridge.sim.twilio import rest, steps
from tests.e2e.bridge import AGENT, HELLO, WAIT, RunningBridge, bridge
from tests.support.waiting import until

TOKEN = "a-token-of-the-control-api"
ACCOUNT = "AC" + "0" * 31 + "1"
SECRET = "twilio-secret-of-this-test"
PUBLIC = "https://bridge.example"
CALLEE, OURS = "+15551230001", "+15557650002"
LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=8)


@asynccontextmanager
async def phones(
    behaviour: Behaviour, callee: Any, **more: Any
) -> AsyncIterator[tuple[RunningBridge, rest.TwilioRest]]:
    """A bridge that may place calls, and a Twilio that places them."""
    async with rest.TwilioRest(
        ACCOUNT, SECRET, callee=callee, numbers=frozenset({OURS})
    ) as twilio:
        conf: dict[str, Any] = {
            "public_url": PUBLIC,
            "twilio_account_sid": ACCOUNT,
            "twilio_auth_token": SecretStr(SECRET),
            "api_token": SecretStr(TOKEN),
            "outbound_prefixes": ("+1555",),
            "outbound_number": OURS,
            "twilio_api_url": twilio.url,
            **more,
        }
        async with bridge(behaviour, **conf) as place:
            twilio.bridge = place.url
            yield place, twilio


async def test_a_person_answers() -> None:
    """The callee talks with the agent, which knows whom it called and what for; the
    statuses of the call arrive."""
    behaviour = Behaviour(turns=[[SayText("Hello, it is me.")], [SayText("Goodbye.")]])
    script = [LISTEN, steps.SayStep(HELLO), LISTEN, steps.HangUpStep()]
    seen: list[Any] = []

    def agent_for(call: Any) -> Any:
        seen.append(call.facts)
        return AGENT

    async with phones(behaviour, rest.Answers(script=script), agent=agent_for) as both:
        place, twilio = both
        body = {
            "to": CALLEE,
            "greeting": "Say why you call.",
            "parameters": {"campaign": "spring"},
        }
        sid = await client.place_call(place.url, TOKEN, body)
        call = twilio.calls[sid]
        async with asyncio.timeout(20):
            await call.over.wait()
        await place.empty()

    assert call.record is not None and call.record.heard
    [facts] = seen
    assert facts.direction == "outbound" and facts.theirs == CALLEE
    assert facts.parameters["campaign"] == "spring"
    words = [it.text for it in place.session.items.values() if it.role == "system"]
    assert words[0] == "Say why you call."
    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def test_a_machine_gets_the_message() -> None:
    """The whole message is left after the beep, and the call is ended."""
    behaviour = Behaviour(turns=[[PlayRuler(8000)], [PlayRuler(1800)]])
    async with phones(behaviour, rest.Machine(WAIT)) as (place, twilio):
        body = {
            "to": CALLEE,
            "greeting": "Hi.",
            "machine": "message",
            "message": "Call us.",
        }
        sid = await client.place_call(place.url, TOKEN, body)
        call = twilio.calls[sid]
        async with asyncio.timeout(30):
            await call.over.wait()
        await place.empty()

    words = [it.text for it in place.session.items.values() if it.role == "system"]
    assert any("Call us." in text for text in words)
    assert place.metric('bridge_calls_total{outcome="agent_message_left"}') == 1


async def test_a_machine_is_hung_up_on() -> None:
    """Without a message the call to a machine ends soon."""
    async with phones(
        Behaviour(turns=[[PlayRuler(20_000)]]), rest.Machine(WAIT)
    ) as both:
        place, twilio = both
        sid = await client.place_call(
            place.url, TOKEN, {"to": CALLEE, "greeting": "Hi."}
        )
        async with asyncio.timeout(30):
            await twilio.calls[sid].over.wait()
        await place.empty()

    assert place.metric('bridge_calls_total{outcome="bridge_machine"}') == 1


async def test_the_agent_recognises_a_mailbox() -> None:
    """The agent hears the machine and says so by the tool that the bridge gives it; the
    message is left, and the report says who has answered."""
    reports: list[Any] = []
    decides = CallTool("who_answered", {"who": "voicemail"})
    behaviour = Behaviour(turns=[[decides], [PlayRuler(1800)]])
    route = Route(report=ReportTarget(to="save"))
    async with phones(
        behaviour, rest.Machine(WAIT), route=route, functions={"save": reports.append}
    ) as (place, twilio):
        body = {"to": CALLEE, "greeting": "", "machine": "message"}
        body |= {"message": "Call us.", "agent_decides": True}
        sid = await client.place_call(place.url, TOKEN, body)
        async with asyncio.timeout(30):
            await twilio.calls[sid].over.wait()
        await place.empty()
        await until(lambda: bool(reports))

    words = [it.text for it in place.session.items.values() if it.role == "system"]
    assert any("Call us." in text for text in words)
    assert place.metric('bridge_calls_total{outcome="agent_message_left"}') == 1
    [report] = reports
    assert (report.status, report.answered_by) == ("machine", "voicemail")
    assert [it.name for it in report.tools] == ["who_answered"]


async def test_the_agent_hears_a_person_where_twilio_heard_a_machine() -> None:
    """The call goes on. An agent of a call without `agent_decides` has no such tool."""
    decides = CallTool("who_answered", {"who": "person"})
    turns = [[decides], [SayText("Good to hear you.")]]
    script = [steps.SayStep(HELLO), LISTEN, steps.HangUpStep()]
    answers = rest.Answers(script=script, answered_by="fax", detected_after=0.1)
    async with phones(Behaviour(turns=turns), answers) as (place, twilio):
        for decides_itself in (True, False):
            body = {"to": CALLEE, "greeting": "", "agent_decides": decides_itself}
            sid = await client.place_call(place.url, TOKEN, body)
            async with asyncio.timeout(20):
                await twilio.calls[sid].over.wait()
            await place.empty()

    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1
    assert place.metric('bridge_calls_total{outcome="bridge_machine"}') == 1
    tools = [
        {it["name"] for it in session.session["tools"]}
        for session in place.model.sessions
    ]
    assert tools == [{"who_answered"}, set()]


async def test_a_call_that_fails_before_it_is_known(tmp_path: Path) -> None:
    """The callee is busy, and Twilio says so before it has answered our request: the
    report of the call is delivered, by the function of its route."""
    (tmp_path / "reported.py").write_text(
        "from pathlib import Path\n"
        "def save(report):\n"
        "    Path(__file__).with_suffix('.json').write_bytes(report.as_json())\n"
    )
    routes = tmp_path / "routes.yaml"
    to = f"{tmp_path / 'reported.py'}:save"
    routes.write_text(f"routes:\n  - name: sales\n    report: {{to: '{to}'}}\n")
    busy = rest.Unreached("busy", sip_code=486)
    async with phones(Behaviour(), busy, routes=routes) as (place, twilio):
        twilio.answers_last = True
        body = {"to": CALLEE, "route": "sales"}
        sid = await client.place_call(place.url, TOKEN, body)

    report = json.loads((tmp_path / "reported.json").read_bytes())
    assert (report["call_sid"], report["status"]) == (sid, "busy")
    assert report["route"] == "sales"
    assert (report["sip_code"], report["error_code"]) == (486, None)


async def test_a_call_is_canceled_over_the_api(tmp_path: Path) -> None:
    """The phone stops ringing, the API says so, and the report of the call is delivered
    once, although Twilio reports the end too. A repeated request to place it places no
    second call."""
    (tmp_path / "reported.py").write_text(
        "from pathlib import Path\n"
        "def save(report):\n"
        "    with Path(__file__).with_suffix('.json').open('ab') as file:\n"
        "        file.write(report.as_json() + b'\\n')\n"
    )
    routes = tmp_path / "routes.yaml"
    to = f"{tmp_path / 'reported.py'}:save"
    routes.write_text(f"routes:\n  - name: sales\n    report: {{to: '{to}'}}\n")
    rings = rest.Answers(script=[steps.WaitStep(60)], after=30.0)
    key = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": "k1"}
    async with (
        phones(Behaviour(), rings, routes=routes) as (place, twilio),
        aiohttp.ClientSession(f"{place.url}/api/", headers=key) as http,
    ):
        body = {"to": CALLEE, "route": "sales"}
        sids = set()
        for _ in range(2):
            async with http.post("calls", json=body) as answer:
                sids.add((await answer.json())["call_sid"])
        [sid] = sids
        await until(lambda: twilio.calls[sid].status == "ringing")
        async with http.post(f"calls/{sid}/cancel") as answer:
            assert (await answer.json())["state"] == "canceled"
        async with asyncio.timeout(20):
            await twilio.calls[sid].over.wait()
        async with http.get(f"calls/{sid}/status") as answer:
            assert (await answer.json())["state"] == "canceled"
        async with http.post(f"calls/{sid}x/cancel") as answer:
            assert answer.status == 404

    [line] = (tmp_path / "reported.json").read_bytes().splitlines()
    report = json.loads(line)
    assert (report["call_sid"], report["status"]) == (sid, "canceled")
    assert (report["to_number"], report["route"]) == (CALLEE, "sales")
    assert twilio.calls[sid].callbacks[-1].form["CallStatus"] == "canceled"


async def test_the_command(tmp_path: Any) -> None:
    """`bridge call +1...` prints the SID; for a number that may not be called it says
    so."""
    async with phones(Behaviour(), rest.Unreached("busy")) as (place, twilio):
        environ = {**os.environ, "BRIDGE_API_TOKEN": TOKEN}

        async def run(number: str, *options: str) -> tuple[int, str]:
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "bridge.cli.commands",
                    "call",
                    number,
                    *options,
                    "--url",
                    place.url,
                ),
                env=environ,
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await process.communicate()
            return process.returncode or 0, out.decode()

        code, told = await run(CALLEE, "--digits", "wwww12#")
        assert code == 0 and told.strip() in twilio.calls
        assert twilio.calls[told.strip()].asked["SendDigits"] == "wwww12#"
        code, told = await run("+4930123456")
        assert code == 1 and "not allowed" in told


async def test_the_api_needs_its_token() -> None:
    """Without the token a client can neither control nor place a call."""
    async with phones(Behaviour(), rest.Unreached("busy")) as (place, twilio):
        async with aiohttp.ClientSession() as http:
            url = f"{place.url}/api/calls"
            async with http.get(url) as refused:
                assert refused.status == 401
            async with http.post(url, json={"to": CALLEE}) as refused:
                assert refused.status == 401
        assert not twilio.calls


def test_a_plan_survives_the_registry() -> None:
    """What the webhook knows of a call, its stream knows on every instance."""
    plan = Plan(greeting="Hi.", machine="message", message="Call us.")

    assert Plan.read(plan.encoded(FORMAT)) == plan
    assert Plan.read(None) == Plan()


async def test_a_machine_that_was_reported_to_another_instance() -> None:
    """Twilio may report to any instance; the instance that has the call acts."""
    sid = "CA" + "5" * 32
    async with bridge(Behaviour(), greeting="Hi.") as place:
        registry = place.server.registry
        await registry.put(f"plan:{sid}", Plan(machine="hang_up").encoded(FORMAT), 60.0)
        calling = place.caller(call_sid=sid).call([steps.WaitStep(5)])
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(calling)
            await asyncio.sleep(0.5)
            await registry.publish(sid, b"answered_by:machine_start")
        await place.empty()

    assert call.result().ended_by == "bridge"
    assert place.metric('bridge_calls_total{outcome="bridge_machine"}') == 1
