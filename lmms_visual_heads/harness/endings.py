"""How a run ends early: a user's mistake in its one sentence, with exit status 1; a signal as Ctrl-C does.

lmms-eval itself would print a traceback and exit with 0; a signal would end the process where it stands.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

from lmms_visual_heads.errors import VisualHeadsError
from lmms_visual_heads.harness.lmms_eval_facts import started_by_command_line

_F = TypeVar("_F", bound=Callable[..., Any])

SIGNALS = ("SIGTERM", "SIGHUP")
"""What clusters send before they take a machine away, and terminals when they close."""


class Stopped(SystemExit):
    """The end of a process that was asked to end by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self._name = signal.Signals(number).name

    def __str__(self) -> str:
        return f"{self._name} came"


@contextmanager
def signals_end_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Stopped` inside, so that what was measured is written; a handler of somebody else stays."""
    ours = [number for name in SIGNALS if (number := getattr(signal, name, None)) is not None]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    ours = [number for number in ours if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


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
