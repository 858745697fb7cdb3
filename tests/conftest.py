"""Fixtures that several packages share: tiny models and a folder of labelled photos, made here.

The weights are random, so nothing sensible comes out of them; shapes, files and names are those
of real checkpoints. The photos are coloured rectangles, each of them a labelled thing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPVisionModel

    from vip_llava.prompting.processor import Processor

# Without a GPU the CUDA kernels are tested by Triton's interpreter. It has to be asked for before
# anything imports Triton, and changes nothing for those who don't use it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
    """The CLIP image processor's settings for a `size` x `size` image."""
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


@pytest.fixture(autouse=True)
def model_at_hand(request: pytest.FixtureRequest) -> None:
    """Where fetching is forbidden and nothing was fetched before, say so instead of failing."""
    if request.node.get_closest_marker("default_model") is None:
        return
    from vip_llava.models.default.fetch import cache_folder, offline
    from vip_llava.models.default.language_model import FOLDER_NAME

    folder = cache_folder() / FOLDER_NAME
    if offline() and not folder.is_dir():
        pytest.skip(f"VIP_LLAVA_OFFLINE is set and {folder} is not there")


# Things of the made photos: label, colour, box in a photo of 96 x 72 pixels.
MADE_THINGS: tuple[tuple[str, tuple[int, int, int], list[int]], ...] = (
    ("cat", (200, 30, 30), [4, 6, 30, 32]),
    ("sofa", (30, 160, 30), [56, 4, 92, 28]),
    ("dog", (30, 30, 200), [6, 40, 38, 68]),
    ("person", (210, 200, 20), [60, 36, 84, 70]),
)


def write_labelled(folder: Path) -> Path:
    """Four photos with `regions.jsonl`: two of them belong to validation; the last one has people only."""
    from PIL import Image, ImageDraw

    from vip_llava.evaluation.coco_annotations import is_validation

    names = [f"made_{number}" for number in range(200)]
    kept = [name for name in names if is_validation(name)][:2]
    trained = [name for name in names if not is_validation(name)][:2]
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, name in enumerate([*kept, *trained]):
        image = Image.new("RGB", (96, 72), (128, 120 + number, 110))
        things = MADE_THINGS if number < 3 else MADE_THINGS[3:]
        objects = []
        for label, color, (x1, y1, x2, y2) in things:
            ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
            outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            box = [x1, y1, x2, y2]
            objects.append(
                {"label": label, "box": box, "polygons": outline if number == 2 else None}
            )
        image.save(folder / "images" / f"{name}.jpg", quality=95)
        rows.append(
            {
                "id": name,
                "image": f"images/{name}.jpg",
                "width": 96,
                "height": 72,
                "source": "made",
                "split": "train",
                "captions": ["Four things on a grey ground."] if number < 3 else [],
                "objects": objects,
                "exhaustive_for": ["coco80"] if number < 3 else ["person"],
            }
        )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "regions.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `write_labelled`; do not change it."""
    return write_labelled(tmp_path_factory.mktemp("made") / "labelled")


