"""From generations to tables: one run's head table and answer table, with the fingerprint of the data behind them.

Nothing measured is lost: rows stream to a part file; a run that fails leaves them readable under another ending.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from lmms_visual_heads import __version__
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.names import file_stem
from lmms_visual_heads.schema import ANSWERS_SUFFIX, HEADS_SUFFIX
from lmms_visual_heads.tables.writing import AnswerTableWriter, HeadTableWriter

_PACKAGES = ("torch", "transformers", "tokenizers", "lmms_eval", "pillow", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a run, as far as the tables need it."""

    task: str
    doc_id: int
    item_id: str | None
    images: list[Image.Image]
    pointed_box: tuple[float, float, float, float] | None
    digest: bytes
    wanted: bool
    padding_only: bool

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def captured(self) -> bool:
        """Whether the heads are read: the task is captured and there is exactly one image."""
        return self.wanted and len(self.images) == 1 and not self.padding_only

    @classmethod
    def of(
        cls,
        doc: Mapping[str, Any],
        *,
        task: str,
        doc_id: int,
        images: list[Image.Image],
        context: str,
        wanted: bool,
        padding_only: bool,
    ) -> Document:
        """Collect what the tables need of an lmms-eval document; the digest covers the prompt and every pixel."""
        digest = hashlib.blake2b(context.encode(), digest_size=16)
        for image in images:
            digest.update(f"{image.mode}{image.size}".encode())
            digest.update(image.tobytes())
        item = doc.get("item_id")
        box = doc.get("pointed_box")
        return cls(
            task=task,
            doc_id=int(doc_id),
            item_id=None if item is None else str(item),
            images=images,
            pointed_box=None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            digest=digest.digest(),
            wanted=wanted,
            padding_only=padding_only,
        )


