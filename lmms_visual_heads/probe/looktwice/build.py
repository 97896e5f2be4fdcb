"""Makes a LookTwice-QA folder: question file, the images that it needs, checks, `dataset.json`. Can be stopped and run
again; what is whole is kept. Records and images that cannot be used are left out and named, never guessed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice.download import (
    PART_SUFFIX,
    Downloader,
    Failed,
    NotThere,
    Patience,
    shown_address,
)
from lmms_visual_heads.probe.looktwice.folder import (
    ANSWER_FORMATS,
    FACTS_FILE,
    IMAGES_FOLDER,
    QUESTIONS_FILE,
    write_folder,
)
from lmms_visual_heads.probe.looktwice.images import ImageFacts, check_image
from lmms_visual_heads.probe.looktwice.options import with_options
from lmms_visual_heads.probe.looktwice.reading import Questions, chosen_items, read_questions_files
from lmms_visual_heads.probe.looktwice.records import Record, RecordProblem, fit_box
from lmms_visual_heads.probe.looktwice.sources import (
    IMAGE_URL,
    SOURCE_FOLDER,
    SOURCES,
    ImageSource,
    is_address,
    local_or_fetched,
    split_ids,
)
from lmms_visual_heads.probe.looktwice.summary import Summary

LARGEST_IMAGE = 50_000_000
FAILURES_IN_A_ROW, SILENCES_IN_A_ROW = 5, 2
"""So many images in a row that could not be fetched, or at which no server answered at all, end the run."""

_CITATIONS = (
    "Mani et al., Point and Ask: Incorporating Pointing into Visual Question Answering, 2020, arXiv 2011.13681",
    "Krishna et al., Visual Genome, 2016, arXiv 1602.07332",
)


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock ends with the process, however that ends."""
    try:
        (folder / IMAGES_FOLDER).mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise VisualHeadsError(f"--out needs a folder that can be written; {folder} cannot: {error}.") from error
    with handle:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise VisualHeadsError(
                    f"Another run is filling {folder}. Wait for it, or take another --out."
                ) from error
        for part in _left_behind(folder):
            part.unlink(missing_ok=True)
        yield


