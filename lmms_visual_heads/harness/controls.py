"""The extra passes of a run, when its answers are there: image controls in batches, then knock-outs document by document.

They change nothing that the ordinary run measured. What is measured goes to the journal as it comes; what an interrupted run
has measured is not run again. Documents without exactly one image have none, and what is not finite is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from lmms_visual_heads.capture.memory import out_of_memory
from lmms_visual_heads.checkpoints.encoding import Encoded
from lmms_visual_heads.checkpoints.knockout import KnockoutMeter
from lmms_visual_heads.checkpoints.model import VisualModel
from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.geometry.images import blank_image
from lmms_visual_heads.harness import costs, processes
from lmms_visual_heads.harness.arguments import IMAGE_LIMIT, KNOCKOUT_LIMIT, Arguments
from lmms_visual_heads.harness.control_plan import Candidate, Planned, fits, image_cost, planned
from lmms_visual_heads.harness.costs import Cost
from lmms_visual_heads.harness.families import images_digest
from lmms_visual_heads.harness.recording import Document, RunRecorder
from lmms_visual_heads.statistics.causal import answer_kl_or_nan

_KNOCKOUT = "control.knockout"


@dataclass(frozen=True, slots=True)
class _Noted:
    """A document of the ordinary run."""

    split: str
    context: str
    digest: str
    image: bytes


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """One prompt to be run, and the blank token that its answer begins with."""

    where: str
    encoded: Encoded
    blank: int | None


class Controls:
    """Image controls and knock-outs of one run.

    Parameters
    ----------
    arguments : Arguments
    model : VisualModel
    recorder : RunRecorder
    sizes : Sizes
        For the estimate of what it will cost.
    open_document : callable
        (doc_to_visual, doc_id, task, split, context) -> Document.

    Raises
    ------
    VisualHeadsError
        When heads are to be knocked out in a family where they cannot be.
    """

    def __init__(
        self,
        arguments: Arguments,
        model: VisualModel,
        recorder: RunRecorder,
        sizes: costs.Sizes,
        open_document: Callable[[Callable[[Any], Any], int, str, str, str], Document],
    ) -> None:
        self._arguments = arguments
        self._model = model
        self._recorder = recorder
        self._sizes = sizes
        self._open_document = open_document
        self._kinds = arguments.image_controls
        self._meter = KnockoutMeter(model.model, arguments.knockouts) if arguments.knockouts else None
        self._noted: dict[tuple[str, int], _Noted] = {}
        self._visuals: dict[str, Callable[[Any], Any]] = {}
        self._batch_size = arguments.batch_size
        self._progress: tqdm | None = None

    def note(self, document: Document, split: str, context: str, doc_to_visual: Callable[[Any], Any]) -> None:
        """Remember a document of the ordinary run; its image is not held."""
        key = (document.task, document.doc_id)
        if not document.controlled or key in self._noted:
            return
        image = images_digest(document.images)
        if image is None:
            raise AssertionError("a controlled document has one image")
        self._visuals.setdefault(document.task, doc_to_visual)
        self._noted[key] = _Noted(split, context, document.digest.hex(), image)

    def run(self) -> None:
        """Run what is left to be run; every process calls it once, together.

        Raises
        ------
        VisualHeadsError
            When one prompt does not fit into memory, or an image cannot be opened any more.
        """
        mine = {key: one for key in self._noted if (one := self._candidate(key)) is not None}
        gathered = processes.gather((mine, self._recorder.controls.costs.sums))
        candidates = [of_rank for of_rank, _ in gathered]
        images = _flat(planned(candidates, self._arguments.limit(IMAGE_LIMIT))) if self._kinds else []
        knockouts = _flat(planned(candidates, self._arguments.limit(KNOCKOUT_LIMIT))) if self._meter else []
        ordinary = sum((cost for _, sums in gathered for cost in sums.values()), Cost())
        self._say_cost(images, knockouts, ordinary)
        images, knockouts = self._left(images, self._image_name), self._left(knockouts, lambda _: _KNOCKOUT)
        passes = sum(self._image_cost(one).passes for one in images)
        passes += sum(self._knockout_cost(one).passes for one in knockouts)
        with tqdm(total=passes, desc="extra passes", disable=processes.rank() != 0 or not passes) as self._progress:
            images.sort(key=lambda one: -one.candidate.ran.n_prompt)  # what does not fit is found at once
            while images:
                part, images = images[: self._batch_size], images[self._batch_size :]
                self._change_images(part)
            for planned_one in knockouts:
                self._knock_out(planned_one)

    def _candidate(self, key: tuple[str, int]) -> Candidate | None:
        ran, noted = self._recorder.controls.ran(*key), self._noted[key]
        if ran is None:
            return None
        return Candidate(*key, noted.split, noted.context, noted.digest, noted.image, ran)

    def _left(self, plan: Sequence[Planned], name: Callable[[Planned], str]) -> list[Planned]:
        """This process's part of the plan, without what an interrupted run has measured."""
        recall = self._recorder.controls.recall
        of_this_process = [one for one in plan if one.rank == processes.rank()]
        return [one for one in of_this_process if not recall(*one.candidate.key, one.candidate.digest, name(one))]

    def _image_name(self, one: Planned) -> str:
        """With another partner it is another measurement: a run of more documents may have chosen another."""
        return f"control.image.{'+'.join(self._kinds)}.{one.partner.image.hex() if one.partner else 'none'}"

    def _image_cost(self, one: Planned) -> Cost:
        return image_cost(one, self._kinds, self._model.max_positions)

    def _knockout_cost(self, one: Planned) -> Cost:
        if self._meter is None:
            return Cost()
        ran = one.candidate.ran
        return Cost(*self._meter.cost(ran.n_prompt, ran.after_image, ran.blank is not None), ran.tower_tokens)

    def _say_cost(self, images: Sequence[Planned], knockouts: Sequence[Planned], ordinary: Cost) -> None:
        if processes.rank() != 0:
            return
        if not images and not knockouts:
            tasks = self._arguments.control_tasks or self._arguments.capture_tasks
            self._recorder.say(f"no extra passes: no document of {tasks} has exactly one image")
            return
        measured = self._recorder.controls.has
        left = [self._image_cost(one) for one in images if not measured(*one.candidate.key, self._image_name(one))]
        left += [self._knockout_cost(one) for one in knockouts if not measured(*one.candidate.key, _KNOCKOUT)]
        total = sum(left, Cost())
        flops, usual = self._sizes.flops(total), self._sizes.flops(ordinary)
        asked = [f"image_control={'+'.join(self._kinds)} on {len(images)} documents"] if images else []
        asked += [f"knockout={'+'.join(self._arguments.knockouts)} on {len(knockouts)} documents"] if knockouts else []
        done = len(images) + len(knockouts) - len(left)
        self._recorder.say(
            f"extra passes for {', '.join(asked)}: about {total.passes:,} forward passes of {total.tokens:,} tokens, "
            f"{flops:.2g} FLOPs, {flops / max(usual, 1):.2g} times the ordinary run"
            + (f" ({done} measured before are not repeated)" if done else "")
        )

    def _change_images(self, part: Sequence[Planned]) -> None:
        """The image controls of some documents."""
        passes: list[_Pass] = []
        places: list[dict[str, int]] = []
        for one in part:
            candidate = one.candidate
            image = self._open(candidate).images[0]
            changed = {"own": image}
            if "swap" in self._kinds and one.partner is not None and fits(one, self._model.max_positions):
                changed["swap"] = self._open(one.partner).images[0]
            if "blank" in self._kinds:
                changed["blank"] = blank_image(image, self._model.processor.image_processor)
            places.append({kind: len(passes) + n for n, kind in enumerate(changed)})
            for picture in changed.values():
                passes.append(_Pass(_where(candidate), self._encode(candidate, picture), candidate.ran.blank))
        logits = self._logits(passes)
        for one, place in zip(part, places, strict=True):
            kl = {kind: _kl(logits[place["own"]], logits[place[kind]]) for kind in self._kinds if kind in place}
            run = [passes[number] for number in place.values()]
            self._recorder.controls.add(
                *one.candidate.key,
                one.candidate.digest,
                self._image_name(one),
                kind=costs.IMAGE_CONTROL,
                cost=Cost(
                    len(run),
                    sum(len(each.encoded) + (each.blank is not None) for each in run),
                    sum(costs.tower_tokens(each.encoded, self._model.model.config) for each in run),
                ),
                image_kl={f"{kind}_kl": kl.get(kind) for kind in self._kinds},
            )

    def _logits(self, passes: Sequence[_Pass]) -> list[torch.Tensor]:
        """Logits [V] of every pass; prompts of equal length are run together."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for place, one in enumerate(passes):
            groups.setdefault((len(one.encoded), one.blank is None), []).append(place)
        logits: dict[int, torch.Tensor] = {}
        for places in groups.values():
            while places:
                batch, places = places[: self._batch_size], places[self._batch_size :]
                logits |= zip(batch, self._together([passes[place] for place in batch]), strict=True)
        return [logits[place] for place in range(len(passes))]

    def _together(self, batch: Sequence[_Pass]) -> list[torch.Tensor]:
        """Logits of passes of equal length; a batch that does not fit into memory is halved, and so are those after it."""
        try:
            blanks = [one.blank for one in batch if one.blank is not None]
            logits = self._model.answer_logits([one.encoded for one in batch], blanks or None)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise _does_not_fit(batch[0].where) from None
        else:
            self._advance(len(batch))
            return list(logits)
        half = len(batch) // 2
        self._batch_size = max(1, min(self._batch_size, half))
        torch.cuda.empty_cache()
        self._recorder.say(
            f"{len(batch)} extra prompts do not fit into memory; going on with batches of {self._batch_size}"
        )
        return [*self._together(batch[:half]), *self._together(batch[half:])]

    def _knock_out(self, one: Planned) -> None:
        """The knock-outs of one document."""
        if self._meter is None:
            raise AssertionError("knock-outs were planned, so there is a meter")
        candidate = one.candidate
        document = self._open(candidate)
        encoded = self._encode(candidate, document.images[0])
        try:
            effect = self._meter.measure(encoded, candidate.ran.blank, self._advance)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise _does_not_fit(_where(candidate)) from None
        self._recorder.controls.add(
            *candidate.key,
            candidate.digest,
            _KNOCKOUT,
            kind=costs.KNOCKOUT,
            cost=Cost(effect.n_passes, effect.n_tokens, costs.tower_tokens(encoded, self._model.model.config)),
            causal={
                "item_id": document.item_id,
                "all": effect.all,
                "layers": None if effect.layers is None else effect.layers.numpy(),
                "heads": None if effect.heads is None else effect.heads.numpy(),
            },
        )

    def _open(self, candidate: Candidate) -> Document:
        visual = self._visuals[candidate.task]
        return self._open_document(visual, candidate.doc_id, candidate.task, candidate.split, candidate.context)

    def _encode(self, candidate: Candidate, image: Image.Image) -> Encoded:
        try:
            return self._model.encode(candidate.context, [image])
        except VisualHeadsError as error:
            raise VisualHeadsError(
                f"Task {candidate.task}, document {candidate.doc_id}, extra passes: {error}"
            ) from None

    def _advance(self, n_passes: int) -> None:
        if self._progress is not None:
            self._progress.update(n_passes)


def _flat(plan: dict[str, list[Planned]]) -> list[Planned]:
    return [one for of_task in plan.values() for one in of_task]


def _kl(without: torch.Tensor, changed: torch.Tensor) -> float | None:
    value = float(answer_kl_or_nan(without[None], changed[None])[0])
    return value if math.isfinite(value) else None


def _where(candidate: Candidate) -> str:
    return f"document {candidate.doc_id} of task {candidate.task}"


def _does_not_fit(where: str) -> VisualHeadsError:
    return VisualHeadsError(
        f"The extra passes of every document must fit into memory one at a time; those of {where} do not. "
        "Free the device, take a smaller dtype, or leave image_control and knockout out."
    )
