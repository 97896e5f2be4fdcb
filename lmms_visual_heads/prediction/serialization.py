"""A fitted predictor as one file: a zip of JSON and skops, no pickle. Loading executes nothing that stands in the file.

`manifest.json` (format, schema version, SHA-256 of the others), `predictor.json` (world, lineages, evaluation, residuals),
`estimators.skops` (fitted estimators; only the types in `TRUSTED_TYPES` and skops' own list are ever built).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.prediction.calibration import ConfidenceMap
from lmms_visual_heads.prediction.compatibility import World
from lmms_visual_heads.prediction.conformal import LeftOutErrors
from lmms_visual_heads.prediction.evaluation import BenchmarkModel
from lmms_visual_heads.prediction.fitted import FittedPredictor
from lmms_visual_heads.prediction.methods import PROBE_HEADS, method_named
from lmms_visual_heads.prediction.model_selection import FittedMethod, Rows, methods_frame, reference_of
from lmms_visual_heads.prediction.references import Votes
from lmms_visual_heads.prediction.regressors.extra_trees import TreesOfBenchmark
from lmms_visual_heads.tables.files import write_bytes


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Make `import torch` fail for a moment, as if it were not installed, unless it is loaded already."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


# skops imports every module of scikit-learn, one of which imports torch for nothing that is used here: two seconds.
with _torch_hidden():
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

FORMAT = "lmms_visual_heads.predictor"
PREDICTOR_VERSION = 3
"""Version of what `save_predictor` writes; newer files are refused by name, older ones are read.

1: one method, the heads on the probe. 2: several methods, votes, confidence maps. 3: as 2, classes lie in `prediction.regressors`.

