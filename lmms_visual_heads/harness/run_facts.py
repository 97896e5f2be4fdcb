"""What tells one run from another: fingerprints of weights and data, counts per task, versions of the packages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Document = tuple[str, int]

OWN_TASKS = ("vhead_", "scenes_", "suite_")
"""What the names of our own tasks begin with: their score leaves a document without an answer out."""

ROWLESS = {"n_without_image": "without an image", "n_several_images": "with several images"}
"""Why a document of a captured task has no rows: the metadata's name, and words for the summary."""
_PACKAGES = ("torch", "transformers", "tokenizers", "lmms_eval", "pillow", "numpy", "pyarrow")


def described(
    digests: Mapping[Document, bytes],
    rowless: Mapping[Document, str],
    skipped: Mapping[Document, str],
    costs: Mapping[str, Any],
    controlled: Mapping[str, Set[Document]],
) -> dict[str, Any]:
    """Per task: the data's fingerprint, the counts of documents, and what they cost.

    Parameters
    ----------
    digests, rowless, skipped : mapping of (task, doc_id)
        Digest of every document; why it has no rows; why it was left out.
    costs : mapping of str to mapping
        Per task, what goes under `cost`.
    controlled : mapping of str to set of (task, doc_id)
        Under the names of the counts, the documents of extra passes.
    """
    facts: dict[str, Any] = {}
    for task in sorted({task for task, _ in digests}):
        facts[task] = {
            "fingerprint": fingerprint({doc_id: digest for (of, doc_id), digest in digests.items() if of == task}),
            "n_documents": sum(of == task for of, _ in digests),
            **{why: sum(of == task and reason == why for (of, _), reason in rowless.items()) for why in ROWLESS},
        }
        left_out = sorted(doc_id for of, doc_id in skipped if of == task)
        if left_out:
            facts[task]["skipped"] = left_out
        if task in costs:
            facts[task]["cost"] = costs[task]
        for name, documents in controlled.items():
            number = sum(of == task for of, _ in documents)
            if number:
                facts[task][name] = number
    return facts


def fingerprint(digests: Mapping[int, bytes]) -> str:
    """Hash of a task's data, 32 hexadecimal digits: prompts and pixels of every document, in the order of their numbers."""
    total = hashlib.blake2b(digest_size=16)
    for doc_id in sorted(digests):
        total.update(f"{doc_id}:".encode() + digests[doc_id])
    return total.hexdigest()


def data_of(splits_of_tasks: Mapping[str, Any]) -> dict[str, str]:
    """Per task, what tells its data from other data without a look at the images.

    Parameters
    ----------
    splits_of_tasks : mapping of str to mapping
        Task -> split -> documents, as lmms-eval gives them to a model.

    Returns
    -------
    dict
        Numbers of documents; of our own tasks, whose documents hold no image, a hash of all of them, too.
    """
    facts_of_task = {}
    for task, splits in splits_of_tasks.items():
        facts = repr(
            sorted((str(name), len(documents)) for name, documents in splits.items() if hasattr(documents, "__len__"))
        )
        if task.startswith(OWN_TASKS):
            whole = hashlib.blake2b(digest_size=8)
            for name in sorted(splits):
                for document in splits[name]:
                    whole.update(json.dumps(document, sort_keys=True, default=str).encode())
            facts += whole.hexdigest()
        facts_of_task[task] = facts
    return facts_of_task


def weights_fingerprint(pretrained: str) -> str:
    """Names, sizes and times of a local checkpoint's files; nothing for a hub id, whose commit tells."""
    folder = Path(pretrained).expanduser()
    if not folder.is_dir():
        return ""
    facts = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that can move a number."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
