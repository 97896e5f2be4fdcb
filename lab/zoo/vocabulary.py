"""Tokenizer, chat template and processor of the small checkpoints.

A closed vocabulary of words. Like LLaVA-1.5, an answer is a blank token and the word: the first generated token is the
blank, and the row of the query `first_generated` is the one that yields the word. Long fixed phrases are one token each,
so that prompts stay short.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lmms_visual_heads.probe.layout import COLOUR_NAMES, DIGITS, KINDS, QUADRANTS, SUPERCATEGORIES
from lmms_visual_heads.probe.questions import LETTER_POST_PROMPT, LETTERS, WORD_POST_PROMPT, options_text

BLANK = "▁"
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
PAD, UNKNOWN, BEGIN, END, IMAGE = SPECIAL
PHRASES = (
    WORD_POST_PROMPT.strip(),
    options_text(QUADRANTS),
    LETTER_POST_PROMPT.strip(),
)
MAX_POSITIONS = 256

_QUESTION_WORDS = [
    "is",
    "are",
    "there",
    "the",
    "a",
    "an",
    "in",
    "image",
    "how",
    "many",
    "of",
    "these",
    "pictured",
    "things",
    "what",
    "where",
    "color",
    "digit",
    "shown",
    "this",
    "thing",
]

_SUITE_WORDS = ["which", "bar", "bars", "tallest", "shortest", "taller", "than", "larger", "on"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'] | upper + ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def words(suite: bool = False) -> list[str]:
    """Every entry of the vocabulary in the order of its id, without the added tokens; `suite` adds the suite's own words."""
    nouns = [word for kind in KINDS for word in (kind.name, kind.plural)]
    numbers = [*DIGITS, "10", "11", "12"]
    sides = ["top", "bottom", "left", "right"]
    listed = [BLANK, "user:", "assistant:", "?", ".", "yes", "no", *numbers, *nouns, *SUPERCATEGORIES, *COLOUR_NAMES]
    return list(dict.fromkeys([*SPECIAL, *listed, *_QUESTION_WORDS, *sides, *(_SUITE_WORDS if suite else ())]))


def build_tokenizer(suite: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer: words and punctuation, lower case; letters A to D and the fixed phrases are taken as they are."""
    vocabulary = {word: index for index, word in enumerate(words(suite))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    # The blank in front of an answer, so that a written answer has the same tokens as a generated one.
    blank = normalizers.Replace(Regex(r"assistant:\s+"), f"assistant: {BLANK} ")
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), blank])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[?.,!]"), "isolated")]
    )
    core.decoder = decoders.Sequence([decoders.Replace(BLANK, ""), decoders.WordPiece(prefix="##", cleanup=False)])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    core.add_tokens([AddedToken(letter, normalized=False, single_word=True) for letter in LETTERS])
    core.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, core.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    image_size: int, patch_size: int, *, suite: bool = False, anyres: bool = False
) -> LlavaProcessor | LlavaNextProcessor:
    """A complete processor; images are resized to `image_size` pixels a side, nothing is cropped away or padded.

    With `anyres` a square image gets a base view and 2 x 2 tiles of that size.
    """
    settings: dict[str, Any] = {
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
        "image_mean": [0.25, 0.25, 0.25],
        "image_std": [0.27, 0.27, 0.27],
    }
    texts: dict[str, Any] = {
        "tokenizer": build_tokenizer(suite),
        "patch_size": patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT_TEMPLATE,
    }
    if anyres:
        pinpoints = [[2 * image_size, 2 * image_size]]
        return LlavaNextProcessor(
            image_processor=LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=pinpoints), **texts
        )
    return LlavaProcessor(image_processor=CLIPImageProcessorPil(**settings), **texts)
