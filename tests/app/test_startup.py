"""Mistakes in a deployment are reported before the first call."""

from pathlib import Path

import pytest

from bridge.app.routes import RoutesError
from bridge.app.settings import Settings
from bridge.app.startup import load_user_code
from bridge.core.rules import Prices

FALLBACK = "+14155550199"
ROUTES = """routes:
  - name: busy
    when_full: busy
  - name: through
    when_full: {answer: fallback}
"""


def test_when_full_fallback_without_a_number_is_a_mistake(tmp_path: Path) -> None:
    """Callers would hear that they are being connected, and then nothing. A number in
    the route or in the settings is enough."""
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTES)
    with pytest.raises(RoutesError) as refused:
        load_user_code(Settings(routes=path))

    [mistake] = refused.value.mistakes
    assert mistake.startswith(f"{path}:5") and "`fallback`" in mistake
    assert load_user_code(Settings(routes=path, fallback_number=FALLBACK)).routes.routes
    path.write_text(f"{ROUTES}    fallback: '{FALLBACK}'\n")
    assert load_user_code(Settings(routes=path)).routes.routes


COST = """
    cost: {limit: 1, input_text: 4, input_audio: 32, input_cached: 0.4,
           output_text: 16, output_audio: 64}
"""


@pytest.mark.parametrize("limit", ["cost_per_call", "cost_per_day"])
def test_a_cost_limit_without_prices_is_a_mistake(tmp_path: Path, limit: str) -> None:
    """The calls of a route without prices would not count towards the limit."""
    path = tmp_path / "routes.yaml"
    path.write_text(f"routes:\n  - name: paid{COST}  - name: free\n")
    with pytest.raises(RoutesError) as refused:
        load_user_code(Settings(routes=path, **{limit: 5}))

    mistakes = refused.value.mistakes
    assert [it.partition(": ")[0] for it in mistakes] == [f"{path}:5", f"{path}:1"]
    assert all("BRIDGE_PRICES" in it for it in mistakes)
    assert load_user_code(
        Settings(routes=path, prices=Prices(), **{limit: 5})
    ).routes.routes
    assert load_user_code(Settings(routes=path)).routes.routes