Raise it when a file's content changes its meaning, or when a class in it moves: a program of before could not read it, and must
say so. Then (a) name the new version above; (b) let `_build` turn what the version before wrote into what is read now, and put the
old path of a class that moved into `MOVED`; (c) put a file that the version before wrote, with what it predicted, into
tests/samples; (d) test that it still predicts the same (tests/prediction/test_saved_versions.py).
"""

MOVED = {
    "lmms_visual_heads.prediction.estimators_pooled": "lmms_visual_heads.prediction.regressors.pooled_ridge",
    "lmms_visual_heads.prediction.estimators_process": "lmms_visual_heads.prediction.regressors.gaussian_process",
    "lmms_visual_heads.prediction.estimators_trees": "lmms_visual_heads.prediction.regressors.extra_trees",
    "lmms_visual_heads.prediction.pooled_forest": "lmms_visual_heads.prediction.regressors.extra_trees",
    "lmms_visual_heads.prediction.ridge": "lmms_visual_heads.prediction.regressors.ridge",
    "lmms_visual_heads.prediction.tree_arrays": "lmms_visual_heads.prediction.regressors.tree_arrays",
}
"""Where files of earlier versions say that a class lies -> where it lies now."""

TRUSTED_TYPES = (
    "lmms_visual_heads.prediction.regressors.pooled_ridge.OneBenchmark",
    "lmms_visual_heads.prediction.regressors.pooled_ridge.PooledBenchmarks",
    "lmms_visual_heads.prediction.regressors.gaussian_process.LineageProcess",
    "lmms_visual_heads.prediction.regressors.extra_trees.PooledTrees",
    "lmms_visual_heads.prediction.regressors.extra_trees.TreesOfBenchmark",
    "lmms_visual_heads.prediction.regressors.extra_trees.PooledForest",
    "lmms_visual_heads.prediction.regressors.ridge.LineageRidge",
    "lmms_visual_heads.prediction.regressors.tree_arrays.TreeArrays",
    "sklearn.gaussian_process.kernels.ConstantKernel",
    "sklearn.gaussian_process.kernels.Product",
    "sklearn.gaussian_process.kernels.RBF",
    "sklearn.gaussian_process.kernels.Sum",
)
"""Types that a predictor file may hold, beside those that skops trusts by itself."""

_MANIFEST, _PREDICTOR, _ESTIMATORS = "manifest.json", "predictor.json", "estimators.skops"
_LARGEST = 1 << 30
_FRAMES = ("features_", "evaluation_", "errors_", "benchmarks_", "methods_")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def save_predictor(record: FittedPredictor, parameters: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write what was fitted, and the predictor's parameters, atomically.

    Raises
    ------
    VisualHeadsError
        When the file cannot be written, or the estimator's types are not among the trusted ones.
    """
    estimators = {
        "template": parameters["estimator"],
        "models": {
            benchmark: {
                name: {"all": fitted.model.estimator, "left_out": fitted.model.left_out}
                for name, fitted in methods.items()
            }
            for benchmark, methods in record.models.items()
        },
    }
    skops_bytes = skops.io.dumps(estimators)
    untrusted = sorted(set(skops.io.get_untrusted_types(data=skops_bytes)) - set(TRUSTED_TYPES))
    if untrusted:
        raise VisualHeadsError(
            f"A predictor that is saved may hold scikit-learn estimators only; this one holds {', '.join(untrusted)}. "
            "Fit with another estimator."
        )
    content = {_PREDICTOR: _to_json(_document(record, parameters)), _ESTIMATORS: skops_bytes}
    manifest = {
        "format": FORMAT,
        "schema_version": PREDICTOR_VERSION,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {_MANIFEST: _to_json(manifest), **content}.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return write_bytes(path, buffer.getvalue())


def load_predictor(path: str | os.PathLike[str]) -> tuple[FittedPredictor, dict[str, Any]]:
    """Read a file written by `save_predictor`: what was fitted, and the predictor's parameters.

    Raises
    ------
    VisualHeadsError
        No such file, not a predictor, a newer version, or a file that was changed.
    """
    target = Path(path)
    if not target.is_file():
        raise VisualHeadsError(
            f"No such predictor: {target}. Write one with: visual-heads fit --heads PATH --scores scores.csv --out "
            f"{target.name}."
        )
    manifest, content = _open(target)
    version = manifest.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise _changed(target, "its version is not a number")
    if version > PREDICTOR_VERSION:
        raise VisualHeadsError(
            f"Predictors of version {PREDICTOR_VERSION} or older are required; {target} has version {version}. "
            "Upgrade with: pip install --upgrade lmms-visual-heads."
        )
    digests = manifest.get("sha256")
    for name in (_PREDICTOR, _ESTIMATORS):
        if (
            not isinstance(digests, dict)
            or name not in content
            or hashlib.sha256(content[name]).hexdigest() != digests.get(name)
        ):
            raise _changed(target, f"{name} does not fit its checksum")
    try:
        estimators = skops.io.loads(_moved(content[_ESTIMATORS]), trusted=list(TRUSTED_TYPES))
    except UntrustedTypesFoundException as error:
        raise _changed(target, f"it holds types that are not trusted ({error})") from error
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, zipfile.BadZipFile) as error:
        raise _changed(target, f"its estimators cannot be built ({type(error).__name__})") from error
    try:
        return _build(json.loads(content[_PREDICTOR]), estimators, version)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise _changed(target, f"its parts do not fit together ({type(error).__name__}: {error})") from error


