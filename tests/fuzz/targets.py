"""The targets by name; each takes an input, and gives the messages that were in it."""

from collections.abc import Callable

from tests.fuzz import session, talk, texts

TARGETS: dict[str, Callable[[bytes], int]] = {
    "caller": texts.caller,
    "model": texts.model,
    "conversation": talk.conversation,
    "model_audio": texts.model_audio,
    "wire": session.wire,
    "sip": session.sip,
    "shelf": texts.shelf,
    "place": texts.place,
    "ticket": texts.ticket,
    "signature": texts.signature,
    "body": texts.body,
    "routes": texts.routes_file,
    "setting": texts.setting,
}
