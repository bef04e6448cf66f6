"""The control API's operations: what a client can read about a call and do with it."""

import json
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.agent.live import Transfer
from bridge.app.outbound import (
    CallStatus,
    OutboundCalls,
    OutboundOrder,
    RepeatedKey,
)
from bridge.app.outbound_limits import OutboundLimited
from bridge.app.routes import Route, Routes
from bridge.app.twilio_api import RestAccess, TwilioApi, TwilioRefused
from bridge.core.history import HistoryItem
from bridge.fleet.memory import MemoryRegistry
from bridge.http.api import call_operations, handlers
from bridge.privacy.redaction import Redaction
from tests.http.api.call_directory import ELSEWHERE, SID, ApiClient, api
from tests.support.call_control import FACTS

HISTORY = [
    HistoryItem("i1", "user", "Hello", at=1.5),
    HistoryItem("i2", "tool_call", call_id="c1", name="menu", arguments="{}"),
    HistoryItem("i3", "tool_output", "funghi", call_id="c1"),
    HistoryItem("i4", "assistant", "We have", "We have funghi", True, 3.25),
]


class RecordedDecision:
    """The decision on a tool call that waited for approval."""

    def __init__(self, at: ApiClient, call_id: str = "c9") -> None:
        self.told: list[tuple[bool, bool, str | None]] = []
        at.live._approvals.ask(call_id, "refund", '{"n":5}', "billing", self)

    async def __call__(
        self, approved: bool, *, always: bool, message: str | None
    ) -> None:
        self.told.append((approved, always, message))


# --- reading ---


async def test_the_calls_of_all_instances_are_listed() -> None:
    """An operator sees the whole fleet, and which instance has which call."""
    async with api() as at:
        calls = (await at.get("/calls")).json["calls"]

    assert calls == [
        {
            "call_sid": ELSEWHERE,
            "stream_sid": "MZ" + "8" * 32,
            "started_at": "2023-11-14T22:13:20Z",
            "here": False,
            "instance": "other",
        },
        {
            "call_sid": SID,
            "stream_sid": FACTS.stream_sid,
            "started_at": "2023-11-14T22:14:20Z",
            "here": True,
            "instance": "",
        },
    ]


async def test_the_details_of_a_call() -> None:
    """Numbers, transcript, cost and waiting approvals of a call."""
    async with api() as at:
        at.line.history = HISTORY
        at.live.began = time.time() - 60
        at.live.cost = 0.5
        at.live.input_tokens = 10
        at.live.take_message("Call me.")
        RecordedDecision(at)
        call = (await at.get("/calls/{sid}")).json

    assert 60 <= call["seconds"] < 62
    assert (call["from_number"], call["to_number"]) == ("+14155550101", "+14155550199")
    assert (call["direction"], call["route"]) == ("inbound", "sales")
    assert (call["agent"], call["muted"], call["messages"]) == (
        "receptionist",
        False,
        1,
    )
    assert (call["cost"], call["input_tokens"], call["output_tokens"]) == (0.5, 10, 0)
    assert call["transcript"] == [
        {"at": 1.5, "who": "caller", "text": "Hello", "generated": "", "cut": False},
        {
            "at": 3.25,
            "who": "agent",
            "text": "We have",
            "generated": "We have funghi",
            "cut": True,
        },
    ]
    assert [it["tool"] for it in call["approvals"]] == ["refund"]


async def test_an_unknown_call_gets_404() -> None:
    """A wrong SID, whatever the operation. (tests/fleet/test_control_api.py has calls
    of other instances.)"""
    async with api() as at:
        for method, path, body in (
            ("GET", "/calls/{}", None),
            ("POST", "/calls/{}/hang_up", None),
            ("POST", "/calls/{}/mute", {"on": True}),
            ("GET", "/calls/{}/events", None),
        ):
            lost = await at.ask(method, path.format("CA0"), body)
            assert (lost.status, lost.json["type"]) == (
                404,
                "urn:problem:bridge:no-call",
            )


async def test_an_unreachable_registry_is_reported() -> None:
    """The answer names the cause. Calls of this instance can still be steered."""
    async with api() as at:
        at.calls.fails = ConnectionRefusedError()
        assert (await at.get("/calls")).status == 503
        assert (await at.post("/calls/{sid}/interrupt")).status == 204


