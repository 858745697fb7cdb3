"""The page as one application: the shell of all servers, our routes, Gradio, and the doors around."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vip_llava.errors import MissingExtraError
from vip_llava.serving.middleware.app_factory import shell, shell_of
from vip_llava.serving.settings import ServerSettings
from vip_llava.serving.web.asking import Asker
from vip_llava.serving.web.image_store import Shelf
from vip_llava.serving.web.suggest import Suggester
from vip_llava.serving.web.votes import VoteFile

__all__ = ["create_page"]


def create_page(
    asker: Asker,
    settings: ServerSettings,
    *,
    suggester: Suggester | None = None,
    votes: str | Path | None = None,
) -> FastAPI:
    """An application with the page at "/".

    asker: who answers. suggester: who finds areas by a click, or None. votes: a file that votes on
    answers are written to; None: there is no voting. MissingExtraError without Gradio.
    """
    try:
        from gradio.routes import mount_gradio_app

        from vip_llava.serving.web.layout import layout, styles, theme
    except ImportError as error:
        raise MissingExtraError(
            f"the page needs the library {error.name}: pip install 'vip-llava[web]'"
        ) from error
    from vip_llava.serving.web.conversation import Conversations
    from vip_llava.serving.web.route_allowlist import Doors
    from vip_llava.serving.web.routes import page_routes

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        await asker.start()
        try:
            yield
        finally:
            await asker.stop()

    shelf = Shelf()
    app = shell(settings, title="vip-llava page", lifespan=running)
    app.include_router(page_routes(shelf, suggester, settings.limits))
    kept = VoteFile(Path(votes)) if votes is not None else None
    conversations = Conversations(asker, shelf, settings.limits, kept)

    async def mount() -> None:
        mount_gradio_app(
            app,
            layout(conversations, settings.limits),
            path="/",
            allowed_paths=[],
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            max_file_size=1,  # nothing is uploaded through Gradio; its route is closed too
            theme=theme(),
            css=styles(),
        )

    # Without a running loop Gradio would make three of its own and leave them open.
    _in_a_loop(mount())
    app.add_middleware(Doors, stopping=lambda: shell_of(app).draining)
    return app


def _in_a_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run what never waits, in the loop that runs already or in a passing one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with contextlib.suppress(StopIteration):
        work.send(None)