def _left_behind(folder: Path) -> Iterator[Path]:
    """Unfinished files of an earlier run: where this tool writes, and nowhere else."""
    yield from (folder / f"{name}{PART_SUFFIX}" for name in (FACTS_FILE, QUESTIONS_FILE))
    for place in (IMAGES_FOLDER, SOURCE_FOLDER):
        if (folder / place).is_dir() and not (folder / place).is_symlink():
            yield from (path for path in (folder / place).glob(f"*{PART_SUFFIX}") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Link a file, or copy it where linking is impossible; the name appears when it is whole."""
    part = target.with_name(target.name + PART_SUFFIX)
    try:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
        os.replace(part, target)
    except OSError as error:
        raise VisualHeadsError(f"{source} cannot be copied to {target}: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def _bring(record: Record, target: Path, source: ImageSource, downloader: Downloader, summary: Summary) -> ImageFacts:
    """The facts of one image in the folder, which is kept, copied or fetched.

    Raises
    ------
    NotThere, Failed
        If it cannot be had.
    """
    if target.exists():
        try:
            facts = check_image(target)
            summary.kept += 1
            return facts
        except VisualHeadsError:
            target.unlink()
            summary.repaired += 1
    local = source.local_file(record)
    if local is not None:
        try:
            facts = check_image(local)
        except VisualHeadsError as error:
            if source.image_url is None:
                raise Failed(str(error).rstrip("."), answered=True) from error
        else:
            _copy(local, target)
            summary.copied += 1
            return facts
    if source.image_url is None:
        raise Failed(f"{record.image_name} is not in {source.images}", answered=True)
    check = partial(check_image, name=record.image_name)
    facts = downloader.fetch(source.addresses(record), target, check, LARGEST_IMAGE)
    summary.fetched += 1
    return facts


def _bring_all(
    records: Mapping[str, Record],
    folder: Path,
    source: ImageSource,
    downloader: Downloader,
    summary: Summary,
    quiet: bool,
) -> dict[str, ImageFacts]:
    """Image name -> facts of all images that the records need and that could be had."""
    needed = list({record.image_name: record for record in records.values()}.values())
    found: dict[str, ImageFacts] = {}
    in_a_row = 0
    for record in tqdm(needed, desc="Visual Genome images", unit="image", disable=quiet, file=sys.stderr):
        name = record.image_name
        try:
            found[name] = _bring(record, folder / IMAGES_FOLDER / name, source, downloader, summary)
            in_a_row = 0
        except NotThere:
            summary.not_there.append(name)
            in_a_row = 0
        except Failed as failure:
            summary.not_fetched[name] = str(failure)
            in_a_row += source.image_url is not None
            if in_a_row >= (FAILURES_IN_A_ROW if failure.answered else SILENCES_IN_A_ROW):
                raise VisualHeadsError(
                    f"{in_a_row} images in a row could not be fetched, the last one: {failure}. {len(found)} of "
                    f"{len(needed)} images are in {folder}; run the same command again to go on."
                ) from failure
    return found


def _line(item_id: str, record: Record, facts: ImageFacts, seed: int, summary: Summary) -> dict[str, Any]:
    """One line of questions.jsonl.

    Raises
    ------
    RecordProblem
        If the image is not the one that the record speaks of.
    """
    if record.size is not None and record.size != facts.size:
        width, height = record.size
        raise RecordProblem(f"the image must have {width} x {height} pixels; it has {facts.width} x {facts.height}")
    box = fit_box(record.box, facts.size)
    summary.clipped += box != record.box
    x, y = record.point
    if not (0 <= x <= facts.width and 0 <= y <= facts.height):
        raise RecordProblem(f"the point ({x:g}, {y:g}) lies outside the image of {facts.width} x {facts.height} pixels")
    others = (
        None if record.object_boxes is None else [list(fit_box(other, facts.size)) for other in record.object_boxes]
    )
    questions = {}
    for kind, question in record.questions.items():
        lettered = with_options(question, record.count, item_id, seed)
        questions[kind] = {"text": lettered.text, "choices": lettered.choices, "letter": lettered.letter}
    return {
        "item_id": item_id,
        "image": f"{IMAGES_FOLDER}/{record.image_name}",
        "image_size": list(facts.size),
        "pointed_box": list(box),
        "point": [x, y],
        "object_boxes": others,
        "questions": questions,
        "answer": str(record.count),
    }


def _lines(
    records: Mapping[str, Record], found: Mapping[str, ImageFacts], seed: int, summary: Summary
) -> list[dict[str, Any]]:
    """The lines of questions.jsonl; scenes whose record does not fit its image are left out and named."""
    lines = []
    for item_id, record in records.items():
        if record.image_name not in found:
            continue
        try:
            lines.append(_line(item_id, record, found[record.image_name], seed, summary))
        except RecordProblem as problem:
            summary.left_out.append(f"{record.label}, image {record.image_name}: {problem}.")
    if not lines:
        reasons = [*(f"the server has no {name}" for name in summary.not_there), *summary.not_fetched.values()]
        reason = (reasons or summary.left_out[-1:])[0].rstrip(".")
        raise VisualHeadsError(f"No scene is left: {reason}. Check --questions and where the images come from.")
    return lines


def _source_facts(questions: Sequence[str], paths: Sequence[Path], source: ImageSource) -> dict[str, Any]:
    """What the folder was made from; of local files the name alone, without the machine's folders."""
    files = [
        {
            "name": shown_address(SOURCES.get(name, name)) if is_address(name) else path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for name, path in zip(questions, paths, strict=True)
    ]
    images = "a local folder" if source.image_url is None else shown_address(source.image_url)
    return {"questions": files, "images": images, "cite": list(_CITATIONS)}


def _counts(read: Questions, n_in_split: int, lines: Sequence[Mapping[str, Any]], summary: Summary) -> dict[str, int]:
    return {
        "records": read.n_records,
        "scenes_in_split": n_in_split,
        "scenes": len(lines),
        "images": len({line["image"] for line in lines}),
        "boxes_clipped": summary.clipped,
        "left_out": len(summary.left_out),
        "images_not_there": len(summary.not_there),
        "images_not_fetched": len(summary.not_fetched),
    }


def build_folder(
    out: str | os.PathLike[str],
    questions: Sequence[str] = ("vip-llava",),
    *,
    split: str | None = None,
    split_file: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    answers: str = "short",
    images: str | os.PathLike[str] | None = None,
    image_url: str | None = None,
    patience: Patience | None = None,
    allow_missing: bool = False,
    quiet: bool = False,
) -> Summary:
    """Make, complete or refresh a folder of LookTwice-QA.

    Parameters
    ----------
    out : path
        The folder; whole images in it are kept.
    questions : sequence of str
        Question files: paths, addresses, or `vip-llava`, `pointqa`.
    split : str, optional
        train, val, test or all; test by default where the file holds several.
    split_file : str, optional
        Path or address of a JSON list of image ids.
    limit : int, optional
        So many scenes, drawn with `seed`. One whose image cannot be had is not replaced by another: the draw stays the same.
    seed : int
        Draws the scenes of `limit` and the wrong options.
    answers : str
        short (a number) or options (a letter of four), for the tasks that read the folder.
    images : path, optional
        Local folder with the images; then nothing is fetched unless `image_url` is given, too.
    image_url : str, optional
        Address with the places {folder} and {image_id}.
    patience : Patience, optional
        Retries and time limits.
    allow_missing : bool
        Leave out images that could not be fetched, and call the folder complete.
    quiet : bool
        No progress bar.

    Returns
    -------
    Summary
        `complete` is False where images are missing that another run may bring; the tasks refuse such a folder.

    Raises
    ------
    VisualHeadsError
        For arguments or files that cannot be used, and when no scene is left.
    """
    if answers not in ANSWER_FORMATS:
        raise VisualHeadsError(f"--answers must be one of {', '.join(ANSWER_FORMATS)}; {answers!r} came.")
    if limit is not None and limit < 1:
        raise VisualHeadsError(f"--limit must be at least 1; {limit} came.")
    if not questions:
        raise VisualHeadsError("--questions needs at least one question file.")
    local = Path(images) if images is not None else None
    source = ImageSource(local, image_url or (None if local else IMAGE_URL))
    folder = Path(out)
    with _only_run(folder), Downloader(patience) as downloader:
        paths = [local_or_fetched(name, folder, downloader) for name in questions]
        read = read_questions_files(paths)
        split_name, ids = split_ids(read, questions, split, split_file, folder, downloader)
        summary = Summary(folder, split_name, answers, read.types, read.n_records, left_out=list(read.problems))
        if read.by_image and ids is None and split is None:
            summary.notes.append("No list of a split lies beside the question file: all its images are taken.")
        in_split = [item for item, record in read.records.items() if ids is None or record.image_id in ids]
        if not in_split:
            raise VisualHeadsError(
                f"The {split_name} split has none of the images of {paths[0].name}. Check --split-file."
            )
        chosen = {item: read.records[item] for item in chosen_items(in_split, limit, seed)}
        summary.n_chosen = len(chosen)
        found = _bring_all(chosen, folder, source, downloader, summary, quiet)
        lines = _lines(chosen, found, seed, summary)
        summary.n_scenes = len(lines)
        summary.complete = allow_missing or not summary.not_fetched
        facts = {
            "complete": summary.complete,
            "answers": answers,
            "split": split_name,
            "seed": seed,
            "limit": limit,
            "question_types": list(read.types),
            "source": _source_facts(questions, paths, source),
            "counts": _counts(read, len(in_split), lines, summary),
            "left_out": summary.left_out,
            "not_there": summary.not_there,
            "not_fetched": summary.not_fetched,
            "images": {line["image"]: found[line["image"].rpartition("/")[2]].to_json() for line in lines},
        }
        write_folder(folder, lines, facts)
    return summary
