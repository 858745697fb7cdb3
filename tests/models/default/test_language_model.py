"""The language model: conversion of GGUF files, downloads, interruptions."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vip_llava.errors import DownloadError
from vip_llava.models.default import language_model
from vip_llava.models.default.fetch import Progress, Wheel, sha256_of
from vip_llava.models.default.language_model import FOLDER_NAME, GGUF_MEMBER, ensure_language_model

TOKENS_OF_BYTES = 256
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_letters() -> list[str]:
    """The characters of the 256 bytes in GPT-2 style vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def interleaved_pairs(weight: torch.Tensor, heads: int) -> np.ndarray[Any, Any]:
    """The row order of GGUF, with interleaved rotary pairs."""
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width).numpy()


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + TOKENS_OF_BYTES + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 1234.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        # bfloat16 values, so that the conversion is exact
        weight.data = weight.data.to(torch.bfloat16).float()
    return model


def write_gguf(model: Any, path: Path) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [*SPECIAL, *byte_letters(), "12", "Ġa"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["1 2", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    state = model.state_dict()
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for part, name in language_model._LAYER_NAMES.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            values = interleaved_pairs(weight, heads[part]) if part in heads else weight.numpy()
            writer.add_tensor(f"blk.{layer}.{part}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TinySource:
    """A downloader of a wheel with a tiny GGUF file; counts its calls."""

    def __init__(self, folder: Path) -> None:
        import zipfile

        self.model = tiny_llama()
        self.gguf_file = folder / "tiny.gguf"
        write_gguf(self.model, self.gguf_file)
        path = folder / "tiny-1.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(self.gguf_file, GGUF_MEMBER)
        self.content = path.read_bytes()
        self.wheel = Wheel("tiny", "1", path.name, len(self.content), sha256_of(path))
        self.calls = 0

    def __call__(self, wheel: Wheel, folder: Path, progress: Progress) -> Path:
        self.calls += 1
        path = folder / wheel.filename
        path.write_bytes(self.content)
        return path

    def ensure(self, cache: Path, progress: Progress | None = None) -> Path:
        return ensure_language_model(cache, progress, wheel=self.wheel, downloader=self)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinySource:
    return TinySource(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore a user's offline setting: the tests have their own downloader."""
    monkeypatch.delenv("VIP_LLAVA_OFFLINE", raising=False)


@pytest.fixture
def source(made: TinySource) -> TinySource:
    made.calls = 0
    return made


def test_logits_are_those_of_the_model_that_was_written(source: TinySource, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = source.ensure(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, source.model(ids).logits)
    assert model.config.rms_norm_eps == 1e-5
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_weights_equal_those_of_the_reader_of_transformers(
    source: TinySource, tmp_path: Path
) -> None:
    import transformers
    from safetensors.torch import load_file

    folder = source.ensure(tmp_path)
    kwargs: dict[str, Any] = {"dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # earlier versions always dequantize
        kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        source.gguf_file.parent, gguf_file=source.gguf_file.name, **kwargs
    ).state_dict()
    ours = load_file(folder / "model.safetensors")
    assert set(theirs) - set(ours) == {"lm_head.weight"}
    assert all(torch.equal(theirs[name].to(torch.bfloat16), ours[name]) for name in ours)


def test_the_tokenizer_splits_digits_and_decodes_losslessly(
    source: TinySource, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.ensure(tmp_path))
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2]
    assert tokenizer.tokenize("12 a") == ["1", "2", "Ġa"]  # though the vocabulary has "12"
    for text in (
        "  two  spaces\n\n\ttab",
        "Zoë 日本 🦊 \x00",
        "12.5 %",
        " a",
        "<image> x <region:1>",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"][::2] == [1, 2]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_only_the_result_remains_and_is_reused(source: TinySource, tmp_path: Path) -> None:
    stages: list[str] = []
    folder = source.ensure(tmp_path, lambda stage, done, total: stages.append(stage))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", FOLDER_NAME]
    marker = json.loads((folder / "complete.json").read_text())
    assert {name: sha256_of(folder / name) for name in marker["files"]} == {
        name: entry["sha256"] for name, entry in marker["files"].items()
    }
    distinct = list(dict.fromkeys(stages))
    assert [stage.split()[0] for stage in distinct] == [
        "checking",
        "unpacking",
        "converting",
        "writing",
    ]
    assert source.ensure(tmp_path, lambda *args: pytest.fail("nothing to do")) == folder
    assert source.calls == 1


@pytest.mark.parametrize("stage", ["checking", "unpacking", "converting", "writing"])
def test_an_interrupted_build_can_be_repeated(
    source: TinySource, tmp_path: Path, stage: str
) -> None:
    def interrupt(stage_now: str, done: int, total: int) -> None:
        if stage_now.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.ensure(tmp_path, interrupt)
    assert not (tmp_path / FOLDER_NAME).exists()
    assert (source.ensure(tmp_path) / "model.safetensors").exists()
    # a verified wheel is not downloaded again
    assert source.calls == (2 if stage == "checking" else 1)


def test_files_of_a_killed_run_are_removed(source: TinySource, tmp_path: Path) -> None:
    for name in ("build-dead", "fetch-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "big").write_bytes(b"x")
    (tmp_path / source.wheel.filename).write_bytes(source.content[:100])
    source.ensure(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", FOLDER_NAME]


@pytest.mark.parametrize("damage", ["short", "gone", "marker", "old"])
def test_a_damaged_folder_is_rebuilt(source: TinySource, tmp_path: Path, damage: str) -> None:
    folder = source.ensure(tmp_path)
    weights, marker = folder / "model.safetensors", folder / "complete.json"
    if damage == "short":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif damage == "gone":
        weights.unlink()
    elif damage == "marker":
        marker.write_text("{")
    else:
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"layout": 0}))
    source.ensure(tmp_path)
    assert sha256_of(weights) == json.loads(marker.read_text())["files"][weights.name]["sha256"]
    assert source.calls == 2


def test_concurrent_calls_download_once(source: TinySource, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(source.ensure(tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / FOLDER_NAME] * 2
    assert source.calls == 1


def test_a_full_disk_is_an_error_before_the_download(
    source: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = language_model.shutil._ntuple_diskusage(10, 9, 1)
    monkeypatch.setattr(language_model.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="free some"):
        source.ensure(tmp_path)
    assert source.calls == 0


@pytest.mark.parametrize(
    "content", [b"no archive", b"PK\x05\x06" + bytes(18)], ids=["no zip", "empty zip"]
)
def test_a_wheel_with_other_content_is_an_error(tmp_path: Path, content: bytes) -> None:
    def copy_wheel(wheel: Wheel, folder: Path, progress: Progress) -> Path:
        path = folder / wheel.filename
        path.write_bytes(content)
        return path

    wheel = Wheel("tiny", "1", "tiny-1.whl", len(content), hashlib.sha256(content).hexdigest())
    with pytest.raises(DownloadError, match="could not unpack"):
        ensure_language_model(tmp_path, wheel=wheel, downloader=copy_wheel)
    assert not (tmp_path / FOLDER_NAME).exists()


@pytest.fixture(scope="module")
def real() -> Path:
    """The real language model, downloaded if it is not in the cache."""
    from vip_llava.models.default.fetch import offline

    try:
        return ensure_language_model()
    except DownloadError as error:
        if offline():
            pytest.skip(str(error))
        raise


@pytest.mark.default_model
@pytest.mark.slow
def test_the_real_weights_have_the_verified_hash(real: Path) -> None:
    """The hash is that of a conversion by transformers 5.23."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, weight in sorted(load_file(real / "model.safetensors").items()):
        digest.update(name.encode() + weight.view(torch.int16).numpy().tobytes())
    assert digest.hexdigest() == "08587497151051bb64ba4ae8288856623bb8c6cd5dc22bb3bda06ebda07a1bcd"


@pytest.mark.default_model
@pytest.mark.slow
def test_the_real_model_answers(real: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
