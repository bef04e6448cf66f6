"""A server may refuse the settings of the agent that takes over."""

from agents.realtime import RealtimeAgent

from bridge.model.configurations import (
    MAX_CONFIGURATIONS,
    Configuration,
    Configurations,
)


def configured(*names: str) -> tuple[Configurations, list[tuple[str, str]]]:
    refused: list[tuple[str, str]] = []

    def on_refused(new: Configuration, old: Configuration) -> None:
        refused.append((new.agent.name, old.agent.name))

    made = Configurations(on_refused)
    for name in names:
        made.sent(Configuration(name, RealtimeAgent(name=name), None, {}))
    return made, refused


def test_the_agent_before_stays_in_charge() -> None:
    """Also after two refusals, one after the other."""
    made, refused = configured("desk", "clerk", "boss")
    made.refused("boss")
    made.refused("clerk")

    assert refused == [("boss", "clerk"), ("clerk", "desk")]


def test_a_refusal_of_an_older_update_changes_nobody() -> None:
    """A newer agent is in charge. If that one is refused, too, the first one is."""
    made, refused = configured("desk", "clerk", "boss")
    made.refused("clerk")
    assert refused == []
    made.refused("boss")
    assert refused == [("boss", "desk")]


def test_refusals_of_the_first_and_of_unknown_updates() -> None:
    """Without an earlier configuration, the call ends elsewhere."""
    made, refused = configured("desk")
    made.refused("desk")
    made.refused("probe")

    assert refused == []


def test_the_configurations_are_bounded() -> None:
    made, _ = configured(*map(str, range(MAX_CONFIGURATIONS + 5)))

    assert len(made._sent) == MAX_CONFIGURATIONS
