"""The OpenAPI document is correct: schemathesis sends what it allows and what it forbids.

A real server in this process, and a fixed number of requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import jsonschema
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from vip_llava import Assistant
from vip_llava.regions import SHAPES, region_from_json
from vip_llava.serving.api.app import create_app
from vip_llava.serving.api.region_schema import region_schema
from vip_llava.serving.middleware.server import background
from vip_llava.serving.settings import make_settings

CHECKS = (
    not_a_server_error,
    content_type_conformance,
    status_code_conformance,
    response_schema_conformance,
)

BY_SHAPE: dict[str, dict[str, Any]] = {
    "box": {"box": [1, 2, 30, 40]},
    "ellipse": {"box": [0.5, 2, 30, 40]},
    "triangle": {"points": [[1, 2], [30, 40], [5, 60]]},
    "point": {"point": [4, 5], "radius": [2, 3]},
    "scribble": {"points": [[1, 2], [30, 40]]},
    "arrow": {"tail": [1, 2], "tip": [30, 40], "head": 5, "filled": False},
    "contour": {"polygons": [[1, 2, 30, 40, 5, 60]]},
    "mask": {"rle": {"size": [2, 3], "counts": [1, 2, 3]}},
}


def test_every_shape_fits_the_schema() -> None:
    schema = region_schema()
    assert set(BY_SHAPE) == set(SHAPES)
    for shape, geometry in BY_SHAPE.items():
        value = {"shape": shape, "frame": "pixel", "id": "a", "color": "red", **geometry}
        value |= {"alpha": 200, "width": 3}
        for told in (value, region_from_json(value).to_json()):
            jsonschema.validate(told, schema)
        for wrong in ({**value, "frame": "cm"}, {**value, "boxx": 1}, {**value, "alpha": 300}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)
            with pytest.raises(ValueError, match=shape):
                region_from_json(wrong)


@pytest.fixture(scope="module")
def schema(tiny: Assistant) -> Iterator[Any]:
    """The OpenAPI document of a running server with the tiny model."""
    # Bodies of control characters and random bytes must reach the handlers.
    settings = make_settings(port=0, limits={"rate": 0, "tokens": 3, "choices": 2})
    with background(create_app({"tiny": tiny}, settings), settings) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


OPERATIONS = (
    ("POST", "/v1/chat/completions", 10),
    ("POST", "/v1/uploads", 15),
    ("DELETE", "/v1/uploads/{upload_id}", 10),
    ("GET", "/v1/models", 3),
    ("GET", "/v1/models/{model}", 10),
    ("GET", "/health", 3),
    ("GET", "/ready", 3),
    ("GET", "/metrics", 3),
)


def as_it_is(_case: Any) -> None:
    """Mostly refused for the unknown model."""


def with_a_question(case: Any) -> None:
    """Set model and last role, so that the messages are validated."""
    if isinstance(case.body, dict):
        case.body["model"] = "tiny"
        if isinstance(case.body.get("messages"), list):
            case.body["messages"].append({"role": "user", "content": "x"})


def with_our_question(case: Any) -> None:
    """Set the messages, so that the other keys are validated and the request is answered."""
    if isinstance(case.body, dict):
        case.body["model"] = "tiny"
        case.body["messages"] = [{"role": "user", "content": "x"}]
        case.body |= {"max_tokens": 2, "max_completion_tokens": None, "n": 1}


HELP = (as_it_is, with_a_question, with_our_question)


def test_every_operation_is_tried(schema: Any) -> None:
    found = {(each.ok().method.upper(), each.ok().path) for each in schema.get_all_operations()}
    assert found == {(method, path) for method, path, _ in OPERATIONS}


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path", "count"), OPERATIONS)
def test_no_request_crashes_the_server(
    schema: Any, method: str, path: str, count: int, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    seen: set[int] = set()

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(mode))
    def ask(case: Any) -> None:
        help_with(case)
        answer = case.call()
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    for help_with in HELP if path == "/v1/chat/completions" else HELP[:1]:  # noqa: B007 - in `ask`
        try:
            ask()
        except hypothesis.errors.Unsatisfiable:
            # This operation has no invalid requests.
            assert mode is GenerationMode.NEGATIVE, "nothing that is allowed could be made"
            return
    assert seen
    if (path, mode) == ("/v1/chat/completions", GenerationMode.POSITIVE):
        assert {200, 404, 422} <= seen  # some requests are answered
