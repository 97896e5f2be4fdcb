"""Any image-text-to-text model whose visual tokens are marked in `input_ids`, behind the interface of VisualModel.

What is unknown about a family is found out on loading, with one drawn picture, and what cannot be right is refused in one
sentence: which token is visual, whether the layers return rows over the whole prompt, whether the image's embeddings
stand exactly where that token stands, whether documents may be stacked. Shapes: L layers, H heads, K key positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Cache

from lmms_visual_heads.capture.attention import attach
from lmms_visual_heads.capture.forced import forced_generation
from lmms_visual_heads.capture.generation import check_query, rows_of_pass
from lmms_visual_heads.capture.layers import local_layers
from lmms_visual_heads.capture.prefix import Prefix
from lmms_visual_heads.capture.reader import ForwardReader
from lmms_visual_heads.capture.support import check_config, check_decoder
from lmms_visual_heads.checkpoints.any_encoding import PROBE_QUESTION, AnyEncoder, probe_image, stackable
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.model import Generation, VisualModel
from lmms_visual_heads.checkpoints.passes import batch_inputs, on_device
from lmms_visual_heads.checkpoints.processors import check_files
from lmms_visual_heads.checkpoints.quantization import countable, describe_quantization, quantization_settings
from lmms_visual_heads.checkpoints.scoring import ScoredContinuation
from lmms_visual_heads.checkpoints.settings import LoadSettings
from lmms_visual_heads.checkpoints.sources import checked_source, stored_config
from lmms_visual_heads.checkpoints.weights import hugging_face_weights
from lmms_visual_heads.errors import VisualHeadsError, first_line
from lmms_visual_heads.names import model_name as name_of
from lmms_visual_heads.statistics.answers import answer_statistics

SUM_TOLERANCE = 1e-3
LLAVA_SETTINGS = ("conversation", "image_aspect", "model_base", "peft")
"""What only `load_model` takes."""
_FORWARD_ERRORS = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError, AssertionError)
_PROCESSOR_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError)


class AnyVisualModel(VisualModel):
    """A loaded checkpoint of any family; made by `load_any`. Image attention, C, F, S and sink; no regions."""

    encoder: AnyEncoder

    def reuses_prefix(self, **generation_kwargs: Any) -> bool:
        """False: what a decode step of an unknown family needs besides the cache is not known."""
        return False

    def generate(
        self, batch: Sequence[Encoded], *, query: str | None, cache: Cache | None = None, **generation_kwargs: Any
    ) -> list[Generation]:
        """Answer a batch of documents (see `VisualModel.generate`), one by one where their tensors do not stack.

        The rows of a local-attention layer that sees no visual token of the document are NaN: its statistics are missing.
        """
        together = len(batch) < 2 or (self.encoder.stacks and stackable([encoded.inputs for encoded in batch]))
        parts = [batch] if together else [[encoded] for encoded in batch]
        generations: list[Generation] = []
        for part in parts:
            with _failing_on(self, part):
                generations += super().generate(part, query=query, cache=cache, **generation_kwargs)
        return [
            dataclasses.replace(one, rows=self._without_blind_layers(one.rows, encoded))
            for one, encoded in zip(generations, batch, strict=True)
        ]

    def answer_logits(self, batch: Sequence[Encoded], blanks: Sequence[int] | None = None) -> Tensor:
        """Logits [B, V] of the first answer token (see `VisualModel.answer_logits`): `generate` is made to write the blank."""
        if len(batch) > 1 and not (self.encoder.stacks and stackable([encoded.inputs for encoded in batch])):
            each = [None] * len(batch) if blanks is None else [[blank] for blank in blanks]
            return torch.cat([self.answer_logits([one], blank) for one, blank in zip(batch, each, strict=True)])
        tokens = torch.full((len(batch), 1), self.pad_token_id)
        if blanks is not None:
            tokens = torch.cat([torch.tensor(blanks)[:, None], tokens], dim=1)
        with _failing_on(self, batch):
            inputs = batch_inputs(self.model, batch)
            return forced_generation(self.model, inputs, tokens, None, self.pad_token_id).logits[tokens.shape[1] - 1]

    @torch.inference_mode()
    def score(
        self, encoded: Encoded, continuation: str, *, query: str | None, prefix: Prefix | None = None
    ) -> ScoredContinuation:
        """Log-likelihood of `continuation` as the assistant's answer: `generate` is made to write it, token by token.

        Raises
        ------
        VisualHeadsError
            When the continuation is empty, or does not fit the model's context together with the prompt.
        """
        check_query(query)
        tokens = self.encoder.finished(encoded, continuation)[None, len(encoded) :]
        row_pass = {None: None, "last_prompt": 0, "first_generated": 1}[query]
        with _failing_on(self, [encoded]):
            forced = forced_generation(
                self.model, on_device(self.model, encoded.inputs), tokens, row_pass, self.pad_token_id
            )
        logits = torch.stack([step[0] for step in forced.logits[: tokens.shape[1]]])
        targets = tokens[0].to(logits.device)
        rows = rows_of_pass(self.model, forced.attentions, len(encoded), query)
        return ScoredContinuation(
            loss=float(nn.functional.cross_entropy(logits, targets)),
            is_greedy=bool((logits.argmax(-1) == targets).all()),
            n_tokens=tokens.shape[1],
            rows=self._without_blind_layers(None if rows is None else rows[:, 0], encoded),
            answer=answer_statistics(logits[0], answer_token_index=0, n_answer_tokens=0, log_probabilities=None),
        )

    def _without_blind_layers(self, rows: Tensor | None, encoded: Encoded) -> Tensor | None:
        """`rows` [L, H, K] with NaN in local layers whose window or chunk holds no visual token (weight exactly 0)."""
        local = local_layers(self.model.config.get_text_config(decoder=True))
        if rows is None or not local or not len(encoded.visual_positions):
            return rows
        seen = rows[local][..., encoded.visual_positions.to(rows.device)].amax(dim=(1, 2)) > 0
        blind = [layer for layer, sees in zip(local, seen.tolist(), strict=True) if not sees]
        if not blind:
            return rows
        rows = rows.clone()
        rows[blind] = float("nan")
        return rows


@contextmanager
def _failing_on(model: AnyVisualModel, batch: Sequence[Encoded]) -> Iterator[None]:
    """What a model's code cannot do with an image of odd shape becomes one sentence that names the image's size."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _FORWARD_ERRORS as error:
        sizes = dict.fromkeys(f"{width} x {height}" for encoded in batch for width, height in encoded.image_sizes)
        raise VisualHeadsError(
            f"The model must answer every question; {model.description['architecture']} failed on images of "
            f"{', '.join(sizes) or 'no size (none was given)'} ({first_line(error)}). "
            "Resize or leave out such images."
        ) from error


