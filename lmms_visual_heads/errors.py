"""The one exception that a user's mistake ends in. Its text is one sentence: what is required, what came, what to do next."""

from __future__ import annotations


class VisualHeadsError(Exception):
    """A mistake that the user can mend; the command line prints its text without a traceback."""