@pytest.fixture(scope="session")
def lite_processor() -> Processor:
    """As the default model's: ChatML, close views; 64 x 64 pixels and 17 tokens a view."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from vip_llava.models.default.efficientnet import PIXEL_MEAN, PIXEL_STD
    from vip_llava.prompting.focal_views import FocalSettings
    from vip_llava.prompting.geometry import ImageGeometry
    from vip_llava.prompting.processor import Processor
    from vip_llava.prompting.templates import get_template

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*SENTENCES, "user assistant"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    geometry = ImageGeometry(mode="pad", size=64, mean=(PIXEL_MEAN,) * 3, std=(PIXEL_STD,) * 3)
    return Processor(tokenizer, geometry, get_template("chatml"), 3, 17, FocalSettings())


@pytest.fixture(scope="session")
def lite_model() -> Callable[..., Any]:
    """`lite_model(seed=0)` makes a tiny VipLlava with an EfficientNet tower, for `lite_processor`."""

    def make(seed: int = 0) -> Any:
        import torch
        from transformers import LlamaConfig, VipLlavaForConditionalGeneration

        from vip_llava.models.default.build import default_config
        from vip_llava.models.default.efficientnet import EfficientNetLiteConfig

        vision = EfficientNetLiteConfig(
            stages=[[1, 3, 1, 1, 8], [2, 3, 2, 2, 12], [1, 5, 2, 2, 16]],
            stem_channels=8,
            head_channels=24,
            tap_blocks=[2, 3],
            grid=4,
            image_size=64,
        )
        text = LlamaConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
        )
        random_state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        model = VipLlavaForConditionalGeneration(default_config(vision, text, 3)).eval()
        with torch.no_grad():
            # The head is the embedding table and frozen in training: a usual small start could
            # hardly say anything, so nothing could be learnt.
            model.get_input_embeddings().weight.normal_(std=0.4)
            for name, value in model.model.vision_tower.named_buffers():
                if name.endswith("running_mean"):
                    value.normal_(std=0.1)
                elif name.endswith("running_var"):
                    value.uniform_(0.5, 1.5)
        torch.random.set_rng_state(random_state)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VipLlava in the Hugging Face layout (float32, five-layer tower) with a tokenizer.

    Language model: width 32, 2 layers, 4 heads over 2 key/value heads, 2048 positions. Tower: width
    32, 12 layers, 56 x 56 image, patch 14, so an image is 16 tokens. `<image>` is the last id.
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
        # The usual small start makes every image look alike; wider weights make answers differ.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    torch.random.set_rng_state(random_state)
    model.save_pretrained(folder)
    write_tiny_image_processor(folder, 56)
    return folder


@pytest.fixture(scope="session")
def tiny_clip() -> CLIPVisionModel:
    """A random CLIP image encoder: width 32, 12 layers, 56 x 56 image, patch 14."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        projection_dim=32,
    )
    generator = torch.Generator().manual_seed(5)
    model = CLIPVisionModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15, generator=generator)
    return model.eval()


TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
}


@pytest.fixture
def make_original(tmp_path: Path, tiny_clip: CLIPVisionModel) -> Callable[..., Path]:
    """`make_original(...)` writes a random checkpoint in the original's layout, file by file.

    Arguments: `layers` 5 or 1, `linears` of the projector (0: `linear`), `backbone` "llama" or
    "phi3", `tower` inside or not, `as_bin`, `shards`, `layer` and `strategy` for one layer,
    `extra` settings for config.json.
    """

    def make(
        layers: int = 1,
        linears: int = 2,
        *,
        backbone: str = "llama",
        tower: bool = True,
        as_bin: bool = False,
        shards: int = 1,
        layer: int = -2,
        strategy: str = "patch",
        extra: dict[str, Any] | None = None,
        name: str = "original",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        tensors = random_language_model(backbone)
        tensors |= random_projector(layers, linears)
        if tower:
            prefix = "model.vision_tower.vision_tower.vision_model."
            tensors |= {prefix + k: v.clone() for k, v in tiny_clip.state_dict().items()}
            tensors = {k: v for k, v in tensors.items() if not k.endswith("position_ids")}
            vision = tiny_clip.config.to_json_string(use_diff=False)
            (folder / "vision_config.json").write_text(vision)
        config = {
            **TINY_LLAMA,
            "model_type": f"llava_{backbone}",
            "architectures": [f"Llava{backbone.capitalize()}ForCausalLM"],
            "mm_vision_tower": "clip_4layers_336" if layers == 5 else "openai/no-such-tower",
            "mm_hidden_size": 32 * layers,
            "mm_projector_type": f"mlp{linears}x_gelu" if linears else "linear",
            "mm_vision_select_layer": layer,
            "mm_vision_select_feature": strategy,
            "mm_use_im_start_end": False,
            "image_aspect_ratio": "pad",
            **(extra or {}),
        }
        (folder / "config.json").write_text(json.dumps(config))
        write_weights(folder, tensors, as_bin, shards)
        return folder

    return make


def random_language_model(backbone: str = "llama") -> dict[str, Tensor]:
    """Weights of a two-layer language model of width 32 under its own names."""
    import torch

    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.15

    tensors = {
        "model.embed_tokens.weight": draw(400, 32),
        "model.norm.weight": 1 + draw(32),
        "lm_head.weight": draw(400, 32),
    }
    for number in range(2):
        here = f"model.layers.{number}."
        tensors[here + "input_layernorm.weight"] = 1 + draw(32)
        tensors[here + "post_attention_layernorm.weight"] = 1 + draw(32)
        tensors[here + "self_attn.o_proj.weight"] = draw(32, 32)
        tensors[here + "mlp.down_proj.weight"] = draw(32, 64)
        if backbone == "phi3":
            tensors[here + "self_attn.qkv_proj.weight"] = draw(64, 32)
            tensors[here + "mlp.gate_up_proj.weight"] = draw(128, 32)
        else:
            for part, rows in (("q", 32), ("k", 16), ("v", 16)):
                tensors[f"{here}self_attn.{part}_proj.weight"] = draw(rows, 32)
            tensors[here + "mlp.gate_proj.weight"] = draw(64, 32)
            tensors[here + "mlp.up_proj.weight"] = draw(64, 32)
    return tensors


def random_projector(layers: int, linears: int) -> dict[str, Tensor]:
    """A projector under the original's names; `linears` 0 is the bare linear layer."""
    import torch

    generator = torch.Generator().manual_seed(9)
    width = 32 * layers
    root = "model.mm_projector."
    tensors: dict[str, Tensor] = {}
    stack = root
    if layers == 5 and linears:
        stack = root + "final_linear."
        tensors[root + "clip_layernorm.weight"] = 1 + torch.randn(width, generator=generator) * 0.1
        tensors[root + "clip_layernorm.bias"] = torch.randn(width, generator=generator) * 0.1
    for number in range(max(1, linears)):
        place = f"{stack}{2 * number}." if linears else root
        size = (32, width if number == 0 else 32)
        tensors[place + "weight"] = torch.randn(*size, generator=generator) * 0.15
        tensors[place + "bias"] = torch.randn(32, generator=generator) * 0.1
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], as_bin: bool, shards: int) -> None:
    """One file, or `shards` files with an index."""
    import torch
    from safetensors.torch import save_file

    stem, end = ("pytorch_model", "bin") if as_bin else ("model", "safetensors")
    names = sorted(tensors)
    places = {}
    for number in range(shards):
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        file = f"{stem}.{end}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{end}"
        places.update(dict.fromkeys(part, file))
        if as_bin:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


