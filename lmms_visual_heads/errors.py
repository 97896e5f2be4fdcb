"""The one exception that a user's mistake ends in, and how other errors are quoted in it.

Its text is one sentence: what is required, what came, what to do next.
"""

from __future__ import annotations


class VisualHeadsError(Exception):
    """A mistake that the user can mend; the command line prints its text without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of an error, without its full stop, for quoting inside a sentence; its class where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")


class VisualHeadsWarning(UserWarning):
    """Something in a user's file that was put right; the command line prints its text as a note."""
