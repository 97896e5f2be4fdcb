"""Fetching one file at a time from servers that fail, stall, cut off and lie. A file gets its name only when it is whole:
complete by its announced length and accepted by the caller's check; until then it ends in `.part`."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from lmms_visual_heads.errors import VisualHeadsError

PART_SUFFIX = ".part"
_NOT_THERE = frozenset({404, 410})
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429, *range(500, 600)})
_LONGEST_PAUSE = 60.0

Facts = TypeVar("Facts")


class NotThere(Exception):
    """The server says at every address that it does not have the file (404, 410)."""


class Failed(Exception):
    """The file could not be fetched; another run may succeed. `answered`: whether a server answered at all."""

    def __init__(self, text: str, *, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class _TryAgain(Exception):
    """This attempt failed in a way that may pass. `pause`: seconds that the server asked to wait."""

    def __init__(self, text: str, *, answered: bool = True, pause: float = 0.0) -> None:
        super().__init__(text)
        self.answered = answered
        self.pause = pause


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try.

    Attributes
    ----------
    retries : int
        Further attempts after a failed one, for each address.
    stall_seconds : float
        Longest wait for the connection and for the next bytes.
    file_seconds : float
        Longest time for one attempt at one file.
    pause_seconds : float
        Pause before the first further attempt; doubled each time, at most 60 s, and shortened by up to half at random.
    """

    retries: int = 4
    stall_seconds: float = 20.0
    file_seconds: float = 300.0
    pause_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.retries < 0 or min(self.stall_seconds, self.file_seconds) <= 0 or self.pause_seconds < 0:
            raise VisualHeadsError(f"Retries and times must not be negative and time limits not zero; {self} came.")


def check_address(url: str) -> str:
    """The address itself.

    Raises
    ------
    VisualHeadsError
        If it is not an http or https address.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise VisualHeadsError(
            f"An address must begin with http:// or https:// and name a server; {shown_address(url)!r} came."
        )
    return url


def shown_address(url: str) -> str:
    """The address as it may be printed and kept: a name and password in it stand as `***`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    _, at, server = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"***@{server}").geturl() if at else url


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_PAUSE) if text.isdecimal() else 0.0


def _announced_length(response: httpx.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


class Downloader:
    """Fetches files, one after the other, over kept connections. Use it in a `with` block.

    Parameters
    ----------
    patience : Patience
        How long to try.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._connections: httpx.Client | None = None

    @property
    def _client(self) -> httpx.Client:
        """Made at the first fetch: a run that needs no network does not read its settings."""
        if self._connections is None:
            try:
                self._connections = httpx.Client(
                    timeout=httpx.Timeout(self._patience.stall_seconds),
                    follow_redirects=True,
                    max_redirects=5,
                    headers={"User-Agent": "lmms-visual-heads", "Accept-Encoding": "identity"},
                )
            except (ImportError, OSError, ValueError) as error:
                raise VisualHeadsError(
                    f"The network settings of this environment cannot be used: {error}. Check the proxy and certificate variables."
                ) from error
        return self._connections

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connections is not None:
            self._connections.close()

    def fetch(self, urls: Sequence[str], target: Path, check: Callable[[Path], Facts], largest: int) -> Facts:
        """Bring a file from the first of several addresses that has it.

        Parameters
        ----------
        urls : sequence of str
            Addresses to try in turn; the next one is tried when the last one has no such file, or cannot be used.
        target : Path
            Its name once it is whole.
        check : callable
            Reads the fetched file under its temporary name; a `VisualHeadsError` counts as a failed attempt.
        largest : int
            Bytes after which the attempt is given up.

        Returns
        -------
        object
            What `check` returned.

        Raises
        ------
        NotThere
            If no address has the file.
        Failed
            If an address could not be used in all attempts.
        VisualHeadsError
            If the file cannot be written.
        """
        failures: list[Failed] = []
        for url in urls:
            try:
                return self._from_one(url, target, check, largest)
            except NotThere:
                continue
            except Failed as failure:
                if not failure.answered:
                    raise
                failures.append(failure)
        if failures:
            raise failures[0]
        raise NotThere(f"not on the server ({', '.join(map(shown_address, urls))})")

    def _from_one(self, url: str, target: Path, check: Callable[[Path], Facts], largest: int) -> Facts:
        for attempt in range(self._patience.retries + 1):
            try:
                return self._attempt(url, target, check, largest)
            except _TryAgain as problem:
                if attempt == self._patience.retries:
                    times = f"{attempt + 1} attempts, the last one: " if attempt else ""
                    raise Failed(f"{shown_address(url)}: {times}{problem}", answered=problem.answered) from problem
                pause = min(self._patience.pause_seconds * 2**attempt, _LONGEST_PAUSE)
                time.sleep(max(problem.pause, pause * random.uniform(0.5, 1.0)))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, url: str, target: Path, check: Callable[[Path], Facts], largest: int) -> Facts:
        part = target.with_name(target.name + PART_SUFFIX)
        try:
            with self._client.stream("GET", url) as response:
                self._judge_status(response, url)
                self._receive(response, part, largest)
            try:
                facts = check(part)
            except VisualHeadsError as error:
                raise _TryAgain(str(error).rstrip(".")) from error
            os.replace(part, target)
            return facts
        except httpx.TimeoutException as error:
            text = f"the server sent nothing for {self._patience.stall_seconds:g} s"
            raise _TryAgain(text, answered=not isinstance(error, httpx.ConnectTimeout)) from error
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise _TryAgain(f"no connection ({error})", answered=False) from error
        except (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise Failed(
                f"{shown_address(url)}: {str(error).replace(url, shown_address(url))}", answered=True
            ) from error
        except httpx.HTTPError as error:
            raise _TryAgain(f"the transfer broke off ({error})") from error
        except OSError as error:
            raise VisualHeadsError(f"A folder that can be written is required; {target} cannot: {error}.") from error
        finally:
            part.unlink(missing_ok=True)

    def _judge_status(self, response: httpx.Response, url: str) -> None:
        status = response.status_code
        if status in _NOT_THERE:
            raise NotThere(shown_address(url))
        if status in _WORTH_ANOTHER_TRY:
            raise _TryAgain(f"the server answered {status}", pause=_retry_after(response))
        if status != 200:
            raise Failed(f"{shown_address(url)}: the server answered {status}", answered=True)

    def _receive(self, response: httpx.Response, part: Path, largest: int) -> None:
        announced = _announced_length(response)
        if announced is not None and announced > largest:
            raise _TryAgain(f"the server announced {announced:,} bytes; at most {largest:,} are accepted")
        started, written = time.monotonic(), 0
        with part.open("wb") as handle:
            for chunk in response.iter_bytes():
                written += len(chunk)
                if written > largest:
                    raise _TryAgain(f"more than {largest:,} bytes came")
                if time.monotonic() - started > self._patience.file_seconds:
                    raise _TryAgain(f"the file took longer than {self._patience.file_seconds:g} s")
                handle.write(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        if announced is not None and response.num_bytes_downloaded != announced:
            raise _TryAgain(f"{response.num_bytes_downloaded:,} of {announced:,} bytes came")
