"""Drawn scenes: a small world of coloured things for the probe, five benchmarks and the training of small checkpoints.

Everything is drawn from integers, the same on every machine. `scenes.documents` is the way in: `documents(name)` and
`draw(document)`; `scenes.zoo` trains the checkpoints.
"""
