"""The only room that knows lmms-eval: the plugin, the models that it runs, its tasks, and what a run leaves on disk.

| module | holds |
|---|---|
| plugin | what lmms-eval finds: models and the task folder |
| model, any_model | the adapters `visual_heads_llava` and `visual_heads_hf`: lmms-eval's methods, and nothing of their own |
| arguments | `--model_args`, checked |
| requests, documents, families | lmms-eval's requests -> encoded questions; documents; requests about the same images |
| scheduler | which questions are answered together, and what happens without memory; knows no lmms-eval |
| columns, recording, run_facts | an answered request -> columns -> journal -> tables, with the fingerprint of the data |
| controls, control_plan, control_records | the extra passes: changed images and knock-outs |
| costs | what passes cost |
| processes, endings, lmms_eval_facts | several processes; how a run ends early; what lmms-eval does not tell |
| tasks | the functions that the YAML files in tasks/ name |
| evaluation, sweep | lmms-eval started from Python and as a command; one run after the other |

A request's way: requests -> scheduler -> model -> columns -> recording. Imports the rooms on the left and tables. Others may import
`evaluation`, `sweep`, `plugin`; everything else is for lmms-eval.
"""