def _moved(data: bytes) -> bytes:
    """Estimators of a file with the paths of today: the names in skops' schema are replaced, nothing else is touched."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts["schema.json"])

    def renamed(node: Any) -> Any:
        if isinstance(node, dict):
            moved = {key: renamed(value) for key, value in node.items()}
            if isinstance(moved.get("__module__"), str):
                moved["__module__"] = MOVED.get(moved["__module__"], moved["__module__"])
            return moved
        return [renamed(value) for value in node] if isinstance(node, list) else node

    parts["schema.json"] = json.dumps(renamed(schema)).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _document(record: FittedPredictor, parameters: Mapping[str, Any]) -> dict[str, Any]:
    world = record.world
    return {
        "parameters": {
            name: list(value) if isinstance(value, list | tuple) else value
            for name, value in parameters.items()
            if name != "estimator" and (name != "methods" or value is not None)
        },
        "world": {
            "query": world.query,
            "fingerprints": dict(world.fingerprints),
            "n_documents": dict(world.n_documents),
            "parameters": None if world.parameters is None else list(world.parameters),
            "dtypes": list(world.dtypes),
            "image_processors": list(world.image_processors),
        },
        "lineages": dict(record.lineages),
        "notes": list(record.notes),
        "models": {
            benchmark: {name: _method_document(fitted) for name, fitted in methods.items()}
            for benchmark, methods in record.models.items()
        },
        "maps": {
            name: {
                "knots": list(found.knots),
                "values": list(found.values),
                "slope": found.slope,
                "slope_std": found.slope_std,
                "n_models": found.n_models,
            }
            for name, found in record.maps.items()
        },
        "prompts": {
            "fingerprints": {name: list(found.items()) for name, found in record.prompt_fingerprints.items()},
            "counts": dict(record.prompt_counts),
        },
        "votes": {name: votes.document() for name, votes in record.votes.items()},
        "frames": {name: _frame_document(getattr(record, name.removesuffix("_"))) for name in _FRAMES},
    }


def _method_document(fitted: FittedMethod) -> dict[str, Any]:
    return {
        "baseline": fitted.model.baseline,
        "residuals": fitted.model.errors.residuals.tolist(),
        "lineages": [str(lineage) for lineage in fitted.model.errors.lineages],
        "models": list(fitted.models),
        "low": _numbers(fitted.low),
        "high": _numbers(fitted.high),
        "error": fitted.error,
        "baseline_error": fitted.baseline_error,
        "usual": fitted.usual,
    }


def _build(
    document: dict[str, Any], estimators: dict[str, Any], version: int
) -> tuple[FittedPredictor, dict[str, Any]]:
    parameters = {"estimator": estimators["template"], **document["parameters"]}
    parts = SimpleNamespace(level=float(parameters["level"]))
    world = document["world"]
    parts.world = World(
        query=world["query"],
        fingerprints=world["fingerprints"],
        n_documents=world["n_documents"],
        parameters=None if world["parameters"] is None else (world["parameters"][0], world["parameters"][1]),
        dtypes=tuple(world["dtypes"]),
        image_processors=tuple(world["image_processors"]),
    )
    parts.lineages = dict(document["lineages"])
    parts.notes = list(document["notes"])
    for name in _FRAMES:
        if name in document["frames"]:
            setattr(parts, name.removesuffix("_"), _frame(document["frames"][name]))
    if version == 1:
        document, estimators = _of_version_1(parts, document, estimators)
    parts.models = {
        benchmark: {name: _method(part, estimators["models"][benchmark][name]) for name, part in methods.items()}
        for benchmark, methods in document["models"].items()
    }
    if version == 1:
        parts.methods = methods_frame(parts.models)
    parts.maps = {
        name: ConfidenceMap(
            tuple(part["knots"]), tuple(part["values"]), part["slope"], part["slope_std"], part["n_models"]
        )
        for name, part in document["maps"].items()
    }
    parts.prompt_fingerprints = {
        name: {int(number): str(fingerprint) for number, fingerprint in found}
        for name, found in document["prompts"]["fingerprints"].items()
    }
    # Files of version 2 that are older than votes have none.
    parts.votes = {name: Votes.of_document(part) for name, part in document.get("votes", {}).items()}
    parts.prompt_counts = {name: float(count) for name, count in document["prompts"]["counts"].items()}
    parts.benchmarks = parts.benchmarks.astype({"mean": float, "between": float, "n_items": float})
    record = FittedPredictor(**vars(parts))
    _check(record)
    return record, parameters


def _method(part: dict[str, Any], estimators: dict[str, Any]) -> FittedMethod:
    errors = LeftOutErrors(np.array(part["residuals"], dtype=np.float64), np.array(part["lineages"], dtype=np.str_))
    model = BenchmarkModel(estimators["all"], dict(estimators["left_out"]), errors, float(part["baseline"]))
    low, high = (
        np.array([np.nan if v is None else v for v in part[name]], dtype=np.float64) for name in ("low", "high")
    )
    usual = part.get("usual")  # files from before have none
    return FittedMethod(
        model,
        tuple(part["models"]),
        low,
        high,
        float(part["error"]),
        float(part["baseline_error"]),
        None if usual is None else float(usual),
    )


def _of_version_1(
    parts: SimpleNamespace, document: dict[str, Any], estimators: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first version had the heads on the probe only; what is told of its benchmarks now stands in its evaluation."""
    low, high = (_numbers(values.to_numpy(dtype=float)) for values in (parts.features.min(), parts.features.max()))
    evaluation, errors = parts.evaluation, parts.errors.set_index("benchmark")
    parts.evaluation = evaluation.assign(method=PROBE_HEADS.name)
    models: dict[str, Any] = {}
    references = []
    for benchmark, part in document["models"].items():
        rows = evaluation[evaluation["benchmark"] == benchmark].sort_values("model")
        lineages, n = rows["lineage"].to_numpy(dtype=np.str_), len(rows)
        names = rows["model"].tolist() if lineages.tolist() == part["lineages"] else []
        own = {"models": names, "low": low, "high": high}
        own |= {name: float(errors.loc[benchmark, name]) for name in ("error", "baseline_error")}
        models[benchmark] = {PROBE_HEADS.name: {**part, **own}}
        unknown = np.full(n, np.nan)
        points = rows["actual"].to_numpy(dtype=float)
        references.append((benchmark, *reference_of(Rows(tuple(names), unknown[:, None], points, lineages, unknown))))
    told = pd.DataFrame(references, columns=["benchmark", "mean", "between", "n_items"])
    parts.benchmarks = parts.benchmarks.merge(told, on="benchmark", how="left")
    wrapped = {benchmark: {PROBE_HEADS.name: found} for benchmark, found in estimators["models"].items()}
    added = {"models": models, "maps": {}, "prompts": {"fingerprints": {}, "counts": {}}}
    return {**document, **added}, {**estimators, "models": wrapped}


