"""The models of the study (Bi et al., "Unveiling Visual Perception in Language Models", CVPR 2025) and their twins.

Facts and published scores lie beside this file, one line per figure, each with its source. Never imports torch.
The study names two models differently in its table and in its published statistics, so both twins are here; its
"24 x 32" heads of those is 32 x 32 in the checkpoints' configs.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError

FACTS = Path(__file__).with_name("known_models.csv")
SCORES = Path(__file__).with_name("known_scores.csv")
NAMES = ("original", "huggingface")

_TWINS = (
    ("llava-1.5-phi-3-mini-3.8B", "vip-llava-phi-3-mini-3.8B"),
    ("llava-1.5-llama-3-8b", "vip-llava-llama-3-8b"),
)
_STUDY_HEADS = "24 x 32"
_PUBLISHED, _IN_TABLE = "published statistics", "table"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One model.

    Attributes
    ----------
    model : str
    family : str
        LLaVA-1.5, LLaVA-1.6 or ViP-LLaVA.
    language_model : str
    layers, heads, key_value_heads : int
        As the checkpoint's config has them.
    layers_x_heads : str
    study_layers_x_heads : str
        As the study has them.
    resolution : {"336", "dynamic"}
    training_strategy : str
        Begins with "frozen" or "full": whether the vision encoder was trained.
    visual_tokens : str
        "576", or "up to 2880" (dynamic resolution), as the study counts them.
    most_visual_tokens : int
        With newline tokens, at any image size.
    original_repository : str
    huggingface_repository : str or None
        None where nobody published a conversion; `visual-heads convert` makes one.
    named_in : str
        Where in the study it occurs.
    twin : str or None
        The other model that the study means by the same entry.
    projector, vision_encoder : str
    sources : tuple of str
        Of all these figures.
    """

    model: str
    family: str
    language_model: str
    layers: int
    heads: int
    key_value_heads: int
    layers_x_heads: str
    study_layers_x_heads: str
    resolution: str
    training_strategy: str
    visual_tokens: str
    most_visual_tokens: int
    original_repository: str
    huggingface_repository: str | None
    named_in: str
    twin: str | None
    projector: str
    vision_encoder: str
    sources: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "sources": list(self.sources)}


@cache
def known_models() -> tuple[KnownModel, ...]:
    """All known models, in the study's order, each twin after its other."""
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    sources: dict[str, dict[str, None]] = defaultdict(dict)
    with FACTS.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            facts[line["model"]][line["field"]] = line["value"]
            sources[line["model"]][line["source"]] = None
    order = list(facts)
    twins = {one: other for pair in _TWINS for one, other in (pair, pair[::-1])}

    def place(name: str) -> tuple[int, int]:
        return min(order.index(name), order.index(twins.get(name, name))), order.index(name)

    return tuple(_model(name, facts[name], tuple(sources[name]), twins.get(name)) for name in sorted(order, key=place))


def _model(name: str, facts: dict[str, str], sources: tuple[str, ...], twin: str | None) -> KnownModel:
    layers, heads = int(facts["arch.llm_layers"]), int(facts["arch.llm_heads"])
    dynamic = facts["arch.image_resolution"].startswith("anyres")
    actual = f"{layers} x {heads}"
    return KnownModel(
        model=name,
        family="LLaVA-1.6" if dynamic else "ViP-LLaVA" if name.startswith("vip-") else "LLaVA-1.5",
        language_model=facts["arch.llm"],
        layers=layers,
        heads=heads,
        key_value_heads=int(facts["arch.llm_kv_heads"]),
        layers_x_heads=actual,
        study_layers_x_heads=_STUDY_HEADS if twin else actual,
        resolution="dynamic" if dynamic else "336",
        training_strategy=_strategy(facts),
        visual_tokens="up to 2880" if dynamic else facts["arch.visual_tokens"],
        most_visual_tokens=2928 if dynamic else 576,
        original_repository=facts["id.hf_checkpoint"],
        huggingface_repository=facts.get("id.huggingface_format"),
        named_in=_named_in(facts, twin),
        twin=twin,
        projector=facts["arch.projector"],
        vision_encoder=facts["arch.vision_encoder"],
        sources=sources,
    )


