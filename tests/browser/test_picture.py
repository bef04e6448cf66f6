"""The picture of a call in a real browser: it opens from the disk, plays, can be read
by everyone, and loads nothing.

Needs Chromium. The page is that of a call over real sockets.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, async_playwright

from bridge.picture import page, reading
from bridge.picture.view import CallView
from bridge.sim.model import Behaviour, SayText
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, WAIT, bridge

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
LONG = (
    "We are open from nine in the morning until five in the afternoon, and on Saturday."
)


def chromium() -> str:
    found = [path for name in NAMES if (path := shutil.which(name))]
    assert found, f"none of {', '.join(NAMES)} is installed"
    return found[0]


@pytest.fixture(scope="module")
def views() -> dict[str, CallView]:
    """The view of the call that the tests share, once it was placed."""
    return {}


@pytest.fixture
async def view(views: dict[str, CallView], tmp_path: Path) -> CallView:
    """A call in which the agent is interrupted, and the caller waits on hold."""
    if "call" not in views:
        behaviour = Behaviour(turns=[[SayText(LONG)], [SayText("Until two.")]])
        async with bridge(behaviour, record_dir=tmp_path) as place:
            script = [
                steps.SayStep(HELLO),
                steps.HearStep(900),
                steps.SayStep(WAIT),
                steps.ListenStep(quiet_seconds=0.4, timeout=20),
                steps.GapStep(4000, "dtx"),
                steps.HangUpStep(),
            ]
            await place.caller().call(script)
            await place.empty()
        [trace] = tmp_path.glob("*.zst")
        views["call"] = reading.view(trace)
    return views["call"]


async def becomes(tab: Page, expression: str) -> None:
    """Waits until an expression is true. Playwright's own way needs `eval` in the page,
    which the page's policy forbids."""
    async with asyncio.timeout(20):
        while not await tab.evaluate(expression):  # noqa: ASYNC110 - in the browser
            await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(
    view: CallView, folder: Path, **context: Any
) -> AsyncIterator[tuple[Page, list[str]]]:
    """The page in a browser, and what the browser reports: errors and requests."""
    path = folder / "CA1.call.html"
    path.write_text(page.page(view))
    told: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"]
        )
        tab = await (await browser.new_context(**context)).new_page()
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.on(
            "console", lambda it: told.append(it.text) if it.type == "error" else None
        )
        tab.on(
            "request",
            lambda it: None if it.url.startswith("blob:") else told.append(it.url),
        )
        await tab.goto(path.as_uri())
        await becomes(tab, "document.documentElement.dataset.ready")
        assert told.pop(0) == path.as_uri()
        yield tab, told
        await browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 900), (390, 844)], ids=["desk", "phone"])
async def test_everyone_can_read_it(
    view: CallView, tmp_path: Path, scheme: str, size: tuple[int, int]
) -> None:
    """axe finds nothing that keeps a person out, in light and dark, wide and narrow;
    nothing is cut off at the right; nothing is loaded, and no error is reported."""
    window = {"width": size[0], "height": size[1]}
    given = {"color_scheme": scheme, "viewport": window, "bypass_csp": True}
    async with opened(view, tmp_path, **given) as (tab, told):
        await tab.click("#all-events summary")
        found = await Axe().run(tab)
        assert found.violations_count == 0, found.generate_report()
        wide = await tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= size[0]
        assert told == []


async def test_it_plays(view: CallView, tmp_path: Path) -> None:
    """The audio of the call is in the file: both sides, of the call's length. A click
    on a word plays from there, and the cursor moves."""
    async with opened(view, tmp_path) as (tab, told):
        await tab.click("#play")
        await becomes(tab, "audio.currentTime > 0.2")
        seconds = await tab.evaluate("audio.duration")
        assert abs(seconds - view.length_ms / 1000) < 0.05
        await tab.click("#play")
        word = tab.locator(".word").nth(2)
        await word.click()
        await becomes(tab, "!audio.paused && audio.currentTime > 1")
        assert await tab.locator(".word.now").count() <= 1
        assert told == []


async def test_problems_lead_into_the_picture(view: CallView, tmp_path: Path) -> None:
    """The caller on hold is named at the top; its link moves the position there."""
    async with opened(view, tmp_path) as (tab, _):
        link = tab.locator("#problems a").filter(has_text="on hold or muted")
        await link.click()
        at = await tab.evaluate("position")
        [hold] = [it for it in view.silences if it[1] - it[0] > 3000]
        assert abs(at - hold[0] / 1000) < 0.01
        begin, end = await tab.evaluate("zoomed()")
        assert begin <= at <= end and end - begin < view.length_ms / 1000


async def test_it_works_by_keyboard(view: CallView, tmp_path: Path) -> None:
    """Space plays and stops, arrows move, + zooms, p goes to the problem before."""
    async with opened(view, tmp_path) as (tab, _):
        await tab.keyboard.press("ArrowRight")
        assert await tab.evaluate("position") == 5
        await tab.keyboard.press("+")
        begin, end = await tab.evaluate("zoomed()")
        assert end - begin < view.length_ms / 1000
        [hold] = [it for it in view.silences if it[1] - it[0] > 3000]
        await tab.keyboard.press("p" if hold[0] < 5000 else "n")
        assert abs(await tab.evaluate("position") - hold[0] / 1000) < 0.01
        await tab.keyboard.press("Space")
        await becomes(tab, "!audio.paused")
        await tab.keyboard.press("Space")
        await becomes(tab, "audio.paused")


async def test_what_was_not_heard_is_struck_through(
    view: CallView, tmp_path: Path
) -> None:
    """The reader sees where the agent was cut: in the words, and in the picture."""
    async with opened(view, tmp_path) as (tab, _):
        struck = "".join(await tab.locator("#lines s").all_inner_texts())
        heard = await tab.locator("#lines .agent .text").first.inner_text()
        assert struck and LONG.endswith(struck.strip())
        assert heard.startswith("We are open")
        assert await tab.evaluate("waves.unheard.length") > 20


async def test_hostile_words_stay_words(view: CallView, tmp_path: Path) -> None:
    """Nothing that a caller says runs in the browser of the one who looks."""
    shown = view.turns[0].text
    view.turns[0].text = "</script><script>window.bad = 1</script><img src=x>"
    try:
        async with opened(view, tmp_path) as (tab, told):
            assert await tab.evaluate("window.bad") is None
            assert await tab.locator("img").count() == 0
            assert "<img src=x>" in await tab.inner_text("#lines")
            assert told == []
    finally:
        view.turns[0].text = shown
