"""The page as Gradio lays it out: canvas, question, conversation, parameters.

Only places, labels and who is called when; what happens then is `conversation`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr

from vip_llava.errors import VipLlavaError
from vip_llava.serving.settings import Limits
from vip_llava.serving.web.conversation import Conversations
from vip_llava.serving.web.routes import EXAMPLES, STATIC
from vip_llava.serving.web.transcript import Talk

__all__ = ["STYLES", "layout", "theme"]

STYLES = ("canvas.css", "talk.css", "page.css")
_START = 'import(new URL("page/static/page.js", document.baseURI)).then((page) => page.{what});'
_HEAD = """<header class="vl-head"><h1>vip-llava</h1>
<p>Draw on a photo, and ask about what you marked.</p>
<button type="button" class="vl-theme" aria-label="Light or dark">Light / dark</button></header>"""
_NONE = "none"


def theme() -> Any:
    """Plain colours and the fonts of the visitor's own system: nothing is fetched from elsewhere."""
    base = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="zinc",
        radius_size="lg",
        font=("system-ui", "-apple-system", "Segoe UI", "sans-serif"),
        font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"),
    )
    # Gradio's quiet text is too pale to read for many.
    return base.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def layout(conversations: Conversations, limits: Limits) -> Any:
    """The page as `gr.Blocks`, not yet served."""
    with gr.Blocks(title="vip-llava", analytics_enabled=False, fill_width=True) as page:
        start = _START.format(what="head(element)")
        gr.HTML(html_template=_HEAD, js_on_load=start, elem_id="vl-top", **_BARE)
        with gr.Row(elem_classes="vl-main"):
            with gr.Column(scale=6, min_width=320):
                canvas = _canvas()
                question = gr.Textbox(
                    label="Question",
                    placeholder="What is <region:1>?",
                    lines=1,
                    max_lines=6,
                    max_length=limits.text_chars,
                    elem_id="vl-question",
                )
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="vl-ask")
                    stop = gr.Button("Stop", variant="stop", elem_id="vl-stop", visible=False)
                    clear = gr.Button("New conversation", elem_id="vl-clear")
                parameters = _parameters(limits)
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    first = gr.Dropdown(label="Model", elem_id="vl-model")
                    second = gr.Dropdown(label="Compare with", elem_id="vl-second")
                talk = gr.HTML(
                    html_template='<div class="vl-talk"></div>',
                    js_on_load=_START.format(
                        what='talk(element, props, trigger, watch, ["again", "vote"])'
                    ),
                    value=Talk().to_json(votes=False),
                    elem_id="vl-talk",
                    **_BARE,
                )
        asked = [canvas, question, first, second, *parameters]
        shown = [talk, question, ask, stop]
        _wire(page, conversations, asked, shown, clear)
    page.queue(default_concurrency_limit=32, max_size=limits.queue, api_open=False)
    return page


_BARE: dict[str, Any] = {"apply_default_css": False, "container": False, "padding": False}


def _canvas() -> Any:
    examples = [
        {"name": name, "open": f"examples/{number}", "thumbnail": f"page/static/photos/{file}"}
        for number, (name, file) in enumerate(EXAMPLES.items())
    ]
    return gr.HTML(
        html_template='<div class="vl-place"></div>',
        js_on_load=_START.format(what=f"canvas(element, props, {json.dumps(examples)})"),
        value={"image": None, "regions": []},
        elem_id="vl-canvas",
        **_BARE,
    )


def _parameters(limits: Limits) -> list[Any]:
    """In the order of `_sampling`."""
    with gr.Accordion("Parameters", open=False):
        with gr.Row():
            tokens = gr.Slider(
                1, limits.tokens, value=min(256, limits.tokens), step=1, label="Most tokens"
            )
            temperature = gr.Slider(
                0, 2, value=0, step=0.05, label="Temperature", info="0: always the likeliest word"
            )
        with gr.Row():
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
            top_k = gr.Slider(0, 200, value=0, step=1, label="Top k", info="0: all words")
        with gr.Row():
            penalty = gr.Slider(1, 2, value=1, step=0.05, label="Repetition penalty")
            seed = gr.Number(
                value=None, precision=0, minimum=0, label="Seed", info="empty: by chance"
            )
        stop = gr.Textbox(label="Stop at", info="Texts that end the answer, one a line", lines=1)
    return [tokens, temperature, top_p, top_k, penalty, seed, stop]


