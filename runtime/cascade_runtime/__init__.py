"""The lean runtime: opens a certified bundle and answers, without torch.

>>> from cascade_runtime import Cascade
>>> results = Cascade.open("roadworks.cascade").classify(["frame.jpg"])
"""

from typing import TYPE_CHECKING, Any

from cascade_runtime.errors import BundleError, CascadeError, ImageError, TargetError

if TYPE_CHECKING:
    from cascade_runtime.cascade import Cascade, Result

__all__ = ["BundleError", "Cascade", "CascadeError", "ImageError", "Result", "TargetError"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the cascade (numpy, an engine) only when it is asked for: `--help` stays quick."""
    if name in ("Cascade", "Result"):
        from cascade_runtime import cascade

        return getattr(cascade, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