def load_any(
    pretrained: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    model_name: str | None = None,
    quantization: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> AnyVisualModel:
    """Load a checkpoint of any family that transformers loads as image-text-to-text, knowing nothing of it beforehand.

    Parameters
    ----------
    pretrained : str or Path
        Folder or hub id.
    device, dtype, revision, model_name, quantization, device_map
        As for `load_model`.

    Returns
    -------
    AnyVisualModel

    Raises
    ------
    VisualHeadsError
        As `load_model`; and where the family's rows cannot be right: encoder-decoder, cross-attention, soft-capped
        attention, a text model off transformers' attention interface, visual tokens that are not marked in `input_ids`.
    """
    source = checked_source(pretrained)
    device, dtype = LoadSettings(device=device, dtype=dtype, device_map=device_map).placement()
    config = _any_config(source, revision)
    check_config(config)
    packed = quantization_settings(source, config.to_dict(), quantization, dtype, device)
    quantized = describe_quantization(config.to_dict(), quantization)
    model_class = AutoModelForImageTextToText._model_mapping[type(config)]
    processor = _any_processor(source, revision)
    encoder = AnyEncoder(processor, config, model_class)
    model = hugging_face_weights(source, config, revision, dtype, device, model_class, packed, device_map)
    check_decoder(model)
    attach(model)
    name = name_of(str(pretrained), model_name)
    loaded = AnyVisualModel(name, model, encoder, _describe(name, revision, model, processor) | quantized)
    prove_rows(loaded)
    return loaded


def refuse_llava_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what `load_model` takes and `load_any` does not: nothing that is asked for is passed over."""
    name = next((name for name in LLAVA_SETTINGS if settings.get(name) is not None), None)
    if name is not None:
        raise VisualHeadsError(
            "visual_heads_hf takes the prompt from the checkpoint's chat template, and processor and weights as they are; "
            f"{name}= came, which is for LLaVA-1.5, LLaVA-NeXT and ViP-LLaVA (visual_heads_llava). Leave it out."
        )


def _any_config(source: str, revision: str | None) -> Any:
    stored = stored_config(source, revision)
    kind = stored.get("model_type")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise VisualHeadsError(
            f"visual_heads_hf needs a model that this transformers knows; {source} has model_type {kind!r} "
            f"({first_line(error)}). Update transformers, or run it with lmms-eval's own wrapper."
        ) from error
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise VisualHeadsError(
            f"visual_heads_hf needs a model that transformers loads as image-text-to-text; {source} has model_type "
            f"{kind!r}, which is none. Give a vision-language checkpoint."
        )
    return config


def _any_processor(source: str, revision: str | None) -> Any:
    """The processor as every other wrapper gets it; its image backend is transformers' choice, and is recorded."""
    check_files(source)
    try:
        processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
    except _PROCESSOR_ERRORS as error:
        raise VisualHeadsError(
            f"A checkpoint needs its processor and tokenizer files; those of {source} cannot be read "
            f"({first_line(error)}). Copy them from the repository that the checkpoint comes from."
        ) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise VisualHeadsError(
            f"visual_heads_hf needs a processor for images and text; {source} has a {type(processor).__name__}. "
            "Copy preprocessor_config.json and the tokenizer's files from the repository that the checkpoint comes from."
        )
    processor.tokenizer.padding_side = "left"
    return processor


def _describe(name: str, revision: str | None, model: Any, processor: Any) -> dict[str, Any]:
    text_config = model.config.get_text_config(decoder=True)
    counted = countable(model)
    head = counted.get_output_embeddings()
    language = [*counted.get_decoder().parameters(), *(head.parameters() if head is not None else ())]
    image_processor = processor.image_processor
    return {
        "name": name,
        "revision": revision or getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "format": "huggingface",
        "layers": int(text_config.num_hidden_layers),
        "heads": int(text_config.num_attention_heads),
        "language_model_parameters": sum({id(p): p.numel() for p in language}.values()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "image_processor": f"{type(image_processor).__name__} ({getattr(image_processor, 'backend', 'unknown')})",
    }


@torch.inference_mode()
def prove_rows(model: AnyVisualModel) -> None:
    """Read one drawn picture and its twin: rows over the whole prompt, and image embeddings where the visual token stands.

    Raises
    ------
    VisualHeadsError
        When the model fails on the picture, or its rows would not be attention over its visual tokens.
    """
    kind = model.model.config.model_type
    inputs, hidden = [], []
    attentions: tuple[Tensor, ...] | None = None
    for seed in (0, 1):
        encoded = model.encode(PROBE_QUESTION, [probe_image(seed)])
        try:
            with _FirstLayer(model.model) as first, ForwardReader(model.model, 0) as reader:
                model.model.generate(**model.move(encoded.inputs), **model.generation_settings({"max_new_tokens": 1}))
        except _FORWARD_ERRORS as error:
            raise VisualHeadsError(
                f"visual_heads_hf needs a model that answers a question about one drawn picture; {kind} failed "
                f"({first_line(error)}). Run it with lmms-eval's own wrapper, without heads."
            ) from error
        if not any(row is not None for row in reader.attentions or ()):
            raise VisualHeadsError(
                "Reading attention rows needs a text model on transformers' attention interface that `generate` calls itself; "
                f"{kind} returns no row. Run it with lmms-eval's own wrapper, without heads."
            )
        attentions = reader.attentions
        inputs.append(encoded)
        hidden.append(first.hidden)
    rows = rows_of_pass(model.model, attentions, len(inputs[1]), "last_prompt")
    read = [row for row in attentions or () if row is not None]
    shapes = {tuple(row.shape) for row in read}
    if rows is None or shapes != {(1, model.n_heads, 1, len(inputs[1]))}:
        raise VisualHeadsError(
            f"Reading attention rows needs one row per head over the whole prompt of {len(inputs[1])} tokens; the layers of "
            f"{kind} return {sorted(shapes)}. Run it with lmms-eval's own wrapper, without heads."
        )
    off_by = max(float((row.float().sum(-1) - 1).abs().max()) for row in read)
    if not off_by <= SUM_TOLERANCE:
        raise VisualHeadsError(
            f"Reading attention rows needs softmax rows, which sum to 1; those of {kind} are off by {off_by:.2g}. "
            "Run it with lmms-eval's own wrapper, without heads."
        )
    _prove_positions(kind, inputs[0], inputs[1], hidden)


def _prove_positions(kind: str, one: Encoded, other: Encoded, hidden: list[Tensor | None]) -> None:
    """Another picture must change the decoder's input, and only where the visual token stands."""
    first, second = hidden
    if (
        first is None
        or second is None
        or not torch.equal(one.input_ids, other.input_ids)
        or first.shape != second.shape
    ):
        return
    axis = next((i for i, size in enumerate(first.shape[1:], 1) if size == len(one)), None)
    if axis is None:
        return
    changed = (first != second).movedim(axis, 0).flatten(1).any(dim=1).cpu()
    visual = torch.zeros(len(one), dtype=torch.bool)
    visual[one.visual_positions] = True
    if not bool(changed.any()) or bool((changed & ~visual).any()):
        raise VisualHeadsError(
            f"visual_heads_hf needs visual tokens that are marked in input_ids; in {kind} another picture changes "
            f"{int((changed & visual).sum())} of {int(visual.sum())} marked positions and {int((changed & ~visual).sum())} "
            "others. Run it with lmms-eval's own wrapper, without heads."
        )


class _FirstLayer:
    """Keeps what the first decoder layer is given in the first pass."""

    def __init__(self, model: Any) -> None:
        n_layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        stacks = (m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
        self._layers = next(stacks, None)
        self._hook: Any = None
        self.hidden: Tensor | None = None

    def __enter__(self) -> _FirstLayer:
        if self._layers is not None:
            self._hook = self._layers[0].register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if self.hidden is None and isinstance(hidden, Tensor):
            self.hidden = hidden.clone()
