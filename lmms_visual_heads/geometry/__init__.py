"""Where things are: visual token -> patch or newline, pixel box -> patch tokens. Pure functions, no model in here.

preprocessing.py what a processor does to the image's geometry · layout.py order and kind of an image's visual tokens ·
axes.py pixels to a view, one axis at a time · regions.py boxes in pixels to patch tokens · images.py any mode to RGB.
"""
