"""Rows and logits -> numbers. Pure functions: inputs are never written to.

| module | holds |
|---|---|
| heads | statistics of attention rows, one number per head |
| answers | statistics of the answer's logits, without labels |
| causal | how far the answer's distribution moves under knock-outs and other images |

Never: a model, a file, lmms-eval. Imports no other room; every public function may be imported.
"""
