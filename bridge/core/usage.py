"""The tokens of one response, as the server counts them. PURE."""

from typing import Annotated

import msgspec

MAX_TOKENS = 10_000_000
"""Most tokens of one response: a hundred times what a session can hold. A higher number
is not counted, because one such event would use up the budget of a day."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class CachedTokens(msgspec.Struct, frozen=True):
    text_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class InputTokens(msgspec.Struct, frozen=True):
    text_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None
    cached_tokens_details: CachedTokens | None = None


class OutputTokens(msgspec.Struct, frozen=True):
    text_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one response. Cached tokens are part of the input's."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    input_token_details: InputTokens | None = None
    output_token_details: OutputTokens | None = None
