"""The fake model of the compose tests, run in the project's image: both sides count.

Port 8765 is the model, port 8766 tells what each of its sessions has in mind (JSON).
"""

import asyncio
from dataclasses import asdict

from aiohttp import web

from bridge.sim import counting
from bridge.sim.model import Behaviour, ModelServer

WORDS = 6
TOOL_TURN = 2


async def main() -> None:
    behaviour = Behaviour(
        answer=counting.CountingAgent(WORDS, frozenset({TOOL_TURN})),
        recogniser=counting.recognise,
    )
    async with ModelServer(behaviour, "0.0.0.0", 8765, keep_audio=False) as model:

        async def sessions(_: web.Request) -> web.Response:
            return web.json_response(
                [[asdict(item) for item in it.conversation] for it in model.sessions]
            )

        app = web.Application()
        app.add_routes([web.get("/sessions", sessions)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 8766).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
