"""Fixtures that several packages share: a tiny model folder, made here rather than committed.

The weights are random, so nothing sensible comes out of them; shapes, files and names are those
of a real checkpoint in the Hugging Face layout.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SENTENCES = (
    "A chat between a curious human and an artificial intelligence assistant. ",
    "The assistant gives helpful, detailed, and polite answers to the human's questions. ",
    "USER: What is the object within the red rectangle? ASSISTANT: It is a small brown dog. ",
    "Please describe what the arrow points to, and what stands inside the green ellipse. ",
)
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def write_tiny_tokenizer(folder: Path, vocab_size: int = 400) -> int:
    """Train a byte-level BPE tokenizer of at most `vocab_size` pieces into `folder`.

    Returns the number of pieces, `<image>` (the last one) included. Nothing is put in front of a
    text by itself.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(["<image>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
    )
    fast.save_pretrained(folder)
    return len(fast)


def write_tiny_image_processor(folder: Path, size: int) -> None:
    """The CLIP image processor's settings for a `size` x `size` picture."""
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VipLlava in the Hugging Face layout (float32, five-layer tower) with a tokenizer.

    Language model: width 32, 2 layers, 4 heads over 2 key/value heads, 2048 positions. Tower: width
    32, 12 layers, 56 x 56 picture, patch 14, so a picture is 16 tokens. `<image>` is the last id.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        VipLlavaConfig,
        VipLlavaForConditionalGeneration,
    )

    folder = tmp_path_factory.mktemp("tiny_viplava")
    pieces = write_tiny_tokenizer(folder)
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=12,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            projection_dim=32,
        ),
        text_config=LlamaConfig(
            vocab_size=pieces,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        ),
        image_token_index=pieces - 1,
        image_seq_length=16,
    )
    random_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = VipLlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        # The usual small start makes every picture look alike; wider weights make answers differ.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    torch.random.set_rng_state(random_state)
    model.save_pretrained(folder)
    write_tiny_image_processor(folder, 56)
    return folder
