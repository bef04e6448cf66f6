"""The fake text model, tested with OpenAI's own client."""

from typing import Any

import openai
import pytest
from agents import Agent, Runner, set_tracing_disabled
from openai.types.responses import Response

from bridge.sim.text_model import TextModel


def client(model: TextModel) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="sk-none", base_url=model.url, max_retries=0)


async def test_openais_client_takes_its_answer() -> None:
    """Every field that the client's types require exists and has its type."""
    async with TextModel() as model, client(model) as asked:
        made = await asked.responses.create(model="any", input="How far is the moon?")

    Response.model_validate(made.model_dump(warnings="error"), strict=True)
    assert made.output_text.endswith("I was asked: How far is the moon?")
    assert made.model == "any" and made.status == "completed"
    assert made.usage is not None and made.usage.total_tokens > 0
    assert model.requests == [{"model": "any", "input": "How far is the moon?"}]


async def test_a_text_agent_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment alone directs the SDK's Runner to the fake."""
    set_tracing_disabled(True)
    async with TextModel() as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        agent = Agent(name="brain", instructions="Be brief.")
        result = await Runner.run(agent, "Some talk.\n\nWhat now?")

    assert str(result.final_output).endswith("I was asked: What now?")
    assert model.requests[0]["instructions"] == "Be brief."


async def test_parts_of_a_message_are_read() -> None:
    """The latest user message is the question, in every form that the API allows."""
    parts = [{"type": "input_text", "text": "Second"}]
    told: Any = [
        {"role": "user", "content": "First"},
        {"role": "user", "content": parts},
    ]
    async with TextModel() as model, client(model) as asked:
        made = await asked.responses.create(model="any", input=told)
        nothing = await asked.responses.create(model="any", input=[])

    assert made.output_text.endswith("asked: Second")
    assert nothing.output_text.endswith("asked: ")


async def test_unsupported_requests_are_refused() -> None:
    """Unsupported requests, such as streaming, get an error in OpenAI's form."""
    async with TextModel() as model, client(model) as asked:
        with pytest.raises(openai.BadRequestError, match="does not stream"):
            await asked.responses.create(model="any", input="Hi.", stream=True)
        with pytest.raises(openai.BadRequestError) as error:
            await asked.post("/responses", body={"input": "Hi."}, cast_to=object)
        with pytest.raises(openai.BadRequestError, match="not JSON"):
            await asked.post("/responses", content=b"{", cast_to=object)

    assert error.value.param == "model"
    assert error.value.code == "missing_required_parameter"
    assert model.requests == []
