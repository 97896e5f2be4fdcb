"""The probe's data: drawn scenes with questions about them, the real LookTwice-QA, and five small drawn benchmarks.

| module | holds |
|---|---|
| documents | the way in: `documents(name)` and `draw(document)` |
| questions, scoring | the questions' words; whether an answer is right |
| generation, layout, random_stream | scenes drawn by lot, from integers, the same on every machine |
| drawing, shapes | a scene as pixels |
| looktwice | published question files -> a folder of documents and images |

Never: a model, torch, lmms-eval. Imports no other room. Others may import `documents`, `questions`, `scoring`, `looktwice`.
"""
