"""The targets by name. Each takes an input and returns its number of messages."""

from collections.abc import Callable

from tests.fuzz import any_call, phones, session, texts

TARGETS: dict[str, Callable[[bytes], int]] = {
    "caller": texts.caller,
    "model": texts.model,
    "conversation": any_call.conversation,
    "model_audio": texts.model_audio,
    "wire": session.wire,
    "sip": session.sip,
    "snapshot": texts.snapshot,
    "queue_place": texts.queue_place,
    "redaction": texts.redaction,
    "ticket": texts.ticket,
    "signature": texts.signature,
    "webhook": texts.webhook,
    "body": texts.body,
    "routes": texts.routes_file,
    "setting": texts.setting,
    "parameters": phones.parameters,
    "status": phones.status,
    "dial_result": phones.dial_result,
    "warm": phones.warm,
    "number": phones.number,
    "wav": phones.wav,
    "order": phones.order,
}
