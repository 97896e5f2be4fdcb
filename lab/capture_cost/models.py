"""Random LLaVA models of any size for the benchmarks, and their inputs. No lmms-eval, no checkpoint, no processor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

IMAGE_SIZE = 336
TOKENS_PER_IMAGE = 576
N_TEXT_TOKENS = 60


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model and its vision tower (width, layers)."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int
    tower: tuple[int, int]
    mistral: bool = False

    @property
    def head_width(self) -> int:
        """Numbers per head."""
        return self.hidden // self.heads

    def map_bytes(self, batch: int, n_keys: int, itemsize: int) -> int:
        """Bytes of the full attention maps of one prefill, all layers kept, and one map more in float32 for the softmax."""
        one = batch * self.heads * n_keys**2
        return self.layers * one * itemsize + one * 4


SHAPES = {
    "tiny": Shape(2, 64, 4, 4, 96, 300, (32, 2)),
    "narrow": Shape(2, 128, 4, 4, 352, 1000, (64, 2)),
    "wide": Shape(2, 512, 8, 8, 1376, 1000, (64, 2)),
    "small": Shape(3, 512, 8, 8, 1376, 1000, (64, 2)),
    "llava-1.5-7b": Shape(32, 4096, 32, 32, 11008, 32064, (1024, 24)),
    "llava-1.5-13b": Shape(40, 5120, 40, 40, 13824, 32064, (1024, 24)),
    "llava-1.6-mistral-7b": Shape(32, 4096, 32, 8, 14336, 32064, (1024, 24), mistral=True),
    "llava-1.6-vicuna-13b": Shape(40, 5120, 40, 40, 13824, 32064, (1024, 24)),
}


def build(shape: Shape, device: str, dtype: torch.dtype, image_size: int = IMAGE_SIZE) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights, made on `device` in `dtype`; patches of 14 pixels, so 24 x 24 of them an image."""
    torch.manual_seed(0)
    width, depth = shape.tower
    text = (MistralConfig if shape.mistral else LlamaConfig)(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        **({"sliding_window": None} if shape.mistral else {}),
    )
    tower = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // 64),
        image_size=image_size,
        patch_size=14,
        projection_dim=width,
    )
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=shape.vocabulary - 1, vision_feature_layer=-1
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a 13B model never stands in memory in float32
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).to(dtype)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.eval()


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of the model's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def inputs(
    model: LlavaForConditionalGeneration, n_images: int, batch: int, seed: int = 1, question: int = 0
) -> dict[str, torch.Tensor]:
    """Prompts with `n_images` images each; every image is 576 visual tokens, so five make the 2,880 of a full anyres prompt.

    Prompts of one `seed` have the same pixels and differ, by `question`, in their last tokens only.
    """
    generator = torch.Generator().manual_seed(seed)
    image_token = model.config.image_token_id
    text = torch.randint(3, image_token - 1, (batch, N_TEXT_TOKENS), generator=generator)
    size = model.config.vision_config.image_size
    pixels = torch.randn(batch * n_images, 3, size, size, generator=generator)
    if question:
        other = torch.Generator().manual_seed(1000 * seed + question)
        text[:, 30:] = torch.randint(3, image_token - 1, (batch, N_TEXT_TOKENS - 30), generator=other)
    visual = torch.full((batch, n_images * (size // 14) ** 2), image_token)
    ids = torch.cat([text[:, :10], visual, text[:, 10:]], dim=1).to(model.device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
