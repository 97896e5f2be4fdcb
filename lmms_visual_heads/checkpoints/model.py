"""VisualModel: a vision-language model whose attention heads can be read while it answers.

Answers are those of the model without us. Shapes: L layers, H heads, K key positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Cache

from lmms_visual_heads.capture.generation import check_query, generate_with_rows
from lmms_visual_heads.capture.prefix import Prefix, can_reuse_prefix, prompt_rows
from lmms_visual_heads.checkpoints import passes
from lmms_visual_heads.checkpoints.encoding import Encoded, PromptEncoder
from lmms_visual_heads.checkpoints.knockout import LEVELS, KnockoutEffect, KnockoutMeter
from lmms_visual_heads.checkpoints.rows import AttentionRows
from lmms_visual_heads.checkpoints.scoring import ScoredContinuation, score_continuation
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import as_rgb
from lmms_visual_heads.geometry.preprocessing import Preprocessing
from lmms_visual_heads.schema import DEFAULT_QUERY, QUERIES
from lmms_visual_heads.statistics.answers import AnswerStatistics, answer_statistics
from lmms_visual_heads.statistics.heads import head_statistics

DEFAULT_NEW_TOKENS = 1024
"""Where a call does not say; as in lmms-eval's wrappers of these models."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


@dataclass(frozen=True, slots=True)
class Generation:
    """One document's answer.

    Attributes
    ----------
    token_ids : list of int
        Generated tokens, the end token included.
    text : str
        Their text, without special tokens.
    rows : Tensor [L, H, K] float32 on the model's device, or None
        K is prompt + 1 (first_generated) or prompt (last_prompt); None with capture off.
    answer : AnswerStatistics
    """

    token_ids: list[int]
    text: str
    rows: Tensor | None
    answer: AnswerStatistics

    @property
    def blank(self) -> int | None:
        """The first token, where it is a blank and the answer is the token after it."""
        return self.token_ids[0] if self.answer.answer_token_index else None