@pytest.fixture
def make_vip() -> Callable[..., Any]:
    """`make_vip(backbone="llama", window=None)`: a five-layer VipLlava in float64 (vocabulary 100).

    `<image>` is id 99 and a view of 28 x 28 pixels is 4 tokens; every weight is seeded.
    """

    def make(backbone: str = "llama", window: int | None = None) -> Any:
        import torch
        from transformers import (
            CLIPVisionConfig,
            LlamaConfig,
            Phi3Config,
            VipLlavaConfig,
            VipLlavaForConditionalGeneration,
        )

        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        words = {
            "vocab_size": 100,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
        }
        words |= {"max_position_embeddings": 96}
        text: Any = LlamaConfig(**sizes, **words)
        if backbone == "phi3":
            text = Phi3Config(**sizes, **words, sliding_window=window)
        vision = CLIPVisionConfig(**sizes, num_hidden_layers=11, image_size=28, patch_size=14)
        config = VipLlavaConfig(
            vision_config=vision, text_config=text, image_token_index=99, image_seq_length=4
        )
        random_state = torch.random.get_rng_state()
        model: Any = VipLlavaForConditionalGeneration(config)
        torch.random.set_rng_state(random_state)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or name.endswith("class_embedding"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model.double()

    return make


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    """`make_row([3, "view", 4], learned=2, seed=0)`: a training row for the model of `make_vip`.

    A number stands for that many text ids, "view" for an image; the last `learned` ids are
    labels. Gives `input_ids` and `labels` (lists) and `pixel_values` [N, 3, 28, 28] or None.
    """

    def make(parts: Sequence[int | str], learned: int, seed: int = 0) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        pixels: list[Tensor] = []
        for part in parts:
            if isinstance(part, int):
                ids += torch.randint(1, 90, (part,), generator=generator).tolist()
            else:
                ids += [99] * 4
                pixels.append(torch.randn(3, 28, 28, generator=generator, dtype=torch.float64))
        labels = [-100] * (len(ids) - learned) + ids[len(ids) - learned :]
        views = torch.stack(pixels) if pixels else None
        return {"input_ids": ids, "labels": labels, "pixel_values": views}

    return make
