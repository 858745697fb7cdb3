"""docs/serving.md is correct: its limits, routes, commands and code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vip_llava import Assistant
from vip_llava.serving.settings import Limits

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")


def test_the_docs_list_every_limit_with_its_default() -> None:
    for name, field in Limits.model_fields.items():
        assert f"| `{name}` | {field.default:,} | {field.description} |" in PAGE


def test_the_docs_list_every_route(serve: Callable[..., Any]) -> None:
    for path in serve().app.openapi()["paths"]:
        assert path.split("/{")[0] in PAGE


def test_the_curl_example_of_the_docs_is_answered(
    serve: Callable[..., Any], tiny: Assistant, photo_address: str
) -> None:
    api = serve(assistants={"default": tiny})
    found = re.search(r"-d '(\{.*?\n\})'", PAGE, re.DOTALL)
    assert found
    body = json.loads(found[1].replace("data:image/jpeg;base64,...", photo_address))
    body["messages"][0]["content"][0]["regions"][0]["box"] = [10, 10, 50, 40]  # a smaller photo
    answer = api.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


def test_the_python_example_of_the_docs_runs(serve: Callable[..., Any], tiny: Assistant) -> None:
    api = serve(assistants={"default": tiny})
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    code = found[1].replace("http://127.0.0.1:8000", api.address)
    assert api.address in code
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"[0-9a-f]{64}", ran.stdout.splitlines()[-1])
