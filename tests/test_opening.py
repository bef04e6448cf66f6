"""What is wrong with a deployment is told before the first call."""

from pathlib import Path

import pytest

from bridge.opening import load_crew
from bridge.routes import RoutesError
from bridge.settings import Settings

FALLBACK = "+14155550199"
ROUTES = """routes:
  - name: busy
    when_full: busy
  - name: through
    when_full: {answer: fallback}
"""


def test_a_full_house_that_puts_through_to_nobody(tmp_path: Path) -> None:
    """Callers would hear that they are put through, and then nothing; a number of the
    route's or of the deployment's is enough."""
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTES)
    with pytest.raises(RoutesError) as refused:
        load_crew(Settings(routes=path))

    [mistake] = refused.value.mistakes
    assert mistake.startswith(f"{path}:5") and "`fallback`" in mistake
    assert load_crew(Settings(routes=path, fallback_number=FALLBACK)).routes.routes
    path.write_text(f"{ROUTES}    fallback: '{FALLBACK}'\n")
    assert load_crew(Settings(routes=path)).routes.routes
