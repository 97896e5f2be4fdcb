"""The `--model_args` of `visual_heads_llava`: parsed, checked, named. Values stay strings until they are given a type here.

lmms-eval's own parser turns a revision like 0123456 or 12e4567 into a number; this one does not.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.schema import DEFAULT_QUERY, PROBE_TASKS, QUERIES

AUTOMATIC_BATCH = 64
"""Where `--batch_size auto` begins; a batch that does not fit is halved, and so are those after it."""


ON_ERROR = ("stop", "skip")
IMAGE_CONTROLS = ("swap", "blank")
KNOCKOUTS = ("all", "layers", "heads")
IMAGE_LIMIT, KNOCKOUT_LIMIT = 256, 64
"""Documents per task that the extra passes run on where control_limit does not say."""
SWITCHES = ("reuse_prefix", "answers")
"""Arguments that are true or false."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a run was asked to do; valid from birth."""

    pretrained: str
    model_name: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    conversation: str | None = None
    image_aspect: str | None = None
    model_base: str | None = None
    peft: str | None = None
    quantization: str | None = None
    device_map: str | None = None
    heads: str = "heads"
    query: str = DEFAULT_QUERY
    capture_tasks: str = "+".join(PROBE_TASKS)
    on_error: str = "stop"
    reuse_prefix: bool = True
    answers: bool = True
    image_control: str | None = None
    knockout: str | None = None
    control_tasks: str | None = None
    control_limit: str | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.query not in QUERIES:
            raise VisualHeadsError(
                f"query must be one of {', '.join(QUERIES)}; {self.query!r} came. Write query={QUERIES[0]}."
            )
        if self.on_error not in ON_ERROR:
            raise VisualHeadsError(f"on_error must be stop or skip; {self.on_error!r} came. Choose one of them.")
        if not self.answers and self.query != "last_prompt":
            raise VisualHeadsError(
                f"answers=false runs no decoding, so only query=last_prompt can be read; query={self.query} came. "
                "Write query=last_prompt,answers=false."
            )
        if self.batch_size < 1:
            raise VisualHeadsError(f"--batch_size must be at least 1; {self.batch_size} came.")
        _check_parts("image_control", self.image_control, IMAGE_CONTROLS)
        _check_parts("knockout", self.knockout, KNOCKOUTS)
        for name in ("control_tasks", "control_limit"):
            if getattr(self, name) is not None and not self.has_controls:
                raise VisualHeadsError(
                    f"{name} says where extra passes run, so it needs image_control= or knockout=; neither came. "
                    "Add one of them, or leave it out."
                )
        if self.has_controls and not self.answers:
            raise VisualHeadsError(
                "image_control and knockout compare distributions of the answer, so they need answers; answers=false came. "
                "Leave one or the other out."
            )
        limit = self.control_limit
        if limit not in (None, "all") and not (str(limit).isdecimal() and int(str(limit)) > 0):
            raise VisualHeadsError(
                f"control_limit must be a number of documents per task, at least 1, or all; {limit!r} came. "
                "Write control_limit=64."
            )

    @property
    def image_controls(self) -> tuple[str, ...]:
        """What is done to the image: some of `IMAGE_CONTROLS`, in that order."""
        return _parts(self.image_control, IMAGE_CONTROLS)

    @property
    def knockouts(self) -> tuple[str, ...]:
        """What is knocked out: some of `KNOCKOUTS`, in that order."""
        return _parts(self.knockout, KNOCKOUTS)

    @property
    def has_controls(self) -> bool:
        """Whether there are extra passes."""
        return bool(self.image_control or self.knockout)

    @property
    def control_facts(self) -> tuple[str, ...]:
        """What of the extra passes tells one run from another; nothing where there are none."""
        names = ("image_control", "knockout", "control_tasks", "control_limit")
        return tuple(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None)

    def captures(self, task: str) -> bool:
        """Whether the heads are read on `task`."""
        return any(fnmatchcase(task, pattern) for pattern in self.capture_tasks.split("+"))

    def controls(self, task: str) -> bool:
        """Whether extra passes run on documents of `task`."""
        patterns = self.capture_tasks if self.control_tasks is None else self.control_tasks
        return self.has_controls and any(fnmatchcase(task, pattern) for pattern in patterns.split("+"))

    def limit(self, default: int) -> int | None:
        """Documents per task that extra passes run on; None means all."""
        if self.control_limit is None:
            return default
        return None if self.control_limit == "all" else int(self.control_limit)

    def check_output_folder(self) -> Path:
        """The folder for the tables, made if needed; found unwritable now rather than after the run."""
        folder = Path(self.heads)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise VisualHeadsError(
                f"heads= must name a folder that can be written; {str(folder)!r} cannot ({error.strerror}). "
                "Name another with heads=DIR in --model_args."
            ) from None
        return folder


def _parts(value: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    parts = (value or "").split("+")
    return tuple(name for name in known if name in parts)


def _check_parts(name: str, value: str | None, known: tuple[str, ...]) -> None:
    """Refuse a list joined by "+" that holds anything but `known`."""
    unknown = [part for part in value.split("+") if part not in known] if value is not None else []
    if unknown:
        raise VisualHeadsError(
            f"{name} takes {', '.join(known)}, joined by '+'; {unknown[0]!r} came. Write {name}={'+'.join(known)}."
        )


def parse(text: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary of strings."""
    parsed: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, separator, value = part.partition("=")
        if not separator:
            raise VisualHeadsError(
                f"--model_args takes name=value pairs separated by commas; {part!r} has no '='. "
                "Lists within a value are joined by '+': capture_tasks=vhead_super+pope."
            )
        parsed[name.strip()] = value.strip()
    return parsed


def check(model_args: dict[str, Any], model_id: str = "visual_heads_llava") -> Arguments:
    """Typed arguments from what lmms-eval passes to the model `model_id`.

    Raises
    ------
    VisualHeadsError
        For an unknown name, a missing `pretrained`, or a value of the wrong kind.
    """
    known = {field.name for field in fields(Arguments)}
    model_args = {name: value for name, value in model_args.items() if value is not None and name != "max_batch_size"}
    unknown = sorted(set(model_args) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise VisualHeadsError(
            f"{model_id} does not know the argument {unknown[0]!r}; it takes {', '.join(sorted(known - {'batch_size'}))} "
            f"(batch_size comes from --batch_size).{hint}"
        )
    if not model_args.get("pretrained"):
        raise VisualHeadsError(f"{model_id} needs a checkpoint: --model_args pretrained=FOLDER_OR_HUB_ID.")
    size = model_args.pop("batch_size", 1)
    try:
        batch_size = AUTOMATIC_BATCH if size == "auto" else int(size)
    except ValueError:
        raise VisualHeadsError(
            f"--batch_size must be a whole number or auto; {size!r} came. Name one, for example --batch_size 8."
        ) from None
    typed: dict[str, Any] = {
        name: _switch(name, value) if name in SWITCHES else str(value) for name, value in model_args.items()
    }
    return Arguments(**typed, batch_size=batch_size)


def _switch(name: str, value: Any) -> bool:
    """True or false from what came.

    Raises
    ------
    VisualHeadsError
        For anything else.
    """
    word = str(value).strip().lower()
    if word not in ("true", "false"):
        raise VisualHeadsError(f"{name} must be true or false; {value!r} came. Write {name}=false to switch it off.")
    return word == "true"
