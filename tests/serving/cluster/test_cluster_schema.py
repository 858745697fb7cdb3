"""The OpenAPI documents of controller and worker are correct, checked by schemathesis (test 48)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from vip_llava import load
from vip_llava.serving.cluster.controller import create_controller
from vip_llava.serving.cluster.signing import Secret
from vip_llava.serving.cluster.worker import create_worker
from vip_llava.serving.middleware.server import background, listen
from vip_llava.serving.settings import ServerSettings, make_settings

CHECKS = (
    not_a_server_error,
    content_type_conformance,
    status_code_conformance,
    response_schema_conformance,
)
SECRET = Secret("the secret of the schema's tests")
OPEN = make_settings(port=0, limits={"rate": 0, "tokens": 3})
CONTROLLER = (
    ("/v1/chat/completions", 8),
    ("/worker_generate_stream", 8),
    ("/get_worker_address", 6),
    ("/register_worker", 6),
    ("/receive_heart_beat", 6),
    ("/unregister_worker", 6),
    ("/list_models", 2),
    ("/refresh_all_workers", 2),
)
WORKER = (("/worker_generate_stream", 15), ("/worker_get_status", 2))


@pytest.fixture(scope="module")
def addresses(tiny_model_folder: Path) -> Iterator[dict[str, str]]:
    """The URLs of a controller with a worker of the tiny model, and of a standalone worker."""
    tiny = load(tiny_model_folder)
    with listen(OPEN) as free:
        port = free.getsockname()[1]
    settings = ServerSettings.model_validate({**OPEN.model_dump(), "port": port})
    address = f"http://127.0.0.1:{port}"
    app = create_controller(OPEN, SECRET)
    with background(app, OPEN) as controller:
        joined = create_worker(
            {"tiny": tiny},
            settings,
            secret=SECRET,
            controller=controller,
            address=address,
        )
        with (
            background(joined, settings),
            background(create_worker({"tiny": tiny}, OPEN), OPEN) as a,
        ):
            end = time.monotonic() + 20
            while not app.state.controller.registry.available:
                assert time.monotonic() < end
                time.sleep(0.02)
            yield {"controller": controller, "worker": a}


@pytest.fixture(scope="module")
def schemas(addresses: dict[str, str]) -> dict[str, Any]:
    return {
        name: schemathesis.openapi.from_url(f"{address}/openapi.json")
        for name, address in addresses.items()
    }


OPERATIONS = [("controller", *each) for each in CONTROLLER] + [("worker", *each) for each in WORKER]


def test_every_operation_is_tried(schemas: dict[str, Any]) -> None:
    for name, tried in (("controller", CONTROLLER), ("worker", WORKER)):
        found = {
            each.ok().path
            for each in schemas[name].get_all_operations()
            if each.ok().method.upper() == "POST"
        }
        ours = {path for path, _ in tried}
        assert found - ours <= {"/v1/chat/completions", "/v1/uploads"}  # the API's own tests
        assert ours <= found


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("server", "path", "count"), OPERATIONS)
def test_no_request_crashes_controller_or_worker(
    schemas: dict[str, Any], server: str, path: str, count: int, mode: GenerationMode
) -> None:
    operation = schemas[server][path]["POST"]
    seen: set[int] = set()

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(mode), hypothesis.strategies.booleans())
    def ask(case: Any, named: bool) -> None:
        if named and isinstance(case.body, dict):
            case.body["model"] = "tiny"  # so that it reaches the worker
        answer = case.call()
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "nothing that is allowed could be made"
        return
    assert seen
    if path in ("/register_worker", "/receive_heart_beat", "/unregister_worker"):
        assert seen <= {403}  # unsigned
