"""One response of the fake model: its events in the server's order, paced or cancelled.

An ActiveResponse runs as one task of its session. Sending never waits: `emit` has sent
its event when it returns. So a cancellation between two events leaves no doubt about
which of them were sent.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain, islice

import msgspec

from bridge.sim.realtime.client_events import Json
from bridge.sim.realtime.context import SessionContext
from bridge.sim.realtime.input_audio_buffer import BYTES_PER_MS
from bridge.sim.realtime.items import ModelItem, ResponseRecord
from bridge.sim.realtime.mcp import HostedServers
from bridge.sim.realtime.render import Chunk, chunks, ruler_audio
from bridge.sim.realtime.turns import (
    BreakOff,
    CallMcp,
    CallTool,
    Fail,
    PlayAudio,
    PlayRuler,
    SayText,
    Turn,
)

# Seconds between late deltas: long enough to come after the client's reaction to the
# cancellation.
_LATE_GAP = 0.02
_LATE_ITEM_DELTAS = 2
_ARGUMENT_PIECE = 12  # characters per function_call_arguments.delta
_encode = msgspec.json.encode


class ActiveResponse:
    """A response that is being generated. `cancel` may be called at any time."""

    def __init__(
        self,
        session: SessionContext,
        mcp: HostedServers,
        record: ResponseRecord,
        turn: Turn,
        overrides: Json,
        on_end: Callable[["ActiveResponse"], None],
    ) -> None:
        self.session = session
        self._mcp = mcp
        self._on_end = on_end
        self.record = record
        # called once the response has ended
        self.afterwards: Callable[[], None] | None = None
        self.out_of_band = overrides.get("conversation") == "none"
        self._turn = turn
        self._overrides = overrides
        self._output_config = session.session["audio"]["output"] | overrides.get(
            "audio", {}
        ).get("output", {})
        self._modalities: list[str] = (session.session | overrides)["output_modalities"]
        self._format = str(self._output_config["format"]["type"])
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._item: ModelItem | None = None  # the item that is spoken now
        self._words_sent = 0  # of `_item`
        self._index = 0  # output_index of `_item`
        self._rest: Iterator[Chunk] = iter(())
        self._tail = ""  # of its audio deltas: JSON from event id to audio
        self._began = 0.0  # when the first delta was due
        self.spoken_seconds = 0.0  # of audio generated so far
        self._stalled = 0.0

    def start(self) -> None:
        """Announce the response and start its task."""
        self.session.out.emit(
            {"type": "response.created", "response": self._wire(finished=False)}
        )
        self.session.out.rate_limits(self.record.number)
        self._task = self.session.spawn(self._run(), "response")

    def cancel(self, reason: str) -> None:
        """Cancel the response: its open item is closed as incomplete, then
        response.done follows."""
        if self._cancelled:
            return
        self._cancelled = True
        assert self._task is not None
        self._task.cancel()
        behaviour = self.session.behaviour
        if (behaviour.late_deltas and self._item is not None) or behaviour.late_item:
            self._task = self.session.spawn(self._wind_down(reason), "late")
        else:
            self._finish("cancelled", reason)

    def abandon(self) -> None:
        """The connection is lost: send nothing more."""
        self._cancelled = True
        self.record.status = "cancelled"
        self.record.reason = self.record.reason or "disconnected"
        self.record.finished_at = self.session.now()

    @property
    def being_cancelled(self) -> bool:
        """The response is cancelled, and its response.done is not sent yet."""
        return self._cancelled

    # --- generating ---------------------------------------------------------------

    async def _run(self) -> None:
        think = self.session.behaviour.think_seconds / 2
        await asyncio.sleep(think)
        for index, output in enumerate(self._turn):
            self._index = index
            if isinstance(output, CallTool):
                self._call_tool(output)
            elif isinstance(output, CallMcp):
                if not await self._call_mcp(output):
                    break
            elif isinstance(output, BreakOff):
                self._finish("incomplete", output.reason)
                return
            elif isinstance(output, Fail):
                self._finish("failed", output.code, message=output.message)
                return
            else:
                # The item exists shortly before its audio. To truncate the item at
                # that moment is a common mistake of clients.
                self._open(output)
                if not self._began:
                    await asyncio.sleep(think)
                await self._speak()
                self._close("completed")
        self._finish("completed", None)

    async def _speak(self) -> None:
        if not self._began:
            self._began = self.session.now()
        speed = self.session.behaviour.speed
        for chunk in self._rest:
            await self._stall()
            due = self._began + self._stalled + self.spoken_seconds / speed
            delay = due - self.session.now()
            # Sleeps even when late, so that other tasks run between two deltas.
            await asyncio.sleep(max(0.0, delay))
            self._send(chunk)

    async def _stall(self) -> None:
        behaviour = self.session.behaviour
        if behaviour.stall is None or self._stalled:
            return
        chosen = behaviour.stall_responses
        if chosen is not None and self.record.number not in chosen:
            return
        after, pause = behaviour.stall
        if self.spoken_seconds >= after:
            await asyncio.sleep(pause)
            self._stalled = pause

    async def _wind_down(self, reason: str) -> None:
        """Send the deltas and the item that were in progress at the cancellation."""
        behaviour = self.session.behaviour
        if self._item is not None:
            for chunk in islice(self._rest, behaviour.late_deltas):
                await asyncio.sleep(_LATE_GAP)
                self._send(chunk)
        if behaviour.late_item:
            was_ruled = self._item is not None and self._item.ruler_number is not None
            if self._item is not None:
                self._close("incomplete")
                self._index += 1
            self._open(
                PlayRuler(2000) if was_ruled else SayText("And one more thing for you.")
            )
            for chunk in islice(self._rest, _LATE_ITEM_DELTAS):
                await asyncio.sleep(_LATE_GAP)
                self._send(chunk)
        self._finish("cancelled", reason)

    # --- events -------------------------------------------------------------------

    def _ids(self, item: ModelItem) -> Json:
        return {
            "response_id": self.record.id,
            "item_id": item.id,
            "output_index": self._index,
        }

    def _open(self, output: SayText | PlayAudio | PlayRuler) -> None:
        session = self.session
        number: int | None = None
        written = isinstance(output, SayText) and output.written
        if isinstance(output, PlayRuler):
            number = session.next_ruler_number()
            output = ruler_audio(output, number)
        item = ModelItem(
            id=session.new_id("item"),
            type="message",
            role="assistant",
            response_id=self.record.id,
            ruler_number=number,
            bytes_per_ms=BYTES_PER_MS[self._format],
            spoken="audio" in self._modalities and not written,
        )
        self._item = item
        self._words_sent = 0
        self._rest = iter(self._chunks(output))
        self._announce(item)
        kind = {"type": "audio", "transcript": ""}
        if not item.spoken:
            kind = {"type": "text", "text": ""}
        part = self._ids(item) | {"content_index": 0, "part": kind}
        session.out.emit({"type": "response.content_part.added"} | part)
        self._tail = (
            f'","response_id":"{self.record.id}","item_id":"{item.id}",'
            f'"output_index":{self._index},"content_index":0,"delta":"'
        )

    def _chunks(self, output: SayText | PlayAudio) -> tuple[Chunk, ...]:
        behaviour = self.session.behaviour
        return chunks(
            output,
            self._format,
            behaviour.delta_ms,
            behaviour.first_delta_ms,
            float(self._output_config["speed"]),
            behaviour.voice,
            behaviour.words_per_minute,
            behaviour.words_lead,
        )

    def _announce(self, item: ModelItem) -> None:
        self.record.items.append(item)
        self.session.out.emit(
            {
                "type": "response.output_item.added",
                "response_id": self.record.id,
                "output_index": self._index,
                "item": item.wire(),
            }
        )
        if not self.out_of_band:
            self.session.add_item(item, finished=False)

    def _send(self, chunk: Chunk) -> None:
        """Send the words that are due before a delta, then its audio."""
        item = self._item
        assert item is not None
        item.cues.extend(chunk.cues)
        for word in chunk.words:
            self._send_word(item, word)
        self.spoken_seconds += chunk.seconds
        if not item.spoken:
            return
        if self.record.first_audio_at is None:
            self.record.first_audio_at = self.session.now()
        item.sent_bytes += len(chunk.audio)
        item.chunks.append(chunk.audio)
        self.session.out.emit_audio(item, chunk, self._tail)

    def _send_word(self, item: ModelItem, word: str) -> None:
        kind = "output_audio_transcript" if item.spoken else "output_text"
        self._words_sent += 1
        item.generated_text += word
        if item.truncated_ms is None:
            item.text += word
        self.session.out.emit(
            {"type": f"response.{kind}.delta"}
            | self._ids(item)
            | {"content_index": 0, "delta": word}
        )

    def _close(self, status: str) -> None:
        """Send every *.done of the open item; a cancelled item gets them too."""
        item = self._item
        assert item is not None
        for _, word in item.cues[self._words_sent :]:
            self._send_word(item, word)  # that come behind their audio
        self._item = None
        self._rest = iter(())
        item.status = status
        item.complete = status == "completed"
        ids = self._ids(item) | {"content_index": 0}
        emit = self.session.out.emit
        text = item.generated_text
        if item.spoken:
            emit({"type": "response.output_audio.done"} | ids)
            transcript = {"transcript": text}
            emit({"type": "response.output_audio_transcript.done"} | ids | transcript)
            part: Json = {"type": "audio", "transcript": text}
        else:
            emit({"type": "response.output_text.done"} | ids | {"text": text})
            part = {"type": "text", "text": text}
        emit({"type": "response.content_part.done"} | ids | {"part": part})
        self._conclude(item)

    def _conclude(self, item: ModelItem) -> None:
        if not self.out_of_band:
            self.session.finish_item(item)
        self.session.out.emit(
            {
                "type": "response.output_item.done",
                "response_id": self.record.id,
                "output_index": self._index,
                "item": item.wire(),
            }
        )

    def _call_tool(self, output: CallTool) -> None:
        session = self.session
        item = ModelItem(
            id=session.new_id("item"),
            type="function_call",
            response_id=self.record.id,
            call_id=session.new_id("call"),
            name=output.name,
            arguments="",
        )
        ids: Json = {"call_id": item.call_id}
        self._write_arguments("function_call", item, output, ids, {"name": output.name})
        item.status = "completed"
        item.complete = True
        self._conclude(item)

    def _write_arguments(
        self,
        kind: str,
        item: ModelItem,
        output: CallTool | CallMcp,
        ids: Json,
        at_the_end: Json,
    ) -> None:
        """Announce the item, then send its arguments in pieces."""
        emit = self.session.out.emit
        self._announce(item)
        arguments = _encode(dict(output.arguments)).decode()
        ids = self._ids(item) | ids
        for at in range(0, len(arguments), _ARGUMENT_PIECE):
            piece = {"delta": arguments[at : at + _ARGUMENT_PIECE]}
            emit({"type": f"response.{kind}_arguments.delta"} | ids | piece)
        item.arguments = arguments
        done = {"arguments": arguments} | at_the_end
        emit({"type": f"response.{kind}_arguments.done"} | ids | done)

    async def _call_mcp(self, output: CallMcp) -> bool:
        """False: the call needs approval first, so the response ends here."""
        session = self.session
        item = ModelItem(
            id=session.new_id("mcp"),
            type="mcp_call",
            response_id=self.record.id,
            server_label=output.server_label,
            name=output.name,
            arguments="",
        )
        self._write_arguments("mcp_call", item, output, {}, {})
        if self._mcp.needs_approval(output):
            request = ModelItem(
                id=session.new_id("mcpr"),
                type="mcp_approval_request",
                response_id=self.record.id,
                server_label=output.server_label,
                name=output.name,
                arguments=item.arguments,
                complete=True,
            )
            self._mcp.await_approval(request, item, output, self._index)
            self._index += 1
            self._announce(request)
            self._conclude(request)
            return False
        await self._mcp.run(item, output, self._index)
        self._conclude(item)
        return True

    def _finish(self, status: str, reason: str | None, message: str = "") -> None:
        if self._item is not None:
            self._close("completed" if status == "completed" else "incomplete")
        record = self.record
        record.status = status
        record.reason = reason
        record.finished_at = self.session.now()
        self.session.out.emit(
            {
                "type": "response.done",
                "response": self._wire(finished=True, message=message),
            }
        )
        self._on_end(self)

    def _wire(self, *, finished: bool, message: str = "") -> Json:
        record = self.record
        details: Json | None = None
        if record.status in ("cancelled", "incomplete"):
            details = {"type": record.status, "reason": record.reason}
        elif record.status == "failed":
            error = {"type": "server_error", "code": record.reason, "message": message}
            details = {"type": "failed", "error": error}
        return {
            "object": "realtime.response",
            "id": record.id,
            "status": record.status,
            "status_details": details,
            "output": [item.wire() for item in record.items] if finished else [],
            "conversation_id": None
            if self.out_of_band
            else self.session.conversation_id,
            "output_modalities": self._modalities,
            "max_output_tokens": self._overrides.get(
                "max_output_tokens", self.session.session["max_output_tokens"]
            ),
            "audio": {
                "output": {
                    "format": self._output_config["format"],
                    "voice": self._output_config["voice"],
                }
            },
            "usage": self._usage() if finished else None,
            "metadata": self._overrides.get("metadata"),
        }

    def _usage(self) -> Json:
        """Plausible token counts: 10 per second heard, 20 per second spoken, 1 per 4
        letters."""
        texts = chain.from_iterable(
            (item.generated_text, item.arguments or "") for item in self.record.items
        )
        text_out = sum(len(text) for text in texts) // 4
        audio_out = int(sum(item.sent_ms for item in self.record.items) / 50)
        text_in, audio_in = self.session.context_tokens()
        return {
            "total_tokens": text_in + audio_in + text_out + audio_out,
            "input_tokens": text_in + audio_in,
            "output_tokens": text_out + audio_out,
            "input_token_details": {
                "text_tokens": text_in,
                "audio_tokens": audio_in,
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": {
                    "text_tokens": 0,
                    "audio_tokens": 0,
                    "image_tokens": 0,
                },
            },
            "output_token_details": {
                "text_tokens": text_out,
                "audio_tokens": audio_out,
            },
        }
