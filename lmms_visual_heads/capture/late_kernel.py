"""The Triton kernel of `late.scores_together`. Imported on first use: Triton comes with torch only where there is a GPU."""

# No `from __future__ import annotations`: Triton reads the annotations.

import triton
import triton.language as tl


@triton.jit
def scores_kernel(
    table,
    scores,
    scaling,
    n_layers,
    n_batch,
    n_key_heads,
    n_keys,
    query_of_batch,
    query_of_head,
    key_of_batch,
    key_of_head,
    key_of_position,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """One program: `BLOCK` keys of one key head in one layer, against the `GROUP` query heads that share it.

    `table` holds the addresses of L queries [B, H, 1, D], then of L keys [B, H_kv, K, D]; `scores` is [L, B, H, K] float32.
    """
    one = tl.program_id(0).to(tl.int64)
    head = one % n_key_heads
    row = (one // n_key_heads) % n_batch
    layer = one // (n_key_heads * n_batch)
    query = tl.load(table + layer).to(tl.pointer_type(DTYPE))
    key = tl.load(table + n_layers + layer).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        query = tl.multiple_of(query, 16)
        key = tl.multiple_of(key, 16)
    positions = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.arange(0, PADDED)
    inside = (positions < n_keys)[:, None] & (numbers < WIDTH)[None, :]
    start = key + row * key_of_batch + head * key_of_head
    keys = tl.load(start + positions[:, None] * key_of_position + numbers[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    for member in tl.static_range(GROUP):
        query_head = head * GROUP + member
        place = query + row * query_of_batch + query_head * query_of_head
        one_query = tl.load(place + numbers, mask=numbers < WIDTH, other=0.0).to(tl.float32)
        products = tl.sum(keys * one_query[None, :], axis=1) * scaling
        out = scores + ((layer * n_batch + row) * n_key_heads * GROUP + query_head) * n_keys
        tl.store(out + positions, products, mask=positions < n_keys)
