"""A small random model in a folder, with a tokenizer made from the rows' own words.

For trying a recipe without any weights: the tutorial, and runs on a laptop. It has everything that
a published model has (five-layer image encoder, projector, Llama) and can do nothing at first.
It knows no rows; texts are handed in.
"""

from __future__ import annotations

import json
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

from vip_llava.models.building import quiet
from vip_llava.models.safetensors_files import save_tensors
from vip_llava.training.recipes.recipe import TinyModel

__all__ = ["write_tiny"]

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def write_tiny(folder: Path, settings: TinyModel, texts: Iterable[str], seed: int) -> Path:
    """Write the model and its tokenizer into `folder`; a folder that is there stays as it is.

    The same settings, texts and seed give the same bytes.
    """
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pieces = _write_tokenizer(partial, settings.vocabulary, texts)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        with quiet():
            model = _model(settings, pieces)
            model.config.save_pretrained(partial)
            save_tensors(partial / "model.safetensors", model.state_dict())
    finally:
        torch.random.set_rng_state(state)
    _write_image_settings(partial, settings.image)
    partial.rename(folder)
    return folder


def _write_tokenizer(folder: Path, vocabulary: int, texts: Iterable[str]) -> int:
    """Byte-level BPE of at most `vocabulary` pieces, `<image>` the last; returns their number."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(["<image>"])
    unk, bos, eos, pad = _SPECIAL
    fast: Any = PreTrainedTokenizerFast
    made = fast(
        tokenizer_object=backend, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad
    )
    made.save_pretrained(folder)
    return len(made)


def _model(settings: TinyModel, pieces: int) -> VipLlavaForConditionalGeneration:
    width, side = settings.width, settings.image // settings.patch
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=settings.tower_layers,
        num_attention_heads=settings.heads,
        image_size=settings.image,
        patch_size=settings.patch,
    )
    text = LlamaConfig(
        vocab_size=pieces,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=pieces - 1,
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
        "image_mean": list(_MEAN),
        "image_std": list(_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
