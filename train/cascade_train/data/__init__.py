"""Labelled images, their four splits, and the rendered default set.

>>> prepared = prepare("roadworks:day", Path("runs/base"), Preprocess(height=64, width=64))
>>> prepared.pixels["train"].pixels  # uint8 [N, 64, 64, 3]
"""

from cascade_train.data.sources import Prepared, load_split_pixels, load_splits, prepare

__all__ = ["Prepared", "load_split_pixels", "load_splits", "prepare"]
