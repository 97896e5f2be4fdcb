"""Checkpoints as models whose heads can be read: loading, prompts, answers, scores of continuations, knock-outs.

| module | holds |
|---|---|
| loading | `load_model`: a folder or hub id of any family -> VisualModel |
| sources, settings, weights | where a checkpoint lies; device and dtype; weight files -> model |
| llava, processors | the LLaVA families in Hugging Face format; their processors, mended and pinned |
| original, original_*, conversations | the original `llava` format |
| any_model, any_encoding | every other family |
| adapters, quantization | LoRA merged; 4 and 8 bits |
| encoding | one document -> `Encoded`: tensors, positions, region |
| passes | encoded documents through a model |
| model, rows | `VisualModel`, `AttentionRows` |
| scoring, knockout | a continuation's log-likelihood; what knocking out heads does to an answer |
| convert, shards | original format -> Hugging Face format |
| known_models, published_heads | the models and the published statistics of the study (Bi et al., CVPR 2025) |

Imports run one way: loading -> llava, any_model -> model -> scoring, knockout -> passes -> encoding.
Never: lmms-eval, tables. Imports capture, statistics, geometry. Others may import `loading`, `encoding.Encoded`,
`model.VisualModel`, `rows.AttentionRows`, `knockout`, `convert`, `known_models`, `published_heads`.
"""
