"""What all commands share: the terminal, the settings, the event loop, and the end of a
command that cannot do its work."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from bridge.app import settings
from bridge.app.settings import Settings, SettingsError

T = TypeVar("T")
out, err = Console(), Console(stderr=True)

DialledOption = Annotated[
    str, typer.Option(help="the number that is dialled; it selects the route")
]


def load_settings() -> Settings:
    """The settings of this process. Mistakes in them are printed, and end the
    command."""
    try:
        return settings.load()
    except SettingsError as error:
        stop_with("The configuration is not usable:", *str(error).splitlines())


def local_url(conf: Settings) -> str:
    """The URL of a bridge with these settings, from this machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on
    host = everywhere.get(conf.host, conf.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{conf.port}"


def api_token(conf: Settings) -> str:
    if conf.api_token is None:
        stop_with("BRIDGE_API_TOKEN is not set: set it here and for the bridge")
    return conf.api_token.get_secret_value()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work to its end. Ctrl-C ends the command with 130, as in a shell."""
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (docs/performance.md has the figures)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def stop_with(*lines: str) -> NoReturn:
    """Prints why the command cannot go on, and ends it with 1."""
    for line in lines:
        err.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)
