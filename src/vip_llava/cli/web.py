"""`vip-llava web`: a page to draw on a photo and ask about it, in the browser."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vip_llava.cli.server_options import KEY_VARIABLE, ServerOptions, log_to_stderr, needs_serve
from vip_llava.cli.model_options import DebugFlag, ModelOptions, option_name
from vip_llava.cli.terminal import note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.serving.settings import ServerSettings
    from vip_llava.serving.web.asking import Asker
    from vip_llava.serving.web.suggest import Suggester

__all__ = ["EPILOG", "web"]

EPILOG = """Examples

  vip-llava web --check

  vip-llava web --model ./checkpoint --port 8080 --votes votes.jsonl --check

  vip-llava web --models default,./checkpoint --check

  vip-llava web --controller http://127.0.0.1:10000 --model-list-mode reload --check

Without --check the page is there until Ctrl-C.
"""
PORT = 7860
#: A page is many small files, so that one visitor asks for more than a client of the API does.
PAGE_LIMITS = {"rate": 6000.0, "burst": 1000}


def web(
    *,
    models: Annotated[
        str | None,
        typer.Option("--models", metavar="A,B", help="Several models to choose from and compare."),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(
            "--controller",
            "--controller-url",
            "--api",
            metavar="URL",
            help="Ask this controller or server instead of opening a model here.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help=f"API key of that server; or {KEY_VARIABLE}."
        ),
    ] = None,
    model_list_mode: Annotated[
        str,
        typer.Option(
            "--model-list-mode",
            metavar="once|reload",
            help="Ask the controller for its models once, or on every visit.",
        ),
    ] = "reload",
    votes: Annotated[
        Path | None,
        typer.Option("--votes", metavar="FILE", help="Let visitors vote, and write it here."),
    ] = None,
    sam: Annotated[
        str | None,
        typer.Option(
            "--sam",
            metavar="NAME|FOLDER",
            help="Suggest areas with this Segment Anything model; GrabCut if not given.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", help="Port to listen on (7860).")
    ] = None,
    open_to_all: Annotated[
        bool,
        typer.Option("--open-to-all", help="Listen on a network, where everyone may ask."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A further name of this server."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", metavar="NAME=N", help="Change a limit; --check shows all."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print the settings with all limits, and end.")
    ] = False,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Open a page to draw on a photo and ask about what was marked.

    Listens on this machine only, unless told otherwise, and fetches nothing from elsewhere.
    """
    typed = ServerOptions(
        host=host, port=port, open_to_all=open_to_all, allow_host=allow_host, limit=limit
    )
    settings = _settings(typed)
    settings.check_open()
    names = _names(models, model, controller)
    model.check_models(None if name == "default" else name for name in names)
    if model_list_mode not in ("once", "reload"):
        raise RequestError(f"--model-list-mode {model_list_mode}: give once or reload")
    if check:
        told = settings.model_dump(mode="json", exclude={"keys", "origins", "fetch_hosts"})
        told |= {"models": names, "controller": controller, "votes": str(votes) if votes else None}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    log_to_stderr(debug=debug)
    _run(settings, names, controller, _key(key_file), model_list_mode, model, votes, sam)


def _settings(typed: ServerOptions) -> ServerSettings:
    """A server's settings with the defaults of a page; it has no API keys of its own."""
    found = typed.settings(port=PORT)
    given = found.limits.model_fields_set
    usual = {name: value for name, value in PAGE_LIMITS.items() if name not in given}
    limits = found.limits.model_copy(update=usual)
    return found.model_copy(update={"limits": limits, "keys": ()})


def _names(models: str | None, model: ModelOptions, controller: str | None) -> list[str]:
    """The models to open, as typed; none where a controller has them."""
    given = [name.strip() for name in (models or "").split(",") if name.strip()]
    if sum(map(bool, (given, model.model, controller))) > 1:
        raise RequestError("give one of --model, --models and --controller")
    if controller:
        for keyword in model.keywords():
            raise RequestError(f"{option_name(keyword)} opens a model here, --controller does not")
        return []
    return given or [model.model or "default"]


def _key(file: Path | None) -> str | None:
    if file is not None:
        return file.expanduser().read_text(encoding="utf-8").strip()
    return os.environ.get(KEY_VARIABLE)


def _run(
    settings: ServerSettings,
    names: list[str],
    controller: str | None,
    key: str | None,
    list_mode: str,
    model: ModelOptions,
    votes: Path | None,
    sam: str | None,
) -> None:
    needs_serve()
    from vip_llava.serving.middleware.server import listen, run
    from vip_llava.serving.web.app import create_page

    # The port is taken before anything heavy is loaded, so that a taken one is told at once.
    listener = listen(settings)
    asker: Asker
    if controller:
        from vip_llava.serving.web.asking_http import HttpAsker

        seconds = settings.limits.answer_seconds
        asker = HttpAsker(controller, key, reload=list_mode == "reload", seconds=seconds)
    else:
        from vip_llava.serving.web.asking import LocalAsker

        asker = LocalAsker(_opened(names, model), settings.limits)
    app = create_page(asker, settings, suggester=_suggester(sam), votes=votes)
    run(app, settings, listener=listener, on_ready=lambda address: note(f"open {address}"))


def _opened(names: list[str], model: ModelOptions) -> dict[str, Any]:
    """The models by the names that visitors see."""
    from vip_llava.assistant import load

    found = {}
    for name in names:
        note(f"opening {'the default model' if name == 'default' else name}")
        opened = load(None if name == "default" else name, **model.keywords())
        shown = Path(name).name
        if shown in found:
            raise RequestError(f"two models would be called {shown!r}; rename a folder")
        found[shown] = opened
    return found


def _suggester(sam: str | None) -> Suggester:
    from vip_llava.serving.web.suggest import GrabCut, SegmentAnything

    return SegmentAnything(sam) if sam else GrabCut()
