"""Is a model's answer the document's answer? Digits and number words, yes and no, colours, option letters.

Only the answer's first line counts: a model that goes on to explain itself is not punished for it.
"""

from __future__ import annotations

import re

NOT_ANSWERED = "[not answered]"
"""Stands where lmms-eval wants a text for a document that was not answered; such a document is never scored."""
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_WORD = re.compile(r"[a-z]+|\d+")


def is_correct(answer: str, target: str) -> bool:
    """Whether `answer` gives `target`.

    A number is found as digits or as a word anywhere in the first line ("There are three." gives 3) as long as it is the
    only number there. Other targets must be the first word of the answer ("Yes, it is." gives yes; "B. top right" gives B).
    """
    lines = answer.strip().splitlines()
    if not lines:
        return False
    words = _WORD.findall(lines[0].lower())
    wanted = target.strip().lower()
    if wanted.isdigit():
        found = {
            str(int(word)) if word.isdigit() else _NUMBERS[word] for word in words if word.isdigit() or word in _NUMBERS
        }
        if not found and {"no", "none"} & set(words):
            found = {"0"}
        return found == {str(int(wanted))}
    return bool(words) and words[0] == wanted
