"""What `bridge serve` has in memory before its first call."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.test_commands import serving

pytestmark = pytest.mark.slow

AGENT = """
import atexit, json, sys
from pathlib import Path
from agents.realtime import RealtimeAgent

agent = RealtimeAgent(name="plain", instructions="You are a test.")
atexit.register(lambda: Path("modules").write_text(json.dumps(sorted(sys.modules))))
"""

OPTIONAL = {"numpy", "redis", "requests", "bridge.sim"}
"""25 MB, and a fifth of the time until a bridge is ready."""


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, set[str]()),
        ({"BRIDGE_MODEL_AUDIO": "pcm"}, {"numpy"}),
        ({"BRIDGE_MODEL_URL": "local"}, {"numpy", "bridge.sim"}),
    ],
    ids=["plain", "pcm", "local"],
)
def test_a_bridge_imports_only_what_its_settings_need(
    settings: dict[str, str], wanted: set[str], tmp_path: Path
) -> None:
    """What they need is there before the first call: an import stops all calls."""
    (tmp_path / "mine.py").write_text(AGENT)
    environ = {
        "BRIDGE_INSECURE": "1",
        "BRIDGE_AGENT": "mine.py:agent",
        "BRIDGE_MODEL_URL": "ws://127.0.0.1:9",
        **settings,
    }
    with serving(tmp_path, **environ) as (_, process):
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)

    modules = json.loads((tmp_path / "modules").read_text())
    assert OPTIONAL & set(modules) == wanted
