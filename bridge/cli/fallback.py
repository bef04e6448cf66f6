"""`bridge fallback`: sends the callers of a running fleet to the fallback, while the
model is away."""

import getpass
import socket
from typing import Annotated, Any

import typer

from bridge.cli.terminal import api_token, load_settings, local_url, out, run, stop_with

fallback = typer.Typer(
    no_args_is_help=True,
    help="Send callers to the fallback number while the model is away, or look whether "
    "they are. For all bridges that share a Redis.",
)

UrlOption = Annotated[
    str | None,
    typer.Option(help="URL of a running bridge, instead of this machine's"),
]


@fallback.command()
def on(
    reason: Annotated[str, typer.Option(help="for the people who see it")] = "",
    minutes: Annotated[
        int | None, typer.Option(help="goes off by itself after so many minutes")
    ] = None,
    url: UrlOption = None,
) -> None:
    """New callers are connected to the fallback number, or hear an apology. No model is
    dialled for them, and no call is placed."""
    wanted = {"on": True, "reason": reason, "minutes": minutes, "by": _who()}
    _show(_ask(url, wanted))


@fallback.command()
def off(url: UrlOption = None) -> None:
    """New callers are connected to the agent again."""
    _show(_ask(url, {"on": False, "by": _who()}))


@fallback.command()
def status(url: UrlOption = None) -> None:
    """Says whether new callers are sent to the fallback, since when, and why."""
    _show(_ask(url, None))


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"[:100]


def _ask(url: str | None, wanted: dict[str, Any] | None) -> dict[str, Any]:
    from bridge.http.api import client  # it imports the SDK, which takes two seconds

    conf = load_settings()
    token, at = api_token(conf), url or local_url(conf)
    try:
        if wanted is None:
            return run(client.get_fallback(at, token))
        return run(client.set_fallback(at, token, wanted))
    except client.ApiError as error:
        stop_with(str(error))


def _show(state: dict[str, Any]) -> None:
    lines = ["on: new callers are sent to the fallback"]
    if not state["on"]:
        lines = ["off: new callers are connected to the agent"]
    for name in ("since", "until", "by", "reason"):
        if state.get(name):
            lines.append(f"{name}: {state[name]}")
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)
