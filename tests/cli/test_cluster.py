"""`vip-llava controller` and `vip-llava worker`: options, the secret, names, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vip_llava.cli.cluster import host_of, model_name, named_models, secret_from, worker_address
from vip_llava.errors import ServingError
from vip_llava.serving.cluster.signing import SECRET_VARIABLE

Program = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)


def test_names_of_models() -> None:
    assert named_models("default") == {"default": None}
    assert named_models("a/b, mine=./c,also=default") == {"b": "a/b", "mine": "./c", "also": None}
    assert model_name("runs/first/checkpoint-100/") == "first_checkpoint-100"
    assert model_name("llava-hf/vip-llava-7b-hf") == "vip-llava-7b-hf"
    for wrong in ("", "a,,b", "=x", "x=", "two words=x"):
        with pytest.raises(ServingError, match="write it like"):
            named_models(wrong)
    with pytest.raises(ServingError, match="two models are called b"):
        named_models("a/b,c/b")


def test_the_controller_creates_the_secret_and_the_worker_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "cluster.secret"
    with pytest.raises(ServingError, match="can't be read"):
        secret_from(file)
    made = secret_from(file, make=True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert secret_from(file).text() == made.text() == secret_from(file, make=True).text()
    with pytest.raises(ServingError, match="--secret-file"):
        secret_from(None)


def test_the_address_of_a_worker() -> None:
    assert worker_address(None, ("127.0.0.1", 5)) == "http://127.0.0.1:5"
    assert worker_address(None, ("::1", 5)) == "http://[::1]:5"
    assert worker_address("http://10.1.2.3:80/", ("0.0.0.0", 5)) == "http://10.1.2.3:80"
    assert host_of("http://[::1]:5") == "::1" and host_of("http://Name.example:5") == "name.example"
    with pytest.raises(ServingError, match=r"--worker-address http://10\.1\.2\.3:5"):
        worker_address(None, ("0.0.0.0", 5))


def test_check_prints_the_settings(program: Program) -> None:
    printed = json.loads(program("controller", "--check", "--allow-worker", "10.1.0.0/16").out)
    assert printed["allow_worker"] == ["10.1.0.0/16"] and printed["port"] == 21001
    assert printed["dispatch_method"] == "shortest_queue"
    ran = program("worker", "--check", "--models", "a=./x,default", "--limit", "tokens=7")
    printed = json.loads(ran.out)
    assert printed["models"] == ["a", "default"] and printed["limits"]["tokens"] == 7
    printed = json.loads(program("serve", "--check", "--models", "a=./x,default").out)
    assert printed["models"] == ["a", "default"]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["controller"], "--secret-file"),
        (["controller", "--check", "--dispatch-method", "fastest"], "shortest_queue, lottery"),
        (["controller", "--check", "--allow-worker", "10.1"], "must be a network, an address"),
        (["controller", "--check", "--expiry", "0"], "must be a positive number"),
        (["controller", "--check", "--host", "0.0.0.0"], "API key"),
        (["worker"], "--secret-file"),
        (["worker", "--check", "--models", "a", "--model", "b"], "leave out --model"),
        (["serve", "--check", "--models", "a", "--name", "b"], "leave out --model"),
        (["serve", "--check", "--models", "a/x,b/x"], "two models are called x"),
    ],
)
def test_contradictions_and_missing_options_are_reported(
    program: Program, words: list[str], printed: str
) -> None:
    ran = program(*words)
    assert ran.code == 2 and printed in ran.err


def test_flags_of_the_original_are_accepted(program: Program) -> None:
    words = "--model-path ./x --controller-address http://127.0.0.1:9 --load-8bit --device cpu"
    ran = program("worker", "--check", *words.split(), "--limit-model-concurrency", "5")
    assert json.loads(ran.out)["controller"] == "http://127.0.0.1:9"
    assert "--limit queue=N" in ran.err
    assert program("controller", "--check", "--dispatch-method", "lottery").code == 0
