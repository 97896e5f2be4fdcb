"""The attention rows of one image and one question: which heads look at the image, and where the strongest one looks.

python examples/one_image.py [CHECKPOINT]
"""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw

from lmms_visual_heads import load_model
from lmms_visual_heads.demo.manifest import checkpoints_folder


def picture() -> Image.Image:
    """A dark scene with one red disc in its upper left."""
    image = Image.new("RGB", (336, 336), (40, 40, 48))
    ImageDraw.Draw(image).ellipse((30, 30, 110, 110), fill=(220, 40, 40))
    return image


def main() -> None:
    """Print the answer, the three heads with the highest score, and how the strongest one spreads over the image."""
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else str(checkpoints_folder() / "w64-d3-t16-s7000")
    model = load_model(checkpoint, device="cpu", dtype="float32")
    rows = model.attention_rows(picture(), "What colour is the object?", max_new_tokens=4)
    print(f"answer: {rows.answer!r}; rows [layers, heads, key positions]: {tuple(rows.values.shape)}")
    heads = rows.statistics().sort_values("visual_head_score", ascending=False)
    columns = ["layer", "head", "image_attention", "concentration", "visual_head_score"]
    print(heads[columns].head(3).to_string(index=False, float_format="%.3f"))
    best = heads.iloc[0]
    patches = np.asarray(rows.values)[int(best["layer"]), int(best["head"])][np.asarray(rows.patch_positions)]
    side = int(len(patches) ** 0.5)
    print(
        f"layer {best['layer']:.0f}, head {best['head']:.0f}, over {side} x {side} patches, percent of its patch attention:"
    )
    print(np.round(100 * patches[: side * side].reshape(side, side) / patches.sum()).astype(int))


if __name__ == "__main__":
    main()
