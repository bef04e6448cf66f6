"""What is asked of a running call: by user code (this is the CallControl of its
LiveCall), by the route for keys, and by the plan of an outbound call.

Each request becomes an input of the core. Some requests wait until the caller has heard
everything; their waits are kept here.
"""

import asyncio
import base64
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bridge.agent.live import BadRequest, CallOver, NotAllowed, Role, Transfer
from bridge.app.routes import HangUpAction, KeyAction, TellAction
from bridge.audio import g711
from bridge.call.answering import Answering
from bridge.call.leg import Refer
from bridge.call.warm_transfer import WarmTransfers
from bridge.core.answered import Answer
from bridge.core.capabilities import Capabilities
from bridge.core.commands import Note, limit_hit
from bridge.core.history import History, HistoryItem
from bridge.core.inputs import (
    Edit,
    EndCall,
    GiveUpWait,
    Input,
    Interrupt,
    MuteCaller,
    Play,
    Tell,
    WhenHeard,
)
from bridge.websocket.text_socket import StartTask

APPEND = "input_audio_buffer.append"

NO_WARM_TRANSFER = (
    "this call's line has no warm transfer: its audio does not pass through the bridge"
)
"""Of a SIP call at OpenAI."""


class Actions:
    """A bridge.agent.live.CallControl."""

    def __init__(
        self,
        feed: Callable[[Input], None],
        note: Callable[[Note], None],
        history: History,
        capabilities: Capabilities,
        session_started: Callable[[], bool],
        send_raw: Callable[[Mapping[str, Any]], None],
        check_transfer: Callable[[Transfer], None],
        refer: Refer | None,
        warm: Callable[[], WarmTransfers],
        start_task: StartTask,
    ) -> None:
        """`check_transfer` raises NotAllowed or BadRequest. `refer`: how the leg
        transfers; None: the call ends as `transferred`. `warm`: of a call that is
        known."""
        self._feed = feed
        self._note = note
        self._history = history
        self._capabilities = capabilities
        self._session_started = session_started
        self._send_raw = send_raw
        self._check_transfer = check_transfer
        self._refer = refer
        self._warm = warm
        self._start_task = start_task
        self._waits: dict[int, tuple[asyncio.Future[bool | None], Transfer | None]] = {}
        self._wait_numbers = itertools.count(1)
        self.answering = Answering(feed, note, self._leave_message, start_task)
        self.tones = (g711.KEY_MS, g711.KEY_GAP_MS)
        """Length of a key's tone, and of the silence after it, in ms."""
        self.transfer_target: Transfer | None = None
        """Where the caller goes if the call ends as `transferred`."""

    # --- bridge.agent.live.CallControl ---

    @property
    def history(self) -> Sequence[HistoryItem]:
        return self._history.items

    def tell(self, role: Role, text: str, *, respond: bool) -> None:
        self._feed(Tell(role, text, respond))

    def interrupt(self, by: str) -> None:
        self._feed(Interrupt(by))

    def mute(self, on: bool) -> None:
        self._feed(MuteCaller(on))

    def send_raw(self, event: Mapping[str, Any]) -> None:
        if event["type"] == APPEND and not self._capabilities.has_audio:
            raise BadRequest(
                "the audio of a SIP call does not pass the bridge: nothing can be added"
            )
        self._send_raw(event)

    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        self._feed(Edit(tuple(removed), dict(corrected)))

    async def heard(self) -> bool:
        return await self._wait_until_heard(None)

    async def hang_up(self) -> bool:
        return await self._end_when_heard(("agent", "hung_up"), None)

    async def transfer(self, transfer: Transfer, summary: str) -> bool:
        try:
            self._check_transfer(transfer)
        except NotAllowed:
            self._note(limit_hit("transfer_number"))
            raise
        if transfer.warm and self._refer:
            raise BadRequest(NO_WARM_TRANSFER)
        if transfer.warm:
            await self._warm().begin(transfer, summary)
            return True
        if not self._refer:
            return await self._end_when_heard(("agent", "transferred"), transfer)
        if transfer.caller_id:
            raise BadRequest(
                "a SIP call cannot set the number that is shown (caller_id)"
            )
        if transfer.digits or transfer.whisper or transfer.accept:
            raise BadRequest(
                "a SIP call cannot have digits, whisper or accept in a transfer"
            )
        if not await self._wait_until_heard(None):
            return False
        await self._refer(transfer)
        return True

    async def send_digits(self, digits: str) -> bool:
        if not self._capabilities.has_audio:
            raise BadRequest("a SIP call cannot send digits")
        if not await self._wait_until_heard(None):
            return False
        tones = base64.b64encode(g711.key_tones(digits, *self.tones)).decode()
        self._feed(Play(tones))
        # Not stoppable: the machine that the tones are for answers them with speech.
        return await self._wait_until_heard(None, stoppable=False)

    def decide_answer(self, who: Answer) -> bool:
        return self.answering.decide(who)

    # --- used by the call ---

    def run_key_action(self, action: KeyAction) -> None:
        """Runs an action that the route defines for keys."""
        self._feed(Interrupt("keys"))
        match action:
            case TellAction(text):
                self._feed(Tell("system", text, True))
            case HangUpAction():
                self._feed(EndCall("agent", "hung_up"))
            case Transfer() if self._refer:
                self._start_task(self._refer_by_key(self._refer, action), "keys")
            case Transfer(warm=True):
                self._start_task(self._warm().begin_by_key(action), "keys")
            case Transfer():
                self.transfer_target = action
                self._feed(EndCall("agent", "transferred"))

    async def _refer_by_key(self, refer: Refer, transfer: Transfer) -> None:
        try:
            if transfer.warm:
                raise BadRequest(NO_WARM_TRANSFER)
            await refer(transfer)
        except (BadRequest, CallOver) as error:
            self._note(Note("key_action_failed", {"error": type(error).__name__}))

    async def join(self, target: Transfer, seconds: float) -> None:
        """Ends the call as transferred to `target` when the caller has heard what the
        agent is saying, after so many seconds at the latest."""
        then = ("agent", "transferred")
        _, waiting = self._start_wait(then, stoppable=False, transfer=target)
        await asyncio.wait([waiting], timeout=seconds)
        if not waiting.done() or waiting.result() is False:
            self.transfer_target = target
            self._feed(EndCall(*then))

    def _leave_message(self) -> None:
        self._start_wait(("agent", "message_left"), stoppable=False)

    def finish_wait(self, number: int, done: bool | None) -> None:
        """Carries out `WaitDone`."""
        waiting, transfer = self._waits.pop(number)
        if done and transfer:
            self.transfer_target = transfer
        if not waiting.done():
            waiting.set_result(done)

    # --- waiting ---

    def _start_wait(
        self,
        then: tuple[str, str] | None,
        *,
        stoppable: bool = True,
        transfer: Transfer | None = None,
    ) -> tuple[int, asyncio.Future[bool | None]]:
        """Starts to wait until the caller has heard everything (inputs.WhenHeard). The
        result is that of `WaitDone`."""
        number = next(self._wait_numbers)
        waiting = asyncio.get_running_loop().create_future()
        self._waits[number] = (waiting, transfer)
        self._feed(WhenHeard(number, then, stoppable))
        return number, waiting

    async def _end_when_heard(
        self, then: tuple[str, str], transfer: Transfer | None
    ) -> bool:
        if not self._session_started():
            # The session waits for the user's code that asks for this, so the code
            # cannot wait for the session: the call ends later.
            self._start_wait(then, transfer=transfer)
            return True
        return await self._wait_until_heard(then, transfer=transfer)

    async def _wait_until_heard(
        self,
        then: tuple[str, str] | None,
        *,
        stoppable: bool = True,
        transfer: Transfer | None = None,
    ) -> bool:
        """Waits until the caller has heard everything, then ends the call as `then`
        says, if given. False if the wait was stopped: the caller spoke, or the stream
        broke. CallOver if the call ended meanwhile."""
        if not self._session_started():
            raise BadRequest("cannot wait before the agent's session has started")
        number, waiting = self._start_wait(then, stoppable=stoppable, transfer=transfer)
        try:
            done = await waiting
        except asyncio.CancelledError:
            self._feed(GiveUpWait(number))
            self._waits.pop(number, None)
            raise
        if done is None:
            raise CallOver
        return done