def _check(record: FittedPredictor) -> None:
    """The parts belong together: every benchmark has its models, and every model takes the columns of its method."""
    if set(record.models) != set(record.benchmarks["benchmark"]) or set(record.errors["benchmark"]) != set(
        record.models
    ):
        raise ValueError("the benchmarks differ")
    stored = {name for methods in record.models.values() for name in methods}
    if (set(record.evaluation["method"]) | stored) - set(record.methods["method"]):
        raise ValueError("the methods differ")
    for methods in record.models.values():
        for name, fitted in methods.items():
            method_named(name)
            known = set(fitted.model.left_out)
            if isinstance(fitted.model.estimator, TreesOfBenchmark):
                fitted.model.estimator.pooled.check_trees()
            elif not set(fitted.model.errors.lineages) <= known:
                raise ValueError("the lineages differ")
            n_features = len(record.features.columns) if name == PROBE_HEADS.name else len(fitted.low)
            for estimator in (fitted.model.estimator, *fitted.model.left_out.values()):
                if len(fitted.low) != n_features or getattr(estimator, "n_features_in_", n_features) != n_features:
                    raise ValueError("the numbers of features differ")


def _numbers(values: Any) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def _frame_document(frame: pd.DataFrame) -> dict[str, Any]:
    named = frame.index.name is not None
    return {
        "index": [str(value) for value in frame.index] if named else None,
        "index_name": frame.index.name,
        "columns": {
            str(name): [None if isinstance(v, float) and math.isnan(v) else v for v in frame[name].tolist()]
            for name in frame.columns
        },
    }


def _frame(document: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(document["columns"])
    if document["index_name"] is not None:
        frame.index = pd.Index(document["index"], name=document["index_name"])
        frame = frame.astype(np.float64)
    return frame


def _to_json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=False, ensure_ascii=False, allow_nan=False, indent=1).encode()


def _open(target: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the other members; sizes are checked before anything is unpacked."""
    try:
        with zipfile.ZipFile(target) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > _LARGEST:
                raise _changed(target, "it is far too large")
            content = {member.filename: archive.read(member) for member in members}
        manifest = json.loads(content[_MANIFEST])
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise VisualHeadsError(
            f"A predictor written by visual-heads fit is required; {target} is none, or it is damaged. Copy it "
            "again, or fit again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise VisualHeadsError(
            f"A predictor written by visual-heads fit is required; {target} is another kind of file. Fit again."
        )
    return manifest, content


def _changed(target: Path, how: str) -> VisualHeadsError:
    return VisualHeadsError(
        f"The predictor {target} was changed after it was written: {how}. Copy it again, or fit again."
    )
