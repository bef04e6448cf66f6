"""Mistakes in a deployment are reported before the first call."""

from pathlib import Path

import pytest
from agents import Agent, RunConfig, Runner
from agents.realtime import RealtimeAgent
from pydantic import SecretStr

from bridge.app.settings import Settings, SettingsError, load
from bridge.app.startup import UserCode, load_user_code, start_services
from bridge.core.rules import Prices
from bridge.sim.text_model import TextModel

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
    with pytest.raises(SettingsError) as refused:
        load_user_code(Settings(routes=path))

    [mistake] = refused.value.mistakes
    assert mistake.place == f"{path}:5" and "`fallback`" in mistake.fix
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
    with pytest.raises(SettingsError) as refused:
        load_user_code(Settings(routes=path, **{limit: 5}))

    mistakes = refused.value.mistakes
    assert [it.place for it in mistakes] == [f"{path}:5", f"{path}:1"]
    assert all("BRIDGE_PRICES" in it.fix for it in mistakes)
    assert load_user_code(
        Settings(routes=path, prices=Prices(), **{limit: 5})
    ).routes.routes
    assert load_user_code(Settings(routes=path)).routes.routes


async def test_a_text_agent_has_the_key_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text agent that a tool runs asks its model with the key of OPENAI_API_KEY_FILE,
    although the SDK looks for the key in the environment, where it is not."""
    (tmp_path / "key").write_text("sk-the-key-in-a-file\n")
    settings = load({"OPENAI_API_KEY_FILE": str(tmp_path / "key")}, None)
    code = UserCode(RealtimeAgent(name="voice"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with TextModel() as model, start_services(settings, code, model.url):
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        config = RunConfig(tracing_disabled=True)
        await Runner.run(Agent(name="text"), "Hello.", run_config=config)

    assert model.keys == ["Bearer sk-the-key-in-a-file"]


@pytest.mark.parametrize(
    "place", ["transfers: {sales: %s}", "keys: {'0': {transfer: %s}}"]
)
def test_a_warm_transfer_without_credentials_is_a_mistake(
    tmp_path: Path, place: str
) -> None:
    """The agent would promise a transfer that cannot begin: the message names the
    settings that are missing."""
    path = tmp_path / "routes.yaml"
    target = "{number: +1 415 555 0100, warm: true}"
    path.write_text(f"routes:\n  - name: warm\n    {place % target}\n")
    with pytest.raises(SettingsError) as refused:
        load_user_code(Settings(routes=path))

    [mistake] = refused.value.mistakes
    assert mistake.place.startswith(f"{path}:") and "`warm`" in mistake.text
    assert "BRIDGE_PUBLIC_URL, TWILIO_ACCOUNT_SID" in mistake.fix
    known = {"public_url": "https://a.example", "twilio_account_sid": "AC" + "1" * 32}
    with pytest.raises(SettingsError, match="TWILIO_AUTH_TOKEN, or TWILIO_API_KEY"):
        load_user_code(Settings(routes=path, **known))
    token = SecretStr("a-token-of-the-test")
    found = load_user_code(Settings(routes=path, twilio_auth_token=token, **known))
    assert found.routes.routes
