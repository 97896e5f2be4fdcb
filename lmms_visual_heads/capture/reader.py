"""Watches the forward passes of one `generate` call: rows of one pass, the first logits, log-probabilities.

Two hooks on the top-level model, removed on exit. `generate` itself is called as with capture off; only the wanted
pass gets `output_attentions=True`. What is kept does not grow with the answer beyond one number per token.
Shapes: B batch, V vocabulary, L layers.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lmms_visual_heads.capture.late import holds_its_keys, let_wait
from lmms_visual_heads.capture.rows import settle


class ForwardReader:
    """Context manager around one `generate` call.

    Parameters
    ----------
    model : PreTrainedModel
        The top-level model that `generate` calls.
    row_pass : int or None
        Forward pass whose rows are read: 0 the prefill, 1 the first decode step; None reads no rows.

    Attributes
    ----------
    n_passes : int
        Forward passes seen so far.
    attentions : tuple of Tensor [B, H, 1, k], or None
        The wanted pass's rows, one per layer, once it has run.
    first_logits : list of Tensor [B, V] float32
        Raw next-token logits of passes 0 and 1.
    """

    def __init__(self, model: PreTrainedModel, row_pass: int | None) -> None:
        self.n_passes = 0
        self.attentions: tuple[Tensor, ...] | None = None
        self.first_logits: list[Tensor] = []
        self._model = model
        self._row_pass = row_pass
        self._last_logits: Tensor | None = None
        self._log_probabilities: list[Tensor] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> ForwardReader:
        self._hooks = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after, with_kwargs=True),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        let_wait(False)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def token_log_probabilities(self, tokens: Tensor) -> Tensor:
        """Log-probability of every generated token under the raw logits.

        Parameters
        ----------
        tokens : Tensor [B, T]
            The generated tokens, as `generate` returned them.

        Returns
        -------
        Tensor [B, T], float32
            Column t is exact for rows that had not ended before token t.
        """
        known = list(self._log_probabilities[: tokens.shape[1]])
        if len(known) == tokens.shape[1] - 1 and self._last_logits is not None:
            known.append(_log_probability(self._last_logits, tokens[:, -1]))
        if len(known) != tokens.shape[1]:
            raise AssertionError(f"{tokens.shape[1]} tokens were generated but {len(known)} were seen")
        return torch.stack(known, dim=1)

    def _before(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self._last_logits is not None:
            # The input of this pass ends with the token that was drawn from the last pass's logits.
            self._log_probabilities.append(_log_probability(self._last_logits, kwargs["input_ids"][:, -1]))
            self._last_logits = None
        wanted = self.n_passes == self._row_pass
        if wanted or kwargs.get("output_attentions"):
            kwargs = {**kwargs, "output_attentions": wanted}
        let_wait(wanted and holds_its_keys(kwargs.get("past_key_values")))
        return args, kwargs

    def _after(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.n_passes == self._row_pass:
            let_wait(False)
            # Late rows would hold this pass's keys as long as `generate` holds its output.
            output.attentions = self.attentions = settle(output.attentions)
        logits = output.logits[:, -1].float()
        if self.n_passes < 2:
            self.first_logits.append(logits)
        self._last_logits = logits
        self.n_passes += 1


def _log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B, V] raw logits and [B] tokens -> [B] log-probabilities."""
    chosen = logits.gather(1, tokens.to(logits.device)[:, None])[:, 0]
    return chosen - logits.logsumexp(dim=1)
