"""A small random model in a folder, with a tokenizer trained on the texts of the rows.

It has every part of a published model (a five-layer vision tower, projector, Llama) and no
knowledge: for the tutorial, and for trying a recipe on a laptop. It does not know rows; texts are
passed in.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from vip_llava.models.building import silence_transformers
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.prompting.geometry import CLIP_MEAN, CLIP_STD
from vip_llava.training.json_files import write_json
from vip_llava.training.recipes.recipe import TinyModelConfig

__all__ = ["write_tiny"]

_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")


def write_tiny(folder: Path, config: TinyModelConfig, texts: Iterable[str], seed: int) -> Path:
    """Write the model and its tokenizer into `folder`; an existing folder is kept.

    The same configuration, texts and seed give the same bytes.
    """
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    vocab_size = _write_tokenizer(partial, config.vocabulary, texts)
    with torch.random.fork_rng(devices=[]), silence_transformers():
        torch.manual_seed(seed)
        model = _build(config, vocab_size)
        model.config.save_pretrained(partial)
        save_tensors(partial / "model.safetensors", model.state_dict())
    _write_image_settings(partial, config.image)
    partial.rename(folder)
    return folder


def _write_tokenizer(folder: Path, vocabulary: int, texts: Iterable[str]) -> int:
    """A byte-level BPE of at most `vocabulary` tokens, `<image>` the last; returns their number."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<image>"])
    unk, bos, eos, pad = _SPECIAL_TOKENS
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(
        tokenizer_object=backend, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _build(config: TinyModelConfig, vocab_size: int) -> VipLlavaForConditionalGeneration:
    width, side = config.width, config.image // config.patch
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=config.tower_layers,
        num_attention_heads=config.heads,
        image_size=config.image,
        patch_size=config.patch,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=vocab_size - 1,
            image_seq_length=side * side,
        )
    )


def _write_image_settings(folder: Path, size: int) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    write_json(folder / "preprocessor_config.json", settings)