def _sampling(given: tuple[Any, ...]) -> dict[str, Any]:
    """The parameters that were changed, by their names; the library checks their ranges."""
    tokens, temperature, top_p, top_k, penalty, seed, stop = given
    found: dict[str, Any] = {"max_new_tokens": tokens, "temperature": temperature}
    if temperature:
        found |= {"top_p": top_p, "top_k": top_k, "seed": seed}
    if penalty != 1:
        found["repetition_penalty"] = penalty
    words = [line for line in str(stop or "").splitlines() if line]
    if words:
        found["stop"] = words
    return {name: value for name, value in found.items() if value is not None and value != ""}


def _wire(page: Any, talks: Conversations, asked: list[Any], shown: list[Any], clear: Any) -> None:
    """Who is called when."""
    talk, question, ask, stop = shown
    votes = talks.votes is not None

    async def answer(
        again: bool, request: gr.Request, canvas: Any, words: str, one: str, two: str, *given: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        models = [name for name in (one, two) if name and name != _NONE]
        news = talks.ask(
            request.session_hash or "", canvas, words or "", models, _sampling(given), again=again
        )
        empty = gr.skip()
        async for state in news:
            told = state.to_json(votes=votes)
            busy = any(each["state"] in _BUSY for turn in told["turns"] for each in turn["columns"])
            empty = "" if busy and not again else gr.skip()
            yield told, empty, gr.update(visible=not busy), gr.update(visible=busy)

    async def on_ask(request: gr.Request, *given: Any) -> AsyncGenerator[tuple[Any, ...]]:
        async for each in answer(False, request, *given):
            yield each

    async def on_again(request: gr.Request, *given: Any) -> AsyncGenerator[tuple[Any, ...]]:
        async for each in answer(True, request, *given):
            yield each

    async def on_stop(request: gr.Request) -> None:
        talks.stop(request.session_hash or "")

    async def on_clear(request: gr.Request) -> Any:
        return talks.clear(request.session_hash or "").to_json(votes=votes)

    async def on_vote(event: gr.EventData, request: gr.Request) -> Any:
        given = event._data or {}
        told = talks.vote(
            request.session_hash or "", given.get("turn"), given.get("column"), given.get("vote")
        )
        return told.to_json(votes=votes)

    async def on_load(request: gr.Request) -> tuple[Any, ...]:
        mine = talks.talk(request.session_hash or "")
        try:
            names = list(await talks.asker.models())
        except VipLlavaError as error:
            names, mine.notice = [], str(error)
        told = mine.to_json(votes=votes)
        two = gr.update(choices=[_NONE, *names], value=_NONE)
        return gr.update(choices=names, value=names[0] if names else None), two, told

    async def on_leave(request: gr.Request) -> None:
        talks.leave(request.session_hash or "")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {"queue": False, **quiet}
    gr.on([ask.click, question.submit], on_ask, asked, shown, trigger_mode="once", **quiet)
    talk.again(on_again, asked, shown, trigger_mode="once", **quiet)
    talk.vote(on_vote, None, talk, **at_once)
    stop.click(on_stop, None, None, **at_once)
    clear.click(on_clear, None, talk, **at_once)
    page.load(on_load, None, [asked[2], asked[3], talk], **at_once)
    page.unload(on_leave)


_BUSY = ("waiting", "answering")


def styles() -> str:
    """All of the page's style sheets as one."""
    return "\n".join((STATIC / name).read_text("utf-8") for name in STYLES)
