"""Reading the attention row of one query out of a model that otherwise runs exactly as it would without us.

attention.py the attention function · reader.py one wanted forward pass · rows.py settling and stacking · late.py rows of a
decode step on a GPU, late_kernel.py their kernel · generation.py rows out of `generate` · forced.py a `generate` call with
given tokens · layers.py kinds of layers · support.py what is refused · selfcheck.py the proof. Knows nothing of lmms-eval, of
statistics, or of file formats.
"""
