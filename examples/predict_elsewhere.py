"""Predictions for `crnet score`, made with NumPy and Pillow alone: what a program of another framework has to do.

The method is as simple as can be: a pixel of the query is foreground if its colour is nearer to the mean colour of the
supports' foreground than to that of their background.

    crnet episodes-for-others --study demo --photos --out episodes
    python examples/predict_elsewhere.py episodes masks
    crnet score --study demo --predictions masks --label "Mean colour"
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def main(episodes: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    about = json.loads((episodes / "episodes.json").read_text(encoding="utf-8"))
    photos, masks = about["photos"], about["support_masks"]
    for episode in about["episodes"]:
        inside, outside = [], []
        for support in episode["supports"]:
            pixels = read(episodes / photos[support]).astype(float)
            mask = read(episodes / masks[support][str(episode["class"])])  # 0 background, 1 the class, 255 void
            inside.append(pixels[mask == 1])
            outside.append(pixels[mask == 0])
        means = [np.concatenate(colours).mean(0) for colours in (inside, outside)]
        query = read(episodes / photos[episode["query"]]).astype(float)
        near, far = (((query - mean) ** 2).sum(-1) for mean in means)
        Image.fromarray((near < far).astype(np.uint8) * 255).save(out / episode["prediction"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
