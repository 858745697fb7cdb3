"""`vip-llava web`: a page to draw on a photo and ask about it, in the browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vip_llava.cli.cluster import named_models
from vip_llava.cli.model_options import DebugFlag, ModelOptions, option_name
from vip_llava.cli.server_options import KEY_VARIABLE, CheckFlag, ListenOptions
from vip_llava.cli.server_process import load_for_serving, log_to_stderr, print_settings
from vip_llava.cli.terminal import note
from vip_llava.errors import RequestError

if TYPE_CHECKING:
    from vip_llava.serving.settings import ServerSettings
    from vip_llava.serving.web.asking import ChatClient
    from vip_llava.serving.web.suggest import MaskSuggester

__all__ = ["EPILOG", "web"]

EPILOG = """Examples

  vip-llava web --check

  vip-llava web --model ./checkpoint --port 8080 --votes votes.jsonl --check

  vip-llava web --models default,./checkpoint --check

  vip-llava web --controller http://127.0.0.1:10000 --check

Without --check the page is served until Ctrl-C.
"""
PORT = 7860
#: A page loads many small files, so a visitor sends more requests than a client of the API.
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
            "--api",
            metavar="URL",
            help="Use this controller or server instead of loading a model here.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help=f"API key of that server; or ${KEY_VARIABLE}."
        ),
    ] = None,
    model_list_mode: Annotated[
        str,
        typer.Option(
            "--model-list-mode",
            metavar="once|reload",
            help="Read the server's list of models once, or on every visit.",
        ),
    ] = "reload",
    votes: Annotated[
        Path | None,
        typer.Option("--votes", metavar="FILE", help="Let visitors vote; append the votes here."),
    ] = None,
    sam: Annotated[
        str | None,
        typer.Option(
            "--sam",
            metavar="NAME|FOLDER",
            help="Suggest areas with this Segment Anything model (default: GrabCut).",
        ),
    ] = None,
    check: CheckFlag = False,
    listen: ListenOptions,
    model: ModelOptions,
    debug: DebugFlag = False,
) -> None:
    """Serve a page to draw on a photo and ask about the marked regions.

    It listens on this machine only, unless --host says otherwise, and loads nothing from other
    servers.
    """
    settings = _settings(listen)
    settings.check_open()
    names = _names(models, model, controller)
    model.check_models(names.values())
    if model_list_mode not in ("once", "reload"):
        raise RequestError(f"--model-list-mode {model_list_mode}: must be once or reload")
    if check:
        file = str(votes) if votes else None
        print_settings(settings, models=list(names), controller=controller, votes=file)
        return
    log_to_stderr(debug=debug)
    from vip_llava.serving.middleware.server import listen as open_port
    from vip_llava.serving.middleware.server import run
    from vip_llava.serving.web.app import create_page

    # Open the port before anything heavy is loaded, so that a taken port is reported at once.
    listener = open_port(settings)
    if controller:
        client = _remote(controller, key_file, settings, reload=model_list_mode == "reload")
    else:
        client = _local(names, model, settings)
    app = create_page(client, settings, suggester=_suggester(sam), votes=votes)
    run(app, settings, listener=listener, on_ready=lambda address: note(f"open {address}"))


def _settings(options: ListenOptions) -> ServerSettings:
    """A server's settings with the defaults of a page, which has no API keys of its own."""
    found = options.settings(port=PORT)
    given = found.limits.model_fields_set
    defaults = {name: value for name, value in PAGE_LIMITS.items() if name not in given}
    return found.model_copy(update={"limits": found.limits.model_copy(update=defaults)})


def _names(
    models: str | None, model: ModelOptions, controller: str | None
) -> dict[str, str | None]:
    """The models to load, by name; none if a controller has them."""
    if sum(map(bool, (models, model.model, controller))) > 1:
        raise RequestError("give only one of --model, --models and --controller")
    if controller:
        for keyword in model.keywords():
            raise RequestError(
                f"{option_name(keyword)} is for a model loaded here; --controller loads none"
            )
        return {}
    return named_models(models or model.model or "default")


def _remote(
    url: str, key_file: Path | None, settings: ServerSettings, *, reload: bool
) -> ChatClient:
    from vip_llava.serving.web.asking_http import HttpClient

    key = os.environ.get(KEY_VARIABLE)
    if key_file is not None:
        key = key_file.expanduser().read_text(encoding="utf-8").strip()
    return HttpClient(url, key, reload=reload, seconds=settings.limits.answer_seconds)


def _local(
    names: dict[str, str | None], model: ModelOptions, settings: ServerSettings
) -> ChatClient:
    from vip_llava.serving.web.asking import LocalClient

    keywords = model.keywords()
    loaded = {called: load_for_serving(name, keywords) for called, name in names.items()}
    return LocalClient(loaded, settings.limits)


def _suggester(sam: str | None) -> MaskSuggester:
    from vip_llava.serving.web.suggest import GrabCut, SegmentAnything

    return SegmentAnything(sam) if sam else GrabCut()
