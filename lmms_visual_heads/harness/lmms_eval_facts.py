"""What lmms-eval does not tell a model, read from the calling frames: how it was started, and which requests a run has.

Every function here answers None or False where a later lmms-eval has changed; callers then do without.
"""

from __future__ import annotations

import sys
from typing import Any


def _caller_locals(function: str, module: str) -> dict[str, Any] | None:
    """Local variables of the innermost calling `function` of `module`, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__", "") in module.split("|"):
            return dict(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def started_by_command_line() -> bool:
    """Whether `lmms-eval` (or `python -m lmms_eval`) is what is running."""
    return _caller_locals("cli_evaluate_single", "lmms_eval.__main__|__main__") is not None


def requested_documents() -> set[tuple[str, int]] | None:
    """(task, doc_id) of every request of the running evaluation on this process, padding left out; None if unknown."""
    local = _caller_locals("evaluate", "lmms_eval.evaluator")
    requests = None if local is None else local.get("requests")
    if not isinstance(requests, dict):
        return None
    return {
        (request.task_name, int(request.doc_id))
        for kind in requests.values()
        for request in kind
        if not request.metadata.get("__padding_only__")
    }
