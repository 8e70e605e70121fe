"""maskwright: a workbench for instance segmentation.

import maskwright as mw
model = mw.load("runs/nuclei")
result = model.predict("cells.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskwright.api import compare, evaluate, import_weights, load, predict, report, resume, score, train

__all__ = ["compare", "evaluate", "import_weights", "load", "predict", "report", "resume", "score", "train"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import maskwright` alone loads neither torch nor timm."""
    if name in __all__:
        from maskwright import api

        return getattr(api, name)
    raise AttributeError(f"module 'maskwright' has no attribute {name!r}")
