"""`create_page`: the base application with the page's routes, Gradio, and the route allow-list."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vip_llava.errors import MissingExtraError
from vip_llava.serving.middleware.app_factory import context_of, create_base_app
from vip_llava.serving.settings import ServerSettings
from vip_llava.serving.web.asking import ChatClient
from vip_llava.serving.web.image_store import ImageStore
from vip_llava.serving.web.suggest import MaskSuggester
from vip_llava.serving.web.votes import VoteFile

__all__ = ["create_page"]


def create_page(
    client: ChatClient,
    settings: ServerSettings,
    *,
    suggester: MaskSuggester | None = None,
    votes: str | Path | None = None,
) -> FastAPI:
    """An application with the page at "/".

    Args:
        client: answers the questions.
        suggester: suggests masks; None turns suggestions off.
        votes: a file for votes on answers; None turns voting off.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    try:
        from gradio.routes import mount_gradio_app

        from vip_llava.serving.web.layout import layout, styles, theme
    except ImportError as error:
        raise MissingExtraError(
            f"the page needs the library {error.name}: pip install 'vip-llava[web]'"
        ) from error
    from vip_llava.serving.web.conversation import Conversations
    from vip_llava.serving.web.route_allowlist import RouteAllowList
    from vip_llava.serving.web.routes import page_routes

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await client.start()
        try:
            yield
        finally:
            await client.stop()

    images = ImageStore()
    app = create_base_app(settings, title="vip-llava page", lifespan=lifespan)
    app.include_router(page_routes(images, suggester, settings.limits))
    vote_file = VoteFile(Path(votes)) if votes is not None else None
    conversations = Conversations(client, images, settings.limits, vote_file)

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
            max_file_size=1,  # Gradio's upload route is not exposed either
            theme=theme(),
            css=styles(),
        )

    # Without a running loop Gradio would create three and leave them open.
    _run_in_loop(mount())
    app.add_middleware(RouteAllowList, stopping=lambda: context_of(app).draining)
    return app


def _run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits, within the running loop or a temporary one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with contextlib.suppress(StopIteration):
        work.send(None)
