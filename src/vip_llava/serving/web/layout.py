"""The page's layout in Gradio: canvas, question, conversation, parameters, and their events.

It does not know how questions are answered; `conversation` does.
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
from vip_llava.serving.web.transcript import Transcript

__all__ = ["STYLES", "layout", "theme"]

STYLES = ("canvas.css", "conversation.css", "page.css")
_LOAD = 'import(new URL("page/static/page.js", document.baseURI)).then((page) => page.{call});'
_HEAD = """<header class="vl-head"><h1>vip-llava</h1>
<p>Draw on a photo, and ask about what you marked.</p>
<button type="button" class="vl-theme" aria-label="Light or dark">Light / dark</button></header>"""
_NONE = "none"  # no second model


def theme() -> Any:
    """Neutral colours and system fonts, so that no font is fetched from another server."""
    base = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="zinc",
        radius_size="lg",
        font=("system-ui", "-apple-system", "Segoe UI", "sans-serif"),
        font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"),
    )
    # Gradio's subdued text has too little contrast.
    return base.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def layout(conversations: Conversations, limits: Limits) -> Any:
    """The page as `gr.Blocks`."""
    with gr.Blocks(title="vip-llava", analytics_enabled=False, fill_width=True) as page:
        script = _LOAD.format(call="header(element)")
        gr.HTML(html_template=_HEAD, js_on_load=script, elem_id="vl-top", **_BARE)
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
                transcript = gr.HTML(
                    html_template='<div class="vl-conversation"></div>',
                    js_on_load=_LOAD.format(
                        call='conversation(element, props, trigger, watch, ["again", "vote"])'
                    ),
                    value=Transcript().to_json(votes=False),
                    elem_id="vl-conversation",
                    **_BARE,
                )
        inputs = [canvas, question, first, second, *parameters]
        outputs = [transcript, question, ask, stop]
        _connect(page, conversations, inputs, outputs, clear)
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
        js_on_load=_LOAD.format(call=f"canvas(element, props, {json.dumps(examples)})"),
        value={"image": None, "regions": []},
        elem_id="vl-canvas",
        **_BARE,
    )


def _parameters(limits: Limits) -> list[Any]:
    """In the order of `_sampling`."""
    with gr.Accordion("Parameters", open=False):
        with gr.Row():
            tokens = gr.Slider(
                1, limits.tokens, value=min(256, limits.tokens), step=1, label="Max tokens"
            )
            temperature = gr.Slider(
                0, 2, value=0, step=0.05, label="Temperature", info="0: greedy decoding"
            )
        with gr.Row():
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p")
            top_k = gr.Slider(0, 200, value=0, step=1, label="Top k", info="0: off")
        with gr.Row():
            penalty = gr.Slider(1, 2, value=1, step=0.05, label="Repetition penalty")
            seed = gr.Number(value=None, precision=0, minimum=0, label="Seed", info="empty: random")
        stop = gr.Textbox(label="Stop texts", info="They end the answer; one per line", lines=1)
    return [tokens, temperature, top_p, top_k, penalty, seed, stop]


def _sampling(given: tuple[Any, ...]) -> dict[str, Any]:
    """The changed parameters by name; the library validates them."""
    tokens, temperature, top_p, top_k, penalty, seed, stop = given
    found: dict[str, Any] = {"max_new_tokens": tokens, "temperature": temperature}
    if temperature:
        found |= {"top_p": top_p, "top_k": top_k, "seed": seed}
    if penalty != 1:
        found["repetition_penalty"] = penalty
    texts = [line for line in str(stop or "").splitlines() if line]
    if texts:
        found["stop"] = texts
    return {name: value for name, value in found.items() if value is not None and value != ""}


def _connect(
    page: Any, conversations: Conversations, inputs: list[Any], outputs: list[Any], clear: Any
) -> None:
    """Register the event handlers."""
    transcript, question, ask, stop = outputs
    votes = conversations.votes is not None

    async def answer(
        again: bool, request: gr.Request, canvas: Any, text: str, one: str, two: str, *given: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        models = [name for name in (one, two) if name and name != _NONE]
        updates = conversations.ask(
            _visitor(request), canvas, text or "", models, _sampling(given), again=again
        )
        async for state in updates:
            busy = state.running
            # The question is cleared once it has been accepted.
            cleared = "" if busy and not again else gr.skip()
            buttons = gr.update(visible=not busy), gr.update(visible=busy)
            yield state.to_json(votes=votes), cleared, *buttons

    async def on_ask(request: gr.Request, *given: Any) -> AsyncGenerator[tuple[Any, ...]]:
        async for update in answer(False, request, *given):
            yield update

    async def on_again(request: gr.Request, *given: Any) -> AsyncGenerator[tuple[Any, ...]]:
        async for update in answer(True, request, *given):
            yield update

    async def on_stop(request: gr.Request) -> None:
        conversations.stop(_visitor(request))

    async def on_clear(request: gr.Request) -> Any:
        return conversations.clear(_visitor(request)).to_json(votes=votes)

    async def on_vote(event: gr.EventData, request: gr.Request) -> Any:
        data = event._data or {}
        values = (data.get("exchange"), data.get("answer"), data.get("vote"))
        return conversations.vote(_visitor(request), *values).to_json(votes=votes)

    async def on_load(request: gr.Request) -> tuple[Any, ...]:
        state = conversations.transcript(_visitor(request))
        try:
            names = list(await conversations.client.models())
        except VipLlavaError as error:
            names, state.notice = [], str(error)
        first = gr.update(choices=names, value=names[0] if names else None)
        second = gr.update(choices=[_NONE, *names], value=_NONE)
        return first, second, state.to_json(votes=votes)

    async def on_leave(request: gr.Request) -> None:
        conversations.leave(_visitor(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    unqueued: dict[str, Any] = {"queue": False, **quiet}
    gr.on([ask.click, question.submit], on_ask, inputs, outputs, trigger_mode="once", **quiet)
    transcript.again(on_again, inputs, outputs, trigger_mode="once", **quiet)
    transcript.vote(on_vote, None, transcript, **unqueued)
    stop.click(on_stop, None, None, **unqueued)
    clear.click(on_clear, None, transcript, **unqueued)
    page.load(on_load, None, [inputs[2], inputs[3], transcript], **unqueued)
    page.unload(on_leave)


def _visitor(request: gr.Request) -> str:
    return request.session_hash or ""


def styles() -> str:
    """All style sheets of the page in one."""
    return "\n".join((STATIC / name).read_text("utf-8") for name in STYLES)
