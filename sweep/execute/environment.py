"""What every worker's environment holds, wherever it runs."""

from __future__ import annotations

import os
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[2]


def common_environment(threads: int) -> dict[str, str]:
    """The code that this process runs, and as many threads as everywhere: the order of a sum depends on them."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(SOURCE_ROOT), os.environ.get("PYTHONPATH")))),
    }
