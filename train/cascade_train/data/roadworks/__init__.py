"""Road scenes rendered by the project itself, for the question "is there roadwork in this frame?".

`render("day", 7)` gives frame number 7 of the day variant: its pixels, its label and, when it is
hard, the reasons that a person can see. Nothing is downloaded, and frames are made on demand.
"""

from cascade_train.data.roadworks.compose import (
    CLASSES,
    REASONS,
    VARIANTS,
    Difficulty,
    Scene,
    render,
)

__all__ = ["CLASSES", "REASONS", "VARIANTS", "Difficulty", "Scene", "render"]