def _strategy(facts: dict[str, str]) -> str:
    samples = f"{facts['train.stage1_samples']} + {facts['train.stage2_samples']} samples"
    if "train.stage3" in facts:
        samples += " + GPT-4V data"
    if facts["train.vision_encoder"] == "frozen":
        return f"frozen vision encoder; projector, then projector and language model ({samples})"
    return f"full model in the second stage, vision encoder included; projector first ({samples})"


def _named_in(facts: dict[str, str], twin: str | None) -> str:
    if twin is None:
        return f"{_IN_TABLE} and {_PUBLISHED}"
    return _PUBLISHED if facts["id.in_published_statistics"] == "yes" else _IN_TABLE


def find_known(name: str) -> KnownModel | None:
    """The known model that a checkpoint's name (hub id or the last parts of a path) says it is, or None."""
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    for known in known_models():
        repositories = (known.original_repository, known.huggingface_repository or known.original_repository)
        if last == known.model.lower() or last in {one.rsplit("/", 1)[-1].lower() for one in repositories}:
            return known
    return None


def compared_with_study(name: str, layers: int, heads: int) -> dict[str, str]:
    """What is recorded of a loaded checkpoint that bears a known model's name.

    The checkpoint's config counts; where the study or the table says something else, both are shown.

    Parameters
    ----------
    name : str
        Of the checkpoint.
    layers, heads : int
        Of its config.
    """
    known = find_known(name)
    if known is None:
        return {}
    facts = {"known_model": known.model}
    loaded = f"{layers} x {heads}"
    if loaded != known.study_layers_x_heads:
        facts["heads_note"] = (
            f"{loaded} layers x heads by this checkpoint's config; the study says {known.study_layers_x_heads}"
        )
    return facts


@cache
def _score_lines() -> tuple[dict[str, str], ...]:
    with SCORES.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def source_document(source: str) -> str:
    """The document that a source's table stands in: figures of one document were measured in one way."""
    return source.split(" Table ")[0].split(" (")[0]


def score_sources() -> dict[str, int]:
    """Documents with published scores, and how many scores each has; most first."""
    return dict(Counter(source_document(line["source"]) for line in _score_lines()).most_common())


def published_scores(
    *, source: str | None = None, mix_sources: bool = False, names: str = "original"
) -> list[dict[str, Any]]:
    """Rows of a score table: model, benchmark, metric, scale, score, n_items (unknown), source.

    Official tables disagree by more than a point for the same model, so the scores of one benchmark come from one
    document: that with most models, unless `source` names one.

    Parameters
    ----------
    source : str or None
        Part of a document's name; only scores from there.
    mix_sources : bool
        Fill in models that a benchmark's document lacks from other documents.
    names : {"original", "huggingface"}
        Which repository names the models; a model without a Hugging Face repository keeps its original one.

    Raises
    ------
    VisualHeadsError
        For a source that is not there, or several.
    """
    if names not in NAMES:
        raise VisualHeadsError(f"--names must be original or huggingface; got {names!r}. Choose one of them.")
    if source is not None and mix_sources:
        raise VisualHeadsError(
            "--source takes scores from one document and --mix-sources from several; give one of them."
        )
    lines = _score_lines()
    if source is not None:
        documents = [document for document in score_sources() if source.lower() in document.lower()]
        if len(documents) != 1:
            raise VisualHeadsError(
                f"--source must name one of these documents: {'; '.join(score_sources())}. {source!r} names {len(documents)}."
            )
        lines = tuple(line for line in lines if source_document(line["source"]) == documents[0])
    by_benchmark: dict[str, dict[str, dict[str, dict[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        by_benchmark[line["benchmark"]][source_document(line["source"])].setdefault(line["model"], line)
    repositories = {
        known.model: (known.huggingface_repository if names == "huggingface" else None) or known.original_repository
        for known in known_models()
    }
    rows = []
    for benchmark, documents_of in sorted(by_benchmark.items()):
        ranked = sorted(documents_of.values(), key=len, reverse=True)
        chosen: dict[str, dict[str, str]] = {}
        for of_document in ranked if mix_sources else ranked[:1]:
            chosen = {**of_document, **chosen}
        for model in sorted(chosen, key=list(repositories).index):
            line = chosen[model]
            rows.append(
                {
                    "model": repositories[model],
                    "benchmark": benchmark,
                    "metric": line["metric"],
                    "scale": float(line["scale"]),
                    "score": float(line["score"]),
                    "n_items": None,
                    "source": line["source"],
                }
            )
    return rows
