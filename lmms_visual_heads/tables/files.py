"""Files of tables: finding them, writing them so that a reader never sees half a file. Never looks inside one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lmms_visual_heads.errors import VisualHeadsError

PART_SUFFIX = ".part"
"""Ending of a file that is being written; left behind by a run that was killed."""

UNFINISHED_SUFFIX = ".unfinished"
"""Ending of a file whose run failed: complete Parquet with the rows measured until then, not read by default."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Files found by `list_tables`, and the unfinished ones that were passed over."""

    files: tuple[Path, ...]
    unfinished: tuple[Path, ...]


def list_tables(paths: Iterable[str | os.PathLike[str]], suffix: str) -> Listing:
    """Files ending in `suffix` among `paths`; folders are searched recursively, each file stands once.

    Parameters
    ----------
    paths : iterable of path
        Files (any name) and folders.
    suffix : str
        Ending of finished tables, such as ".heads.parquet".

    Raises
    ------
    VisualHeadsError
        A path that does not exist, is a part of an unfinished run, or a folder without any finished table.
    """
    files: dict[Path, None] = {}
    unfinished: dict[Path, None] = {}
    for entry in paths:
        path = Path(entry)
        if path.is_dir():
            finished = sorted(p for p in path.rglob(f"*{suffix}") if p.is_file())
            parts = sorted(p for ending in (PART_SUFFIX, UNFINISHED_SUFFIX) for p in path.rglob(f"*{suffix}*{ending}"))
            if not finished:
                tail = f", only {len(parts)} of unfinished runs" if parts else ""
                raise VisualHeadsError(
                    f"A folder with at least one *{suffix} file is required; {path} has none{tail}. "
                    "Run the probe first, or name the folder that its heads= argument wrote to."
                )
            files.update(dict.fromkeys(finished))
            unfinished.update(dict.fromkeys(parts))
        elif not path.exists():
            raise VisualHeadsError(
                f"No such file or folder: {path}. Name a *{suffix} file or the folder that holds it."
            )
        elif path.name.endswith((PART_SUFFIX, UNFINISHED_SUFFIX)):
            raise VisualHeadsError(
                f"A finished table is required; {path} belongs to a run that did not finish. Run the probe again to "
                "the end."
            )
        else:
            files[path] = None
    return Listing(tuple(files), tuple(unfinished))


def find_files(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str], patterns: Sequence[str], what: str
) -> dict[Path, bool]:
    """Files that are named, and files of the `patterns` under the folders that are named: path -> whether it was named itself.

    Parameters
    ----------
    paths : path or iterable of paths
        Files (any name), and folders, which are searched recursively.
    patterns : sequence of str
        Names to look for in folders, such as "*_results.json".
    what : str
        What the user is to name, for the message.

    Raises
    ------
    VisualHeadsError
        A path that does not exist.
    """
    files: dict[Path, bool] = {}
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        if path.is_dir():
            for inside in sorted({candidate for pattern in patterns for candidate in path.rglob(pattern)}):
                files.setdefault(inside, False)
        elif path.exists():
            files[path] = True
        else:
            raise VisualHeadsError(f"No such file or folder: {path}. Name {what}, or their folder.")
    return files


def open_part(path: Path) -> tuple[IO[bytes], Path]:
    """Create `<path>.part` (numbered when another run holds that name) and open it for writing.

    Raises
    ------
    VisualHeadsError
        When the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            part = path.with_name(path.name + (f".{number}" if number > 1 else "") + PART_SUFFIX)
            try:
                return part.open("xb"), part
            except FileExistsError:
                continue
    except OSError as error:
        raise VisualHeadsError(f"A folder that can be written is required; {path.parent} cannot: {error}.") from error
    raise VisualHeadsError(f"Too many unfinished parts of {path}. Delete the *{PART_SUFFIX} files there.")


def finalise(part: Path, path: Path) -> Path:
    """Flush `part` to the disk and give it its final name in one step."""
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(part, path)
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Flush the folder's own entry, so that a rename survives a power cut (POSIX only)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a whole small file atomically.

    Raises
    ------
    VisualHeadsError
        When the file cannot be written; no half file is left.
    """
    target = Path(path)
    handle, part = open_part(target)
    try:
        with handle:
            handle.write(content)
        return finalise(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise VisualHeadsError(f"A file that can be written is required; {target} cannot: {error}.") from error
