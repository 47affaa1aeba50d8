"""From any table of runs to a scaling law, a prediction and how far to trust it."""

from typing import Any

__all__ = ["backtest", "fit", "predict"]


def __getattr__(name: str) -> Any:
    """The functions on arrays, imported when first asked for: other parts start without SciPy."""
    if name not in __all__:
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    from analysis import api

    return getattr(api, name)