class RunRecorder:
    """Collects what one run measures and writes its tables.

    Parameters
    ----------
    folder : Path
        Where the tables go.
    name : str
        The model's name in the tables.
    query : str
        Which row is read.
    model_description : mapping
        What the checkpoint's configuration says (`VisualModel.description`).
    """

    def __init__(self, folder: Path, name: str, query: str, model_description: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name = name
        self._query = query
        self._model = {**model_description, "name": name}
        started = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        self._stem = f"{file_stem(name)}_{started}"
        self._heads: HeadTableWriter | None = None
        self._answers: AnswerTableWriter | None = None
        self._digests: dict[str, dict[int, bytes]] = defaultdict(dict)
        self._without_rows: dict[str, Counter[str]] = defaultdict(Counter)
        self._not_finite: Counter[tuple[int, int]] = Counter()
        self._console = Console(stderr=True)

    def add(
        self,
        document: Document,
        answer: Mapping[str, Any],
        heads: Mapping[str, Any] | None,
        tokens: Mapping[str, int],
        region_share: float | None = None,
    ) -> None:
        """Record one answered document; a repeated one is passed over.

        Parameters
        ----------
        document : Document
            What was asked.
        answer : mapping
            The answer's columns of the answer table (`statistics.answers.AnswerStatistics`).
        heads : mapping of str to array [L, H], or None
            Head statistics; None where the heads were not read.
        tokens : mapping
            `n_prompt_tokens`, `n_visual_tokens`, `n_patch_tokens`.
        region_share : float or None
            Share of the patch area that lies in the pointed box.
        """
        if document.padding_only or document.doc_id in self._digests[document.task]:
            return
        self._digests[document.task][document.doc_id] = document.digest
        if self._answers is None:
            self._answers = AnswerTableWriter(self._folder / (self._stem + ANSWERS_SUFFIX))
        self._answers.add(
            document.task,
            document.doc_id,
            item_id=document.item_id,
            n_images=document.n_images,
            n_prompt_tokens=tokens["n_prompt_tokens"],
            n_visual_tokens=tokens["n_visual_tokens"],
            **answer,
        )
        if document.wanted and document.n_images != 1:
            self._without_rows[document.task]["n_without_image" if not document.images else "n_several_images"] += 1
        if heads is None:
            return
        for layer, head in zip(*np.nonzero(np.isnan(heads["image_attention"])), strict=True):
            self._not_finite[int(layer), int(head)] += 1
        if self._heads is None:
            self._heads = HeadTableWriter(self._folder / (self._stem + HEADS_SUFFIX))
        self._heads.add(
            document.task, document.doc_id, heads, item_id=document.item_id, region_share=region_share, **tokens
        )

    def finish(self, expected: set[tuple[str, int]] | None) -> list[Path]:
        """Write the tables and say where they are.

        Parameters
        ----------
        expected : set of (task, doc_id), or None
            Every document of the run, where that is known.

        Returns
        -------
        list of Path
            The head table (when heads were read) and the answer table.

        Raises
        ------
        VisualHeadsError
            When documents of the run were answered without the model: the tables would lack them.
        """
        seen = {(task, doc_id) for task, digests in self._digests.items() for doc_id in digests}
        missing = sorted((expected or set()) - seen)
        if missing:
            self.abandon("documents were answered without the model")
            named = ", ".join(f"{task} {doc_id}" for task, doc_id in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise VisualHeadsError(
                f"The heads of every document must be read, and {len(missing)} of {len(expected or ())} were answered from a "
                f"response cache without the model ({named}{more}); no table was written. Run again without --use_cache."
            )
        written = []
        metadata = self._metadata()
        if self._heads is not None:
            written.append(self._heads.close(metadata))
            self._say(f"heads of {self._heads.n_documents} documents: [bold]{written[-1]}[/bold]")
        elif self._answers is not None:
            self._say("no heads were read: no document of a captured task has exactly one image (see capture_tasks=)")
        if self._answers is not None:
            written.append(self._answers.close(metadata))
            self._say(f"answers to {self._answers.n_documents} documents: [bold]{written[-1]}[/bold]")
        for task, counts in sorted(self._without_rows.items()):
            for reason, count in sorted(counts.items()):
                self._say(f"{task}: {count} documents {_REASONS[reason]} were answered and have no rows")
        if self._not_finite:
            worst = ", ".join(
                f"layer {la} head {he} ({n} documents)" for (la, he), n in self._not_finite.most_common(5)
            )
            self._say(f"rows that are not finite are missing in the table, in {len(self._not_finite)} heads: {worst}")
        self._heads = self._answers = None
        return written

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Keep what was measured when the run fails or is stopped inside."""
        try:
            yield
        except BaseException as error:
            self.abandon(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            raise

    def abandon(self, reason: str) -> None:
        """Keep what was measured by a run that failed, readable, under an ending that no command takes for a table."""
        for writer in (self._heads, self._answers):
            if writer is not None:
                self._say(f"the run did not finish ({reason}); what it measured is kept in {writer.abort(reason)}")
        self._heads = self._answers = None

    def _metadata(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "query": self._query,
            "dtype": self._model.get("dtype"),
            "image_processor": self._model.get("image_processor"),
            "tasks": {
                task: {
                    "fingerprint": fingerprint(digests),
                    "n_documents": len(digests),
                    "n_without_image": self._without_rows[task]["n_without_image"],
                    "n_several_images": self._without_rows[task]["n_several_images"],
                }
                for task, digests in sorted(self._digests.items())
            },
            "versions": {"lmms_visual_heads": __version__, **_versions()},
        }

    def _say(self, text: str) -> None:
        self._console.print(f"visual-heads: {text}", soft_wrap=True, highlight=False)


_REASONS = {"n_without_image": "without an image", "n_several_images": "with several images"}


def fingerprint(digests: Mapping[int, bytes]) -> str:
    """Hash of a task's data, 32 hexadecimal digits: prompts and pixels of every document, in the order of their numbers."""
    total = hashlib.blake2b(digest_size=16)
    for doc_id in sorted(digests):
        total.update(f"{doc_id}:".encode() + digests[doc_id])
    return total.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
