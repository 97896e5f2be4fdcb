"""Several questions about one image in one sequence, each blind to the others.

A packed row is: begin token, "USER:", the image embeddings, then Q turns of T tokens each. A turn sees the prefix and
itself and counts its positions from the end of the prefix, so it computes what it would compute alone.
Shapes: N scenes, P prefix length, Q turns, T tokens per turn, D hidden size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from transformers import LlavaProcessor

from lab.zoo.lessons import EncodedTurns
from lab.zoo.model import SmallLlava
from lab.zoo.vocabulary import BLANK, END


@cache
def block_mask(prefix: int, turns: int, length: int, device: torch.device) -> Tensor:
    """Additive float32 mask [1, 1, K, K], K = prefix + turns * length: 0 where a position may look, else the lowest float."""
    total = prefix + turns * length
    position = torch.arange(total)
    turn = torch.where(position < prefix, -1, (position - prefix) // length)
    visible = (position[None, :] <= position[:, None]) & ((turn[None, :] == -1) | (turn[None, :] == turn[:, None]))
    mask = torch.zeros(total, total).masked_fill(~visible, torch.finfo(torch.float32).min)
    return mask[None, None].to(device)


@cache
def _positions(prefix: int, turns: int, length: int, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(prefix), torch.arange(prefix, prefix + length).repeat(turns)])[None].to(device)


def image_embeddings(model: SmallLlava, features: Tensor) -> Tensor:
    """The image as the language model sees it, [N, visual tokens, D].

    `features` [N, patches, tower_hidden] are the tower's; [N, 5, patches, tower_hidden] those of a base view and 2 x 2 tiles, whose
    rows are joined and end in a newline each, behind the base view (LLaVA-NeXT, for a square picture).
    """
    projected = model.model.multi_modal_projector(features)
    if features.dim() == 3:
        return projected
    n, _, patches, width = projected.shape
    side = int(patches**0.5)
    tiles = projected[:, 1:].unflatten(1, (2, 2)).unflatten(3, (side, side))
    grid = tiles.permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * side, 2 * side, width)
    newline = model.model.image_newline.expand(n, 2 * side, 1, width)
    return torch.cat([projected[:, 0], torch.cat([grid, newline], dim=2).flatten(1, 2)], dim=1)


def packed_states(model: SmallLlava, features: Tensor, ids: Tensor, processor: LlavaProcessor) -> tuple[Tensor, int]:
    """Last hidden states [N, P + Q * T, D] of packed rows, and P.

    `features` float32 as for `image_embeddings`; `ids` int64 [N, Q, T].
    """
    n, turns, length = ids.shape
    image = image_embeddings(model, features)
    embed = model.get_input_embeddings()
    user = processor.tokenizer.convert_tokens_to_ids("user:")
    opening = embed(ids.new_tensor([processor.tokenizer.bos_token_id, user])).expand(n, -1, -1)
    embeddings = torch.cat([opening, image, embed(ids.reshape(n, turns * length))], dim=1)
    prefix = embeddings.shape[1] - turns * length
    states = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=block_mask(prefix, turns, length, ids.device),
        position_ids=_positions(prefix, turns, length, ids.device),
        use_cache=False,
    ).last_hidden_state
    return states, prefix


def answer_logits(
    model: SmallLlava, features: Tensor, turns: EncodedTurns, rows: Tensor, processor: LlavaProcessor
) -> Tensor:
    """Logits [N, Q, 3, vocabulary] of the three generated tokens (blank, word, end) for the turns of `rows`."""
    ids, start = turns.ids[rows], turns.start[rows]
    n, n_turns, length = ids.shape
    states, prefix = packed_states(model, features, ids, processor)
    base = prefix + torch.arange(n_turns, device=ids.device)[None] * length + start
    where = (
        (base[..., None] + torch.arange(3, device=ids.device))
        .reshape(n, n_turns * 3, 1)
        .expand(-1, -1, states.shape[-1])
    )
    return model.lm_head(states.gather(1, where)).unflatten(1, (n_turns, 3))


def answer_targets(turns: EncodedTurns, rows: Tensor, processor: LlavaProcessor) -> Tensor:
    """Token ids [N, Q, 3] that the logits should predict."""
    answer = turns.answer[rows]
    blank, end = (torch.full_like(answer, processor.tokenizer.convert_tokens_to_ids(token)) for token in (BLANK, END))
    return torch.stack([blank, answer, end], dim=-1)
