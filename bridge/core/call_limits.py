"""Limits of one call: silence, duration and cost. Says which limit is reached."""

from bridge.core.rules import Prices, Rules
from bridge.core.usage import CachedTokens, InputTokens, OutputTokens, Usage


class CallLimits:
    """`watch` must be called when anything may have changed, `due` at `due_at`."""

    def __init__(self, rules: Rules, now: float) -> None:
        self._rules = rules
        self._began = now
        self._quiet_since: float | None = None
        self._asked = 0
        self.cost = rules.spent

    def watch(self, quiet: bool, now: float) -> None:
        """`quiet`: nobody speaks, no audio is queued or expected, no tool runs."""
        if not quiet:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now

    def caller_is_there(self) -> None:
        """The caller spoke or pressed a key."""
        self._asked = 0
        self._quiet_since = None

    def spend(self, usage: Usage) -> float:
        """Adds a response to the call's cost and returns what it cost; 0 without
        prices."""
        cost = cost_of(usage, self._rules.prices) if self._rules.prices else 0.0
        self.cost += cost
        return cost

    @property
    def due_at(self) -> float | None:
        """When `due` must be called; None: at no known time (only events change the
        cost)."""
        silent_at, longest_at = self._silent_at, self._longest_at
        if silent_at is None or longest_at is None:
            return longest_at if silent_at is None else silent_at
        return min(silent_at, longest_at)

    def due(self, now: float) -> str | None:
        """ "ask": ask whether the caller is there. Else the reason why the call must
        end, or None."""
        if self._longest_at is not None and now >= self._longest_at:
            return "longest"
        limit = self._rules.cost_limit
        if limit is not None and self.cost >= limit:
            return "cost"
        if self._silent_at is None or now < self._silent_at:
            return None
        if self._asked >= self._rules.silent_asks:
            return "silent"
        self._asked += 1
        self._quiet_since = now  # restart, even if the agent does not ask
        return "ask"

    @property
    def _silent_at(self) -> float | None:
        seconds = self._rules.silent_seconds
        if seconds is None or self._quiet_since is None:
            return None
        return self._quiet_since + seconds

    @property
    def _longest_at(self) -> float | None:
        seconds = self._rules.longest_seconds
        return None if seconds is None else self._began + seconds


def cost_of(usage: Usage, prices: Prices) -> float:
    """Cached tokens are part of the input and have a price of their own. If the server
    does not name the kind of some tokens, they count as audio, the more expensive
    kind."""
    given = usage.input_token_details or InputTokens()
    made = usage.output_token_details or OutputTokens()
    cached = given.cached_tokens_details or CachedTokens()
    cached_text, cached_audio = cached.text_tokens or 0, cached.audio_tokens or 0
    text_in, text_out = given.text_tokens or 0, made.text_tokens or 0
    audio_in = _audio_tokens(given.audio_tokens, usage.input_tokens, text_in)
    audio_out = _audio_tokens(made.audio_tokens, usage.output_tokens, text_out)
    tokens = (
        # Never negative: a server's false usage must not lower the cost of a call.
        max(text_in - cached_text, 0) * prices.input_text,
        max(audio_in - cached_audio, 0) * prices.input_audio,
        (cached_text + cached_audio) * prices.input_cached,
        text_out * prices.output_text,
        audio_out * prices.output_audio,
    )
    return sum(tokens) / 1_000_000


def _audio_tokens(audio: int | None, total: int | None, text: int) -> int:
    return audio if audio is not None else max((total or 0) - text, 0)