# --- steering ---


async def test_a_call_is_steered() -> None:
    """Text, mute and interrupt reach the call."""
    async with api() as at:
        call = "/calls/{sid}"
        text: dict[str, Any] = {"text": "We close.", "role": "system", "respond": False}
        for path, body in (
            ("text", {"text": "Hello"}),
            ("text", text),
            ("interrupt", None),
            ("interrupt", {}),
            ("mute", {"on": True}),
        ):
            assert (await at.post(f"{call}/{path}", body)).status == 204
        assert (await at.get(call)).json["muted"] is True

    assert at.line.asked == [
        ("tell", "user", "Hello", True),
        ("tell", "system", "We close.", False),
        ("interrupt", "application"),
        ("interrupt", "application"),
        ("mute", True),
    ]


@pytest.mark.parametrize("done", [True, False])
async def test_an_action_says_whether_it_was_done(done: bool) -> None:
    """If the caller speaks, the call is not ended, and the client learns it."""
    number = {"number": "+1 (415) 555-0111", "ring_seconds": 30}
    async with api() as at:
        at.line.done = done
        for path, body in (
            ("hang_up", None),
            ("transfer", number),
            ("digits", {"digits": "1w#"}),
        ):
            answer = await at.post(f"/calls/{{sid}}/{path}", body)
            assert (answer.status, answer.json) == (200, {"done": done})

    assert at.line.asked == [
        ("hang_up",),
        ("transfer", Transfer("+14155550111", "", 30)),
        ("send_digits", "1w#"),
    ]


