"""The probe's data: drawn scenes, a small world of coloured things, or the real LookTwice-QA; and five small drawn benchmarks.

Everything is drawn from integers, the same on every machine. `probe.documents` is the way in: `documents(name)` and
`draw(document)`.
"""
