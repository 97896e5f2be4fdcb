"""Where question files, split lists and images come from: published addresses, other addresses, local files and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.probe.looktwice.download import Downloader, Failed, NotThere, check_address, shown_address
from lmms_visual_heads.probe.looktwice.reading import SPLITS, Questions, read_json, read_split
from lmms_visual_heads.probe.looktwice.records import Record

SOURCES = {
    "vip-llava": "https://huggingface.co/datasets/mucai/ViP-LLaVA-Instruct/resolve/"
    "c885fc27808a7e91382619ff26ab438e7a1cfd3b/pointQA_twice_test.json",
    "pointqa": "https://raw.githubusercontent.com/princetonvisualai/pointingqa/main/Datasets/LookTwiceQA/"
    "looktwiceqa_dataset.json",
}
"""Published question files by short name; `vip-llava` is the one that the study used, at its commit."""

IMAGE_URL = "https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg"
IMAGE_FOLDERS = ("VG_100K_2", "VG_100K")
LARGEST_QUESTIONS = 1_000_000_000
SOURCE_FOLDER = "source"
"""Folder inside the data folder for fetched question files and lists."""
_PLACES = ("", *IMAGE_FOLDERS, *(f"vg/{folder}" for folder in IMAGE_FOLDERS), "images")
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where images come from: a local folder, a server, or first the one and then the other."""

    images: Path | None
    image_url: str | None

    def __post_init__(self) -> None:
        if self.images is not None and not self.images.is_dir():
            raise VisualHeadsError(f"--images needs a folder with Visual Genome images; {self.images} is none.")
        if self.image_url is None:
            return
        try:
            example = self.image_url.format(folder=IMAGE_FOLDERS[0], image_id="1")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise VisualHeadsError(
                "--image-url may have the places {folder} and {image_id} and no others; "
                f"{shown_address(self.image_url)!r} came."
            ) from error
        if "{image_id}" not in self.image_url:
            raise VisualHeadsError(
                f"--image-url needs the place {{image_id}}; {shown_address(self.image_url)!r} has none."
            )
        check_address(example)

    def addresses(self, record: Record) -> list[str]:
        """The image's addresses, the folder that the question file names first."""
        if self.image_url is None:
            return []
        folders = sorted(IMAGE_FOLDERS, key=lambda folder: folder != record.folder)
        urls = [self.image_url.format(folder=folder, image_id=record.image_id) for folder in folders]
        return list(dict.fromkeys(urls))

    def local_file(self, record: Record) -> Path | None:
        """The image in the local folder, which holds the images themselves or the Visual Genome folders."""
        if self.images is None:
            return None
        for place in _PLACES:
            for ending in _ENDINGS:
                path = self.images / place / f"{record.image_id}{ending}"
                if path.is_file():
                    return path.resolve()
        return None


def is_address(name: str) -> bool:
    """Whether a question file is named by an address or a short name, and not by a path."""
    return "://" in SOURCES.get(name, name)


def local_or_fetched(name: str, folder: Path, downloader: Downloader) -> Path:
    """A file by path, short name or address; fetched ones are kept in `source/` of the folder and not fetched again.

    Raises
    ------
    VisualHeadsError
        If there is no such file, or it cannot be fetched whole.
    """
    url = SOURCES.get(name, name)
    if not is_address(name):
        if not Path(url).is_file():
            raise VisualHeadsError(
                f"A question file or list is a file, an address, or one of {', '.join(SOURCES)}; {name!r} is none of them."
            )
        return Path(url)
    check_address(url)
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    target = folder / SOURCE_FOLDER / f"{digest}-{Path(url.split('?')[0]).name or 'questions.json'}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            downloader.fetch([url], target, read_json, LARGEST_QUESTIONS)
        except (NotThere, Failed) as error:
            raise VisualHeadsError(
                f"The question file could not be fetched: {error}. Name a local copy of it with --questions FILE."
            ) from error
    return target


def _published_list(questions: str, split: str) -> str:
    """Path or address of a split's list, which lies beside the published question file."""
    return f"{SOURCES.get(questions, questions).rpartition('/')[0] or '.'}/looktwiceqa_{split}_imgs.json"


def split_ids(
    questions: Questions,
    names: Sequence[str],
    split: str | None,
    split_file: str | None,
    folder: Path,
    downloader: Downloader,
) -> tuple[str, frozenset[str] | None]:
    """Name of the split, and its image ids where the question file holds more than that split.

    Parameters
    ----------
    questions : Questions
        What was read.
    names : sequence of str
        What the question files were called.
    split, split_file : str, optional
        What was asked for: one of `SPLITS` or all; path or address of a list of image ids.
    folder, downloader : Path, Downloader
        Where fetched lists go, and how.

    Raises
    ------
    VisualHeadsError
        If the list is not there, or the file holds another split.
    """
    if split is not None and split not in (*SPLITS, "all"):
        raise VisualHeadsError(f"--split must be one of {', '.join(SPLITS)}, all; {split!r} came.")
    if split_file is not None:
        return split or "given", read_split(local_or_fetched(split_file, folder, downloader))
    if questions.by_image:
        place = _published_list(names[0], split or "test")
        if split == "all" or (split is None and not is_address(names[0]) and not Path(place).is_file()):
            return "all", None
        if not is_address(names[0]) and not Path(place).is_file():
            raise VisualHeadsError(
                f"--split {split} needs a list of its images; {place} is not there. Name it with --split-file."
            )
        return split or "test", read_split(local_or_fetched(place, folder, downloader))
    file_name = Path(SOURCES.get(names[0], names[0]).split("?")[0]).stem
    own = next((known for known in SPLITS if file_name.endswith(f"_{known}")), None)
    if own is not None and split not in (None, "all", own):
        raise VisualHeadsError(
            f"--split {split} came, but {shown_address(names[0])} holds the {own} split. Name the question file of {split}."
        )
    return own or split or "all", None
