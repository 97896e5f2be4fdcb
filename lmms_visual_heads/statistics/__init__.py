"""Rows and logits -> numbers. Pure functions: inputs are never written to; no model, no file, no lmms-eval in here.

heads.py statistics of attention rows per head · answers.py statistics of the answer's logits, without labels.
"""
