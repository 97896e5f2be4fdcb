"""An original `llava` checkpoint -> VisualModel, with the original's prompts, tokens, pixels and logits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, LlamaConfig, PreTrainedModel

from lmms_visual_heads.checkpoints.adapters import CONFIG as ADAPTER_CONFIG
from lmms_visual_heads.checkpoints.adapters import merge_adapter
from lmms_visual_heads.checkpoints.conversations import Conversation, conversation_named, infer_conversation
from lmms_visual_heads.checkpoints.original_config import (
    OriginalConfig,
    read_original_config,
    text_config,
    whole_config,
)
from lmms_visual_heads.checkpoints.original_encoding import OriginalEncoder, add_image_token, original_processor
from lmms_visual_heads.checkpoints.original_files import (
    NON_LORA_FILE,
    PROJECTOR_FILE,
    has_weights,
    hugging_face_name,
    is_tower,
    opened,
    weight_files,
)
from lmms_visual_heads.checkpoints.original_model import (
    EMBEDDING,
    fill,
    generation_settings,
    skeleton,
    stored_tensors,
)
from lmms_visual_heads.checkpoints.original_tower import Tower, find_tower
from lmms_visual_heads.checkpoints.processors import check_files
from lmms_visual_heads.errors import VisualHeadsError, first_line

_ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "vipllava": "VipLlavaForConditionalGeneration",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_ADDED = {"mm_use_im_patch_token": ("<im_patch>",), "mm_use_im_start_end": ("<im_start>", "<im_end>")}


@dataclass(frozen=True, slots=True)
class OriginalCheckpoint:
    """Everything about an original checkpoint but its weights.

    Attributes
    ----------
    source : str
        Folder or hub id, for words.
    folder : Path
    config : OriginalConfig
    tokenizer : transformers tokenizer
        With the placeholder.
    vocabulary : int
        Rows of the output layer.
    image_token : int
    files : list of Path
        Weight files.
    tower : Tower
    conversation_name : str
    conversation : Conversation
    adapter : Path or None
        Folder of a LoRA adapter that belongs to the checkpoint.
    """

    source: str
    folder: Path
    config: OriginalConfig
    tokenizer: Any
    vocabulary: int
    image_token: int
    files: list[Path]
    tower: Tower
    conversation_name: str
    conversation: Conversation
    adapter: Path | None = None

    def hugging_face_config(self, vocabulary: int | None = None) -> Any:
        """The config of the Hugging Face model; `vocabulary` other than the tokenizer's for a converted one."""
        text = text_config(self.config, self.vocabulary if vocabulary is None else vocabulary)
        return whole_config(self.config, text, self.tower.config, self.image_token)

    def processor(self, chat_template: str | None = None) -> Any:
        """The Hugging Face processor with the original's pixels."""
        return original_processor(
            self.config, self.tokenizer, self.tower.image_settings, self.tower.config.patch_size, chat_template
        )

    def encoder(self, processor: Any, config: Any) -> OriginalEncoder:
        """The encoder with the original's prompts and tokens."""
        return OriginalEncoder(processor, config, self.conversation, self.config.marks_images, self.vocabulary)

    def generation(self, text: Any) -> Any:
        """End and pad tokens."""
        path = self.folder / "generation_config.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return generation_settings(text, self.tokenizer, self.conversation.stop, stored)

    def description(self) -> dict[str, Any]:
        """What is recorded beside every measurement, besides what every model has."""
        return {
            "format": "original",
            "architecture": _ARCHITECTURES[self.hugging_face_config().model_type],
            "model_type": self.config.model_type,
            "conversation": self.conversation_name,
            "image_aspect": self.config.aspect,
            "vision_tower": self.tower.place if self.tower.place == "checkpoint" else self.tower.name,
        }


