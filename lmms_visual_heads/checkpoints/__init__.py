"""Checkpoints as models whose heads can be read: loading, prompts, generation, scoring.

loading.py a folder or hub id -> VisualModel · model.py VisualModel · encoding.py one document -> tensors and positions ·
processors.py the published processors, mended and pinned · scoring.py log-likelihoods · rows.py AttentionRows ·
any_model.py, any_encoding.py every other family.
"""
