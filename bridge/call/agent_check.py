"""`bridge check` calls each agent's function once, as a call of its route would.

Nobody is called, and no model is dialled: what the function does with its call has no
effect. What else it does (a database, a request) it does.
"""

from collections.abc import Iterator

from bridge.agent import loader, tool_definitions, user_code, user_errors
from bridge.agent.live import CallFacts
from bridge.agent.loader import AgentNotLoaded, AgentSource
from bridge.app.routes import Route
from bridge.app.settings import Finding
from bridge.app.startup import UserCode
from bridge.call.dial_check import SessionCheck, sample_call

CALL_SID = "CA" + "0" * 32
OURS, THEIRS = "+14155550100", "+14155550123"
"""Numbers that nobody has."""

FIX = (
    "correct the function; bridge check called it for an unknown caller, "
    f"{THEIRS}, with the parameters that the route asks for"
)

FIX_AGENT = "correct the agent that the function makes"


def facts_for(route: Route) -> CallFacts:
    """The facts of a call that the route takes."""
    ours = route.numbers[0] if route.numbers else OURS
    outbound = route.direction == "outbound"
    caller, called = (ours, THEIRS) if outbound else (THEIRS, ours)
    parameters = {"From": caller, "To": called, **route.when}
    return CallFacts(
        CALL_SID,
        from_number=caller,
        to_number=called,
        direction="outbound" if outbound else "inbound",
        route=route.name,
        parameters=parameters,
    )


async def check_agents(code: UserCode) -> list[Finding]:
    """A mistake for each function that raises, takes longer than a caller waits, or
    returns something else than an agent."""
    found = []
    for finding, source, route in _named(code):
        if fault := await _fault(source, route):
            text, fix = fault
            found.append(
                Finding(
                    "error", finding.name, f"{finding.text}{text}", fix, finding.place
                )
            )
    return found


def _named(code: UserCode) -> Iterator[tuple[Finding, AgentSource, Route]]:
    """Each agent, the first route that names it, and where."""
    yield Finding("error", "BRIDGE_AGENT", ""), code.source, code.routes.defaults
    for name, routes in code.routes.agents().items():
        if name in code.sources:
            place = code.routes.where(routes[0], "agent")
            finding = Finding("error", "BRIDGE_ROUTES", f"agent: {name} ", "", place)
            yield finding, code.sources[name], routes[0]


async def _fault(source: AgentSource, route: Route) -> tuple[str, str] | None:
    """What is wrong, and the fix."""
    control = SessionCheck(route.name)
    try:
        async with sample_call(facts_for(route), control, route) as it:
            try:
                await loader.agent_for(source, it.live)
            except AgentNotLoaded as error:
                wrong_kind = "function returned" in str(error)
                fix = "return a RealtimeAgent, or a runner" if wrong_kind else FIX_AGENT
                return f"cannot be used: {error}", fix
            except TimeoutError as error:
                where = user_errors.where(error)
                text = f"has not returned within {user_code.SECONDS:g} s: {where}"
                return text, "each caller waits for it: give it a limit of its own"
            except Exception as error:
                if refused := tool_definitions.explained(error):
                    return f"cannot make its agent: {refused}", FIX_AGENT
                told = " ".join(str(error).split())[:300]
                where = user_errors.where(error)
                return f"raises {user_code.kind(error)}: {told} ({where})", FIX
    except BaseExceptionGroup as error:  # of a listener or task that it has started
        return f"raises {type(error.exceptions[0]).__name__} in a task", FIX
    return None
