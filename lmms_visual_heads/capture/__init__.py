"""Reading the attention row of one query out of a model that otherwise runs exactly as it would without us.

| module | holds |
|---|---|
| attention | the attention function that transformers calls, and `attach` |
| reader | hooks around one forward pass: its rows, first logits, log-probabilities |
| rows | rows of one pass, settled and stacked |
| late, late_kernel | rows of a decode step on a GPU, all layers in one kernel |
| generation, forced | rows out of `generate`, and out of a `generate` call with given tokens |
| prefix | a shared beginning of prompts, run once |
| knockout | heads that may not attend to visual tokens |
| layers, support | kinds of layers; models that are refused because their rows would be wrong |
| memory | running out of memory, told apart from other failures |
| selfcheck | the proof on one picture |

Never: prompts, processors, lmms-eval, statistics, files. Imports no other room. Others may import `attention.attach`, `generation`,
`prefix`, `knockout`, `memory.out_of_memory`, `support`, `selfcheck.self_check`.
"""
