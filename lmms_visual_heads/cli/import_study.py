"""`visual-heads import-study`: the study's published statistics -> head profiles that a predictor fitted on the probe refuses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmms_visual_heads.cli.printing import note, say

if TYPE_CHECKING:
    from lmms_visual_heads.checkpoints.published_heads import StudySplit
    from lmms_visual_heads.features import HeadProfiles


def import_study(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the data set jing-bi/visual-head: <model>/<split>/*.pt.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Head profiles: FILE.profiles.parquet.")],
) -> None:
    """Turn the study's published statistics into head profiles.

    Image attention and region attention become columns. The study's concentration does not, because its formula is not
    known: it goes to FILE.concentration.csv. The tasks are named study_<split>, so a predictor that was fitted on the
    probe refuses these heads. A file that cannot be used is named and left out.

    Examples:

        visual-heads import-study ./visual-head --out study.profiles.parquet

        visual-heads import-study /data/visual-head --out profiles/study.profiles.parquet
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lmms_visual_heads.checkpoints.published_heads import read_study
    from lmms_visual_heads.errors import VisualHeadsError
    from lmms_visual_heads.features.profiles import PROFILES_SUFFIX, write_profiles
    from lmms_visual_heads.tables.files import write_bytes

    if not out.name.endswith(PROFILES_SUFFIX) or out.name == PROFILES_SUFFIX:
        raise VisualHeadsError(
            f"A file of head profiles ends in {PROFILES_SUFFIX}; --out {out} came. Choose such a name, for example "
            f"study{PROFILES_SUFFIX}."
        )
    columns = (TextColumn("splits"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("splits", total=None)
        splits, notes = read_study(folder, lambda done, total: bar.update(task, completed=done, total=total))
    profiles = study_profiles(splits, notes)
    for left_out in profiles.notes:
        note(f"left out: {left_out}")
    write_profiles(profiles, out)
    say(
        f"{out}: {len(profiles.models)} models, {len(splits)} splits; a predictor that was fitted on the probe refuses them."
    )
    theirs = out.with_name(out.name.removesuffix(PROFILES_SUFFIX) + ".concentration.csv")
    table = _concentrations(splits)
    if table:
        write_bytes(theirs, table.encode())
        say(f"{theirs}: the study's own concentration, not to be read as ours.")


def study_profiles(splits: list[StudySplit], notes: tuple[str, ...] = ()) -> HeadProfiles:
    """Head profiles of the study's statistics, which a predictor fitted on the probe refuses.

    Parameters
    ----------
    splits : list of StudySplit
    notes : tuple of str
        Kept with the profiles.

    Returns
    -------
    HeadProfiles
        Tasks `study_<split>` with the fingerprint `study:<split>`; only W and the region attention, all else missing.
    """
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from lmms_visual_heads.features import HeadProfiles
    from lmms_visual_heads.schema import PROFILE_COLUMNS

    types = {c.name: c.type.to_pandas_dtype() for c in PROFILE_COLUMNS if not pa.types.is_string(c.type)}
    frames = []
    documents: dict[str, dict[str, Any]] = {}
    for one in splits:
        layer, head = (index.ravel() for index in np.indices(one.image_attention.shape))
        values: dict[str, Any] = {name: np.nan for name in types}
        region = np.nan if one.region_attention is None else one.region_attention.ravel()
        values |= {
            "model": one.model,
            "task": f"study_{one.split}",
            "layer": layer,
            "head": head,
            "image_attention": one.image_attention.ravel(),
            "region_attention": region,
            "n_documents": one.n_documents.ravel(),
        }
        frames.append(pd.DataFrame(values)[[c.name for c in PROFILE_COLUMNS]].astype(types))
        document = documents.setdefault(one.model, _metadata(one))
        document["tasks"][f"study_{one.split}"] = {
            "fingerprint": f"study:{one.split}",
            "n_documents": int(one.n_documents.max()),
        }
    return HeadProfiles(pd.concat(frames, ignore_index=True), documents, notes)


def _metadata(one: StudySplit) -> dict[str, Any]:
    """What is known of a model's measurement; numeric type and image processor are not."""
    from lmms_visual_heads.checkpoints.known_models import find_known
    from lmms_visual_heads.checkpoints.published_heads import REPOSITORY
    from lmms_visual_heads.schema import SCHEMA_VERSION

    known = find_known(one.model)
    layers, heads = one.image_attention.shape
    repository = None if known is None else known.original_repository
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": one.model, "layers": layers, "heads": heads, "original_repository": repository},
        "query": "first_generated",
        "world": "study",
        "source": REPOSITORY,
        "tasks": {},
    }


def _concentrations(splits: list[StudySplit]) -> str:
    """CSV of the study's own concentration, one line per head; empty where no split has it."""
    import csv
    import io
    import math

    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(("model", "split", "layer", "head", "study_concentration"))
    present = False
    for one in splits:
        if one.concentration is None:
            continue
        present = True
        for layer, row in enumerate(one.concentration.tolist()):
            for head, value in enumerate(row):
                writer.writerow((one.model, one.split, layer, head, "" if math.isnan(value) else f"{value:.7g}"))
    return written.getvalue() if present else ""
