"""The demo: small checkpoints that ship with the package, what was measured on them, and the story that `visual-heads demo` tells.

| module or folder | holds |
|---|---|
| checkpoints/, manifest | the shipped checkpoints, and what is known of each |
| measurements/, measured | head profiles, answers, knock-outs and scores of all of them (`python -m lab measure` writes them) |
| runs | which tasks the demo runs, with which arguments |
| story | probe, fit, predict, score, compare, report: what the demo does, without printing |

Never: printing (that is cli/demo.py), training (that is `lab`). May import every room but cli.
"""