class VisualModel:
    """A loaded checkpoint; made by `load_model`.

    Parameters
    ----------
    name : str
        Joins heads and scores.
    model : PreTrainedModel
        In evaluation mode, after `capture.attention.attach`.
    encoder : PromptEncoder
    description : dict
        JSON-able facts about the checkpoint, written beside every measurement.
    """

    def __init__(self, name: str, model: Any, encoder: PromptEncoder, description: dict[str, Any]) -> None:
        self.name = name
        self.model = model
        self.encoder = encoder
        self.description = description
        text_config = model.config.get_text_config(decoder=True)
        self.n_layers = int(text_config.num_hidden_layers)
        self.n_heads = int(text_config.num_attention_heads)
        self.image_token_id = encoder.image_token_id
        self.max_positions = encoder.max_positions
        self.end_token_ids = _end_tokens(model, encoder.tokenizer)
        self._special_ids = frozenset(encoder.tokenizer.all_special_ids)
        self.pad_token_id = _pad_token(model, encoder.tokenizer, self.end_token_ids)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}: {self.description['architecture']}, "
            f"{self.n_layers} layers x {self.n_heads} heads, {str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def processor(self) -> Any:
        """The transformers processor."""
        return self.encoder.processor

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.encoder.tokenizer

    @property
    def preprocessing(self) -> Preprocessing:
        """What the processor does to an image's geometry."""
        return self.encoder.preprocessing

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.model.dtype

    def prompt(self, text: str, n_images: int) -> str:
        """The chat prompt that asks `text` about `n_images` images."""
        return self.encoder.prompt(text, n_images)

    def encode(self, text: str, images: Sequence[Image.Image], boxes: Any = None) -> Encoded:
        """Encode one document; refuses a prompt that does not fit the model's context.

        Parameters
        ----------
        text : str
            The question.
        images : sequence of PIL images
        boxes : sequence of (x0, y0, x1, y1), one such box, or None
            In pixels of the image, half-open; together they are the document's region.

        Raises
        ------
        VisualHeadsError
            For a prompt that does not fit, and for a bad box.
        """
        return self.encoder.encode(text, images, boxes)

    def encode_again(self, text: str, known: Encoded, boxes: Any = None) -> Encoded:
        """Encode another question about the images of `known`, whose pixels are not touched again (see `encode`)."""
        return self.encoder.encode_again(text, known, boxes)

    def reuses_prefix(self, **generation_kwargs: Any) -> bool:
        """Whether `prefill` may be used before `generate` with these keyword arguments."""
        return can_reuse_prefix(self.model, self.generation_settings(generation_kwargs))

    def prefill(self, batch: Sequence[Encoded], length: int) -> Prefix:
        """Run the first `length` tokens of every document, all its visual tokens among them, once.

        Documents that begin with them can go on from `prefix.branch(rows)`; their prompts may differ in length.
        """
        return passes.prefill_documents(self.model, batch, length)

    def prompt_rows(self, batch: Sequence[Encoded], cache: Cache | None = None) -> list[Tensor]:
        """Rows [L, H, K] of each document's last prompt token, without decoding and without the language-model head.

        Parameters
        ----------
        batch : sequence of Encoded
            Of equal prompt length.
        cache : Cache or None
            As for `generate`.
        """
        rows = prompt_rows(self.model, passes.batch_inputs(self.model, batch, cache), cache)
        return list(rows.unbind(dim=1))

    def generate(
        self, batch: Sequence[Encoded], *, query: str | None, cache: Cache | None = None, **generation_kwargs: Any
    ) -> list[Generation]:
        """Answer a batch of documents of equal prompt length.

        Parameters
        ----------
        batch : sequence of Encoded
            Of equal prompt length; numbers of images may differ.
        query : {"first_generated", "last_prompt"} or None
            Which rows are read; None reads none.
        cache : Cache or None
            A branch of a prefix that these documents begin with (`prefill`); used up by the call.
        **generation_kwargs
            Passed to transformers' `generate`. None values are dropped, decoding is greedy unless `do_sample` or a
            positive `temperature` is given, answers have at most 1,024 tokens unless `max_new_tokens` is given. With
            several return sequences the first is returned.

        Returns
        -------
        list of Generation
            In the order of `batch`.

        Raises
        ------
        ValueError
            When prompt lengths differ.
        VisualHeadsError
            When `query` is unknown.
        """
        check_query(query)
        if not batch:
            return []
        inputs = passes.batch_inputs(self.model, batch, cache)
        settings = self.generation_settings(generation_kwargs)
        captured = generate_with_rows(self.model, inputs, query, settings, cache)
        tokens = captured.tokens.tolist()
        ends = settings["eos_token_id"]
        ends = frozenset(ends) if isinstance(ends, list | tuple) else frozenset([ends])
        generations = []
        for i in range(len(batch)):
            ids = _until_end(tokens[i], ends)
            index = int(len(ids) > 1 and captured.second_logits is not None and self._is_blank(ids[0]))
            logits = captured.second_logits if index and captured.second_logits is not None else captured.first_logits
            per_token = None if captured.log_probabilities is None else captured.log_probabilities[i, : len(ids)]
            answer = answer_statistics(
                logits[i], answer_token_index=index, n_answer_tokens=len(ids), log_probabilities=per_token
            )
            rows = None if captured.rows is None else captured.rows[:, i]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            generations.append(Generation(ids, text, rows, answer))
        return generations

    def score(
        self, encoded: Encoded, continuation: str, *, query: str | None, prefix: Prefix | None = None
    ) -> ScoredContinuation:
        """Log-likelihood of `continuation` as the assistant's answer (see `scoring.score_continuation`).

        Raises
        ------
        VisualHeadsError
            When `query` is unknown, or the continuation is empty or does not fit the model's context after the prompt.
        """
        check_query(query)
        return score_continuation(self.model, encoded, self.encoder.finished(encoded, continuation), query, prefix)

    def answer_logits(self, batch: Sequence[Encoded], blanks: Sequence[int] | None = None) -> Tensor:
        """Logits [B, V] float32 of each document's first answer token, in one pass (see `passes.answer_logits`)."""
        return passes.answer_logits(self.model, batch, blanks)

    def knockout(
        self, image: Image.Image | str | Path, question: str, levels: Sequence[str] = LEVELS
    ) -> KnockoutEffect:
        """Knock out heads, and see how far the answer to `question` moves (greedy decoding; a blank is no answer).

        Parameters
        ----------
        image, question
            As for `attention_rows`.
        levels : sequence of {"all", "layers", "heads"}
            All heads at once, every layer, every head.

        Raises
        ------
        VisualHeadsError
            As `attention_rows`; for an unknown level, and for a family whose heads cannot be knocked out.
        """
        meter = KnockoutMeter(self.model, levels)
        encoded = self.encode(question, [image if isinstance(image, Image.Image) else _opened(image)])
        answer = self.generate([encoded], query=None, max_new_tokens=2)[0]
        return meter.measure(encoded, answer.blank)

    def attention_rows(
        self,
        image: Image.Image | str | Path,
        question: str,
        query: str = DEFAULT_QUERY,
        boxes: Sequence[Any] | None = None,
        max_new_tokens: int = 1,
    ) -> AttentionRows:
        """Ask `question` about `image` and read the heads' rows.

        Parameters
        ----------
        image : PIL image or path
        question : str
        query : {"first_generated", "last_prompt"}
        boxes : sequence of (x0, y0, x1, y1), one such box, or None
            In pixels of the image, half-open; together they are the region.
        max_new_tokens : int
            Length of the answer.

        Returns
        -------
        AttentionRows

        Raises
        ------
        VisualHeadsError
            For an unknown query, a bad box, or a prompt that does not fit.
        """
        if query not in QUERIES:
            check_query(str(query))
        if not isinstance(image, Image.Image):
            image = _opened(image)
        encoded = self.encode(question, [image], boxes)
        generation = self.generate([encoded], query=query, max_new_tokens=max_new_tokens)[0]
        if generation.rows is None:
            raise AssertionError("a query was given, so rows were read")
        return AttentionRows(
            values=generation.rows.cpu(),
            query=query,
            visual_positions=encoded.visual_positions,
            patch_positions=encoded.patch_positions,
            sink_positions=encoded.sink_positions,
            base_positions=encoded.base_positions,
            region=encoded.region,
            prompt=encoded.prompt,
            input_ids=encoded.input_ids,
            answer=generation.text,
            answer_ids=tuple(generation.token_ids),
            answer_statistics=generation.answer,
        )

    def head_statistics(self, encoded: Encoded, rows: Tensor) -> dict[str, Tensor]:
        """Head statistics of one document's rows [L, H, K]: a tensor [L, H] per column of the head table."""
        return head_statistics(
            rows,
            encoded.visual_positions,
            encoded.patch_positions,
            encoded.sink_positions,
            encoded.region,
            encoded.base_positions,
        )

    def generation_settings(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `generate`: None dropped, greedy unless asked otherwise, end and pad tokens set."""
        settings = {name: value for name, value in wanted.items() if value is not None}
        temperature = settings.get("temperature")
        sampling = bool(settings.get("do_sample", temperature is not None and temperature > 0))
        if temperature is not None and temperature <= 0:
            sampling = False
        settings["do_sample"] = sampling
        if not sampling:
            for name in _SAMPLING:
                settings.pop(name, None)
        settings.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
        settings.setdefault("eos_token_id", list(self.end_token_ids))
        settings.setdefault("pad_token_id", self.pad_token_id)
        return settings

    def move(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`inputs` on the model's device, pixels in its dtype."""
        return passes.on_device(self.model, inputs)

    def _is_blank(self, token: int) -> bool:
        """Whether a token decodes to white space only (LLaMA tokenizers put such a token before a digit)."""
        return token not in self._special_ids and not self.tokenizer.decode([token]).strip()


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """`tokens` up to and with the first end token."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens


def _opened(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return as_rgb(image).copy()
    except OSError as error:
        raise VisualHeadsError(
            f"An image must be a file that Pillow can read; {path} is not. Check the path, or copy the file again."
        ) from error


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """End tokens of the generation config and of the tokenizer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    ends = dict.fromkeys(int(token) for token in [*configured, tokenizer.eos_token_id] if token is not None)
    if not ends:
        raise VisualHeadsError(
            "Generation needs an end token; neither generation_config.json nor the tokenizer names one. "
            "Add eos_token_id to generation_config.json."
        )
    return tuple(ends)


def _pad_token(model: Any, tokenizer: Any, end_tokens: tuple[int, ...]) -> int:
    for token in (model.generation_config.pad_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return end_tokens[0]
