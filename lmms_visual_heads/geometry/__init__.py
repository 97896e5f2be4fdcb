"""Where things are: visual token -> patch or newline, pixel box -> patch tokens. Pure functions.

| module | holds |
|---|---|
| preprocessing | what a processor does to the image's geometry |
| layout | order and kind of an image's visual tokens |
| axes | pixels to a view, one axis at a time |
| regions | boxes in pixels to patch tokens |
| images | an image of any mode as RGB, and the blank one |

Never: a model, a tokenizer, attention. Imports no other room. `checkpoints.encoding` asks for a document's layout and region, once;
whoever needs them later reads `Encoded`.
"""
