"""How a user's mistake ends a run: in its one sentence, with exit status 1.

lmms-eval itself would print a traceback and exit with 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.lmms_eval_facts import started_by_command_line

_F = TypeVar("_F", bound=Callable[..., Any])


def in_one_sentence(method: _F) -> _F:
    """Turn a `VisualHeadsError` into the end of the command; in a Python program it stays an exception."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except VisualHeadsError as error:
            if started_by_command_line():
                raise SystemExit(f"visual-heads: {error}") from None
            raise

    return wrapped  # type: ignore[return-value]