def read_checkpoint(
    source: str,
    stored: dict[str, Any],
    revision: str | None = None,
    conversation: str | None = None,
    image_aspect: str | None = None,
    model_base: str | None = None,
) -> OriginalCheckpoint:
    """Read all but the weights of the original checkpoint `source`, whose config.json is `stored`.

    With `model_base`, weights and tokenizer that the folder lacks come from there: a LoRA folder holds the adapter and
    non_lora_trainables.bin, a pre-trained projector's folder mm_projector.bin only.

    Raises
    ------
    VisualHeadsError
        For whatever is missing, unsupported or damaged.
    """
    named = None if conversation is None else conversation_named(conversation)
    config = read_original_config(source, stored, image_aspect)
    folder = Path(source)
    local = folder.is_dir()
    if not local:
        folder = _downloaded(source, revision)
    base = None
    if model_base is not None:
        base = Path(model_base).expanduser()
        base = base if base.is_dir() else _downloaded(model_base, None)
    whole = base is None or has_weights(folder)
    files = weight_files(folder) if whole or base is None else [*weight_files(base), *_trained_beside(folder)]
    rows, inside = _look_inside(source, files)
    own_tokenizer = base is None or (whole and any((folder / name).is_file() for name in _TOKENIZER_FILES))
    tokenizer = _tokenizer(source, folder if own_tokenizer or base is None else base)
    for key, tokens in _ADDED.items():
        if stored.get(key, key == "mm_use_im_patch_token"):
            tokenizer.add_tokens(list(tokens), special_tokens=True)
    vocabulary = min(len(tokenizer), rows)
    name = conversation or infer_conversation(
        config.model_type, tokenizer, config.has_layer_norm, str(stored.get("_name_or_path", ""))
    )
    return OriginalCheckpoint(
        source=source,
        folder=folder,
        config=config,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        image_token=add_image_token(tokenizer),
        files=files,
        tower=find_tower(config, folder, inside, local, base),
        adapter=None if whole or not (folder / ADAPTER_CONFIG).is_file() else folder,
        conversation_name=name,
        conversation=named or conversation_named(name),
    )


def load_weights(checkpoint: OriginalCheckpoint, dtype: torch.dtype | str, device: torch.device) -> PreTrainedModel:
    """The model with its weights, in evaluation mode.

    Raises
    ------
    VisualHeadsError
        For missing, truncated, unfitting or code-running files.
    """
    wanted = stored_dtype(checkpoint.config.stored) if isinstance(dtype, str) else dtype
    config = checkpoint.hugging_face_config()
    model = skeleton(config, checkpoint.vocabulary)
    tensors = stored_tensors(checkpoint.files, checkpoint.tower.files)
    fill(model, checkpoint.source, tensors, checkpoint.vocabulary, wanted, device)
    if checkpoint.adapter is not None:
        merge_adapter(model, checkpoint.adapter)
    model.generation_config = checkpoint.generation(config.get_text_config(decoder=True))
    return model.eval()


def stored_dtype(stored: dict[str, Any]) -> torch.dtype:
    """The dtype that a config.json names; float16 where it does not."""
    name = str(stored.get("dtype") or stored.get("torch_dtype") or "float16").removeprefix("torch.")
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    return known.get(name, torch.float16)


def _downloaded(source: str, revision: str | None) -> Path:
    """A hub repository's files; safetensors where it has them."""
    small = ["*.json", "*.model", "*.txt", PROJECTOR_FILE, NON_LORA_FILE]
    try:
        first = Path(snapshot_download(source, revision=revision, allow_patterns=[*small, "*.safetensors"]))
        if any(first.glob("*.safetensors")):
            return first
        return Path(snapshot_download(source, revision=revision, allow_patterns=["*.bin"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError) as error:
        raise VisualHeadsError(
            f"No such checkpoint: the hub did not give the files of {source} ({type(error).__name__}). "
            "Check the spelling, the network (HF_HUB_OFFLINE) and your access."
        ) from error


def _trained_beside(folder: Path) -> list[Path]:
    """What a folder without a whole model holds besides its adapter: projector, and whatever else was trained."""
    files = [folder / name for name in (NON_LORA_FILE, PROJECTOR_FILE) if (folder / name).is_file()]
    if not files:
        raise VisualHeadsError(
            f"With model_base=, a folder holds {NON_LORA_FILE} (LoRA) or {PROJECTOR_FILE}; {folder} has neither. "
            "Copy it from where the checkpoint comes from."
        )
    return files[:1]


def _look_inside(source: str, files: list[Path]) -> tuple[int, bool]:
    """Rows of the embedding, and whether the files hold a vision tower. Every file is opened, so damage shows here."""
    rows, tower = 0, False
    for path in files:
        with opened(path) as weights:
            tower = tower or any(is_tower(name) for name in weights.names)
            for name in weights.names:
                if hugging_face_name(name) == EMBEDDING:
                    rows = weights.shape(name)[0]
    if not rows:
        raise VisualHeadsError(
            f"A checkpoint must hold every weight of its model; {source} lacks model.embed_tokens.weight. "
            "Copy the missing files again, or give model_base= where the folder holds an adapter only."
        )
    return rows, tower


def _tokenizer(source: str, folder: Path) -> Any:
    check_files(str(folder))
    try:
        # with any other config transformers takes another class, and with it other rules for blanks; with none it warns
        return AutoTokenizer.from_pretrained(str(folder), config=LlamaConfig(), trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise VisualHeadsError(
            f"A checkpoint needs its tokenizer files; those of {source} cannot be read ({first_line(error)}). "
            "Copy them from the repository that the checkpoint comes from."
        ) from error
