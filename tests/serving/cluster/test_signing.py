"""Forged, modified, replayed and stale signed requests are refused (test 54)."""

from __future__ import annotations

from pathlib import Path

import pytest

from vip_llava.errors import ServingError
from vip_llava.serving.cluster.signing import (
    SECRET_VARIABLE,
    Secret,
    SignatureError,
    SignatureVerifier,
    read_secret,
)

SECRET = Secret("a secret of the tests, long enough")
PATH, BODY = "/register_worker", b'{"worker_name": "http://127.0.0.1:1"}'
NOW = 1_800_000_000.0


def verifier(now: float = NOW, **given: int) -> SignatureVerifier:
    return SignatureVerifier(SECRET, clock=lambda: now, **given)


def test_a_signature_is_valid_once() -> None:
    check, headers = verifier(), SECRET.sign("POST", PATH, BODY, now=NOW)
    check.check("POST", PATH, headers, BODY)
    with pytest.raises(SignatureError, match="sent before"):
        check.check("POST", PATH, headers, BODY)
    check.check("POST", PATH, SECRET.sign("POST", PATH, BODY, now=NOW), BODY)


@pytest.mark.parametrize("changed", ["method", "path", "body", "secret", "time", "nonce"])
def test_a_modified_request_is_refused(changed: str) -> None:
    signer = Secret("another secret of the tests") if changed == "secret" else SECRET
    headers = signer.sign("POST", PATH, BODY, now=NOW)
    if changed in ("time", "nonce"):
        name = f"x-vip-llava-{changed}"
        headers[name] = {"time": f"{NOW + 1:.3f}", "nonce": "0" * 32}[changed]
    method = "GET" if changed == "method" else "POST"
    path = "/receive_heart_beat" if changed == "path" else PATH
    with pytest.raises(SignatureError, match="wrong signature"):
        verifier().check(method, path, headers, b"{}" if changed == "body" else BODY)


@pytest.mark.parametrize("missing", ["time", "nonce", "signature"])
def test_an_unsigned_request_is_refused(missing: str) -> None:
    headers = SECRET.sign("POST", PATH, BODY, now=NOW)
    del headers[f"x-vip-llava-{missing}"]
    with pytest.raises(SignatureError, match="not signed"):
        verifier().check("POST", PATH, headers, BODY)


@pytest.mark.parametrize(("age", "allowed"), [(29, True), (31, False), (-29, True), (-31, False)])
def test_stale_and_early_requests_are_refused(age: float, allowed: bool) -> None:
    headers = SECRET.sign("POST", PATH, BODY, now=NOW - age)
    if allowed:
        verifier().check("POST", PATH, headers, BODY)
        return
    with pytest.raises(SignatureError, match="synchronize the clocks"):
        verifier().check("POST", PATH, headers, BODY)


def test_a_nonce_is_kept_while_it_could_be_replayed() -> None:
    now = [NOW]
    check = SignatureVerifier(SECRET, window=30, clock=lambda: now[0])
    early = SECRET.sign("POST", PATH, BODY, now=NOW + 29)
    check.check("POST", PATH, early, BODY)
    now[0] = NOW + 58
    with pytest.raises(SignatureError, match="sent before"):
        check.check("POST", PATH, early, BODY)


def test_a_full_nonce_memory_refuses_and_recovers() -> None:
    now = [NOW]
    check = SignatureVerifier(SECRET, window=30, capacity=2, clock=lambda: now[0])
    for _ in range(2):
        check.check("POST", PATH, SECRET.sign("POST", PATH, BODY, now=NOW), BODY)
    with pytest.raises(SignatureError, match="too many"):
        check.check("POST", PATH, SECRET.sign("POST", PATH, BODY, now=NOW), BODY)
    with pytest.raises(
        SignatureError, match="wrong signature"
    ):  # a wrong signature is refused first
        check.check("POST", PATH, Secret("x" * 16).sign("POST", PATH, BODY, now=NOW), BODY)
    now[0] += 61
    check.check("POST", PATH, SECRET.sign("POST", PATH, BODY, now=now[0]), BODY)


def test_a_proof_covers_challenge_and_body() -> None:
    proof = SECRET.proof("c1", BODY)
    assert SECRET.proves(proof, "c1", BODY)
    assert not SECRET.proves(proof, "c2", BODY)
    assert not SECRET.proves(proof, "c1", b"{}")
    assert not SECRET.proves(None, "c1", BODY)
    assert not Secret("another secret of the tests").proves(proof, "c1", BODY)


def test_the_secret_is_not_printed() -> None:
    headers = str(SECRET.sign("POST", PATH, BODY))
    for shown in (repr(SECRET), str(SECRET), headers, SECRET.service_key, SECRET.proof("c", b"")):
        assert "secret of the tests" not in shown
    assert Secret(SECRET.text()).service_key == SECRET.service_key
    assert Secret.new().text() != Secret.new().text()


def test_a_short_secret_is_refused_without_printing_it() -> None:
    with pytest.raises(ServingError, match="5 characters") as caught:
        Secret("12345")
    assert "12345" not in str(caught.value)


def test_the_secret_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    assert read_secret(None) is None
    monkeypatch.setenv(SECRET_VARIABLE, f" {SECRET.text()}\n")
    found = read_secret(None)
    assert found is not None and found.text() == SECRET.text()
    file = tmp_path / "secret"
    file.write_text("the secret in a file\n")
    file.chmod(0o600)
    found = read_secret(file)
    assert found is not None and found.text() == "the secret in a file"
    file.chmod(0o644)
    with pytest.raises(ServingError, match="chmod 600"):
        read_secret(file)
    with pytest.raises(ServingError, match="can't be read"):
        read_secret(tmp_path / "missing")
