"""A network that loses messages stops, and keeps the order."""

from bridge.sim.scenes import LOSSY_NETWORKS, NETWORKS, label, lossy
from bridge.sim.twilio.network import Network


def arrivals(network: Network, up: bool = True) -> list[float]:
    link = network.up() if up else network.down()
    return [link.arrival(message * 0.02) for message in range(500)]


def test_a_lost_message_and_all_behind_it_wait() -> None:
    """As with TCP: nothing arrives for a second, then everything at once, in order."""
    at = arrivals(Network(up_loss=0.004, up_stop_ms=1000, seed=3))

    stops = [n for n in range(1, 500) if at[n] - at[n - 1] > 0.9]
    assert stops, "the network stopped"
    first = stops[0]
    assert at[first] == first * 0.02 + 1.0
    assert at[first : first + 50] == [at[first]] * 50
    assert at == sorted(at)


def test_each_direction_stops_by_itself() -> None:
    """The direction without losses has the same delays as a network without losses."""
    stops = lossy(0, 0, 0.01, 300)

    assert arrivals(stops, up=True) == arrivals(NETWORKS[1], up=True)
    assert arrivals(stops, up=False) != arrivals(NETWORKS[1], up=False)
    assert stops.longest_stop_ms == 300
    assert NETWORKS[1].longest_stop_ms == 0


def test_the_report_names_the_stops() -> None:
    """Chance and length of the stops of a row can be read."""
    assert label(LOSSY_NETWORKS[1]) == "60/60/30 up 0.2% 1000"
    assert label(LOSSY_NETWORKS[3]) == "60/60/30 down 0.4% 300"