async def test_an_action_that_takes_too_long_gets_504(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client does not wait for ever while the caller listens to a long answer."""
    monkeypatch.setattr(call_operations, "ACTION_SECONDS", 0.05)
    async with api() as at:
        at.line.free.clear()
        answer = await at.post("/calls/{sid}/hang_up")

    assert answer.status == 504
    assert "may still happen" in answer.json["detail"]


async def test_a_call_that_is_over_gets_410() -> None:
    """A client that comes too late gets 410, whatever the operation."""
    async with api() as at:
        RecordedDecision(at)
        at.live.end()
        for path, body in (
            ("hang_up", None),
            ("transfer", {"number": "+14155550111"}),
            ("digits", {"digits": "1"}),
            ("text", {"text": "Hello"}),
            ("interrupt", None),
            ("mute", {"on": False}),
            ("approvals/c9", {"approve": True}),
        ):
            answer = await at.post(f"/calls/{{sid}}/{path}", body)
            assert (answer.status, answer.json["title"]) == (410, "The call is over")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("transfer", {"number": "911"}),
        ("transfer", {"number": "+14155550111", "ring_seconds": 1}),
        ("digits", {"digits": "one"}),
        ("text", {"text": "  "}),
        ("mute", {"on": "yes"}),
        ("hang_up", {"now": True}),
        ("approvals/c9", {"approve": True, "message": "no"}),
    ],
)
async def test_invalid_requests_are_refused(path: str, body: dict[str, Any]) -> None:
    """The answer names the mistake, and nothing is done."""
    async with api() as at:
        decided = RecordedDecision(at)
        answer = await at.post(f"/calls/{{sid}}/{path}", body)

        assert answer.status == 422
        assert answer.json["errors"][0]["what"]
        assert at.line.asked == []
        assert decided.told == []


async def test_a_transfer_to_a_number_that_is_not_allowed() -> None:
    """A client that may steer calls may not dial every number. The answer differs from
    that to a mistake, and does not contain the number."""
    async with api() as at:
        at.line.allowed = False
        body = {"number": "+19005550100"}
        answer = await at.post("/calls/{sid}/transfer", body)

    assert answer.status == 403
    assert answer.json["type"].endswith(":not-allowed")
    assert answer.json["detail"] and "555" not in answer.text


# --- approvals ---


async def test_a_tool_call_is_approved_or_rejected() -> None:
    """A person decides about a refund while the caller is on the line."""
    async with api() as at:
        yes, no = RecordedDecision(at, "c1"), RecordedDecision(at, "c2")
        [first, second] = (await at.get("/calls/{sid}/approvals")).json["approvals"]
        assert (first["call_id"], first["arguments"]) == ("c1", '{"n":5}')
        assert (second["agent"], second["server"]) == ("billing", "")
        assert first["since"] < first["until"]

        path = "/calls/{sid}/approvals/"
        body: dict[str, Any] = {"approve": True, "always": True}
        assert (await at.post(path + "c1", body)).status == 204
        body = {"approve": False, "message": "Too much."}
        assert (await at.post(path + "c2", body)).status == 204
        assert (yes.told, no.told) == (
            [(True, True, None)],
            [(False, False, "Too much.")],
        )

        again = await at.post(path + "c1", {"approve": False})
        assert (again.status, again.json["type"]) == (
            404,
            "urn:problem:bridge:no-approval",
        )
        assert (await at.get("/calls/{sid}/approvals")).json["approvals"] == []


# --- the conversation ---


async def test_the_history_is_read_and_changed() -> None:
    """A card number that was spoken is removed from the model's conversation."""
    path = "/calls/{sid}/history"
    async with api() as at:
        at.line.history = HISTORY
        items = (await at.get(path)).json["items"]
        assert [it["id"] for it in items] == ["i1", "i2", "i3", "i4"]
        assert items[1]["name"] == "menu"

        body = {"remove": ["i1"], "correct": {"i4": "We have nothing"}}
        assert (await at.ask("PATCH", path, body)).status == 204
        unknown = await at.ask("PATCH", path, {"remove": ["i7"]})
        assert unknown.status == 422
        assert unknown.json["errors"][0]["what"].endswith("history: i7")

    assert at.line.asked == [("edit_history", ["i1"], {"i4": "We have nothing"})]


# --- placing calls ---


async def test_a_call_is_placed() -> None:
    """A client places a call and learns its URL in the API."""
    body = {
        "to": "+14155550155",
        "from": "+14155550199",
        "route": "sales",
        "parameters": {"order": "7"},
        "greeting": "Good morning!",
        "machine": "message",
        "message": "Please call back.",
        "ring_seconds": 25,
    }
    async with api() as at:
        answer = await at.post("/calls", body)

    [wanted] = at.calls.placed
    assert answer.status == 201
    assert answer.headers["location"] == f"/api/calls/{answer.json['call_sid']}"
    assert wanted.model_dump(by_alias=True, exclude_defaults=True) == body


async def test_a_call_that_is_refused_says_why() -> None:
    """Limits and mistakes are reported in the words of their source."""
    async with api() as at:
        at.calls.refused = handlers.Refused(
            409, "Outbound calls are not set up", "Why."
        )
        answer = await at.post("/calls", {"to": "+14155550155"})
        assert (answer.status, answer.json["detail"]) == (409, "Why.")
        ours = {"to": "+14155550155", "parameters": {"From": "+1"}}
        answer = await at.post("/calls", ours)
        assert answer.status == 422
        assert "From" in answer.json["errors"][0]["what"]


@pytest.mark.parametrize(
    "change", [{"longest_seconds": 14_401}, {"message": "a" * 9000}]
)
async def test_numbers_and_texts_of_the_request_are_bounded(
    change: dict[str, Any],
) -> None:
    """A value that Twilio or the call would refuse is refused before a phone rings."""
    async with api() as at:
        answer = await at.post("/calls", {"to": "+14155550155", **change})

    assert answer.status == 422 and not at.calls.placed


async def test_an_idempotency_key_reaches_the_order() -> None:
    """A client that repeats a request names it; a key without a bound is refused."""
    async with api() as at:
        body = {"to": "+14155550155"}
        await at.ask("POST", "/calls", body, headers={"Idempotency-Key": "k1"})
        long = {"Idempotency-Key": "k" * 256}
        answer = await at.ask("POST", "/calls", body, headers=long)

    assert at.calls.keys == ["k1"]
    assert (answer.status, answer.json["errors"][0]["at"]) == (422, "Idempotency-Key")


async def test_why_a_call_failed() -> None:
    """The status of an outbound call is there after its end, with the reason."""
    failed = CallStatus("CA7", "failed", 2, sip_code=404, error_code=13223)
    async with api() as at:
        at.calls.statuses["CA7"] = failed
        answer = await at.get("/calls/CA7/status")
        assert (await at.get("/calls/CA8/status")).status == 404

    assert answer.json == {
        "call_sid": "CA7",
        "state": "failed",
        "talked_seconds": None,
        "sip_code": 404,
        "error_code": 13223,
    }


@pytest.mark.parametrize(
    ("state", "status"),
    [("canceled", 200), ("in-progress", 409), ("completed", 410), (None, 404)],
)
async def test_a_call_that_cannot_be_canceled_says_why(state: Any, status: int) -> None:
    """A client that cancels too late learns whether a person is on the line."""
    async with api() as at:
        if state:
            at.calls.statuses["CA7"] = CallStatus("CA7", state, 2)
        answer = await at.post("/calls/CA7/cancel")

    assert answer.status == status


class FakeOutbound(OutboundCalls):
    """OutboundCalls without Twilio: records orders, or refuses them."""

    def __init__(self, says: Exception | None = None) -> None:
        super().__init__(
            MemoryRegistry(),
            TwilioApi(RestAccess("AC1", "AC1", "t")),
            public_url="https://bridge.example",
            prefixes=["+1"],
        )
        self.says = says
        self.orders: list[OutboundOrder] = []

    async def place(self, order: OutboundOrder, idempotency_key: str = "") -> str:
        if self.says:
            raise self.says
        self.orders.append(order)
        return "CA7"


ROUTES = Routes(routes=(Route(name="sales"),))


async def test_every_field_reaches_the_order() -> None:
    """Every field of a request reaches Twilio's order."""
    wanted = handlers.PlaceCall.model_validate(
        {
            "to": "+14155550155",
            "route": "sales",
            "parameters": {"order": "7"},
            "greeting": "",
            "machine": "message",
            "message": "Please call back.",
            "ring_seconds": 25,
            "longest_seconds": 600,
            "campaign": "spring",
        }
    )
    there = FakeOutbound()

    assert await handlers.place(there, wanted, "+14155550199", ROUTES) == "CA7"

    [order] = there.orders
    assert (order.to, order.from_number) == (wanted.to, "+14155550199")
    assert (order.route, order.parameters) == ("sales", {"order": "7"})
    assert (order.greeting, order.machine) == ("", "message")
    assert (order.message, order.ring_seconds) == ("Please call back.", 25)
    assert (order.longest_seconds, order.campaign) == (600, "spring")


@pytest.mark.parametrize(
    ("changes", "number", "status"),
    [
        ({}, None, 422),
        ({"route": "nowhere"}, "+14155550199", 422),
        ({"to": "911"}, "+14155550199", 422),
        ({"machine": "message"}, "+14155550199", 422),
        ({"parameters": {"a": "b" * 500}}, "+14155550199", 422),
        ({"parameters": {"a": "\x00"}}, "+14155550199", 422),
        ({"parameters": dict.fromkeys(map(str, range(200)), "b" * 400)}, "+1" * 5, 422),
        ({"longest_seconds": 3601}, "+14155550199", 422),
        ({"send_digits": "1x", "machine": "ignore"}, "+14155550199", 422),
        ({"send_digits": "1"}, "+14155550199", 422),
    ],
)
async def test_invalid_calls_are_not_placed(
    changes: dict[str, Any], number: str | None, status: int
) -> None:
    """A mistake is found before a phone rings."""
    wanted = handlers.PlaceCall.model_validate({"to": "+14155550155", **changes})
    there = FakeOutbound()

    with pytest.raises(handlers.Refused) as refused:
        await handlers.place(there, wanted, number, ROUTES, longest_seconds=3600)

    assert refused.value.status == status
    assert there.orders == []


@pytest.mark.parametrize(
    ("says", "status"),
    [
        (OutboundLimited("off", "no number may be called"), 409),
        (OutboundLimited("prefix", "not allowed"), 403),
        (OutboundLimited("at_once", "10 calls are running"), 429),
        (OutboundLimited("rate", "too many wait"), 429),
        (OutboundLimited("number", "a call is running"), 429),
        (OutboundLimited("campaign", "a call is running"), 429),
        (RepeatedKey(other=True), 422),
        (RepeatedKey(other=False), 409),
        (OutboundLimited("cost", "the day has cost enough"), 429),
        (OutboundLimited("registry", "Redis is away"), 503),
        (TwilioRefused(21211, 400, "Invalid 'To'"), 422),
        (TwilioRefused(20003, 401, "Authenticate"), 502),
        (TwilioRefused(0, 0, "Twilio could not be asked"), 502),
    ],
)
async def test_each_kind_of_refusal_has_its_status(
    says: Exception, status: int
) -> None:
    """A limit of the bridge, a wrong number and a failure of Twilio get different
    statuses, so that the client can react correctly."""
    wanted = handlers.PlaceCall.model_validate({"to": "+14155550155"})

    with pytest.raises(handlers.Refused) as refused:
        await handlers.place(FakeOutbound(says), wanted, "+14155550199", ROUTES)

    assert refused.value.status == status
    body = refused.value.response().body
    assert isinstance(body, bytes)
    assert str(says) in json.loads(body)["detail"]


# --- records and redaction ---

OVER = "CA" + "7" * 32


async def test_records_of_a_call_are_deleted() -> None:
    """A client deletes the records of a caller who asks for it; deleting twice does no
    harm."""
    async with api() as at:
        for _ in range(2):
            answer = await at.ask("DELETE", f"/calls/{OVER}/record")
            assert (answer.status, answer.text) == (204, "")
        assert at.calls.forgotten == [OVER, OVER]


@pytest.mark.parametrize("sid", [SID, ELSEWHERE])
async def test_records_of_a_running_call_are_not_deleted(sid: str) -> None:
    """The records of a running call are still being written, here or on another
    instance."""
    async with api() as at:
        answer = await at.ask("DELETE", f"/calls/{sid}/record")
        assert answer.status == 409
        assert answer.json["type"].endswith("running")
        assert not at.calls.forgotten


async def test_a_record_that_cannot_be_deleted_is_reported() -> None:
    """The client learns that records remain; the log gives the reason, without a
    path."""
    async with api() as at:
        at.calls.keeps = PermissionError(13, "Permission denied", f"/srv/{OVER}.jsonl")
        with capture_logs() as logged:
            answer = await at.ask("DELETE", f"/calls/{OVER}/record")
        assert answer.status == 500
        assert answer.json["type"].endswith("not-deleted")

    [line] = [it for it in logged if it["event"] == "records_not_deleted"]
    assert line["why"] == "Permission denied"


async def test_without_records_a_deletion_is_refused() -> None:
    """The client learns that no records exist, instead of a false success."""
    async with api(records=False) as at:
        answer = await at.ask("DELETE", f"/calls/{OVER}/record")
        assert answer.status == 409


async def test_answers_are_redacted() -> None:
    """A dashboard shows the call, but no card number."""
    card = "4111 1111 1111 1111"
    async with api() as at:
        at.live.redaction = Redaction(cards=True)
        at.line.history = [
            HistoryItem("i1", "user", f"It is {card}.", at=1.5),
            HistoryItem(
                "i2", "tool_call", name="pay", arguments=f'{{"card":"{card}"}}'
            ),
            HistoryItem("i3", "tool_output", card, call_id="c1"),
            HistoryItem("i4", "tool_call", name=f"charge {card}"),  # no tool of ours
        ]
        at.live._approvals.ask(
            "c9", "pay", f'{{"card":"{card}"}}', "a", RecordedDecision(at)
        )
        details = await at.get("/calls/{sid}")
        history = await at.get("/calls/{sid}/history")
        approvals = await at.get("/calls/{sid}/approvals")

    for answer in (details, history, approvals):
        assert answer.status == 200
        assert "1111 1111" not in answer.text
        assert "[card number]" in answer.text
    assert details.json["from_number"] == FACTS.from_number
    [waiting] = [it for it in approvals.json["approvals"] if it["call_id"] == "c9"]
    assert json.loads(waiting["arguments"]) == {"card": "[card number]"}
