"""Commands beside the experiment: `sweep NAME ...`, looked up before Hydra sees the arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "export": "sweep.exchange:export_command",
    "import": "sweep.exchange:import_command",
}
"""The function, by module, that takes the arguments after the name and returns the exit status. Imported
only when it is called: each may need what the others start faster without."""


def run_command(arguments: Sequence[str]) -> int | None:
    """Run the command that `arguments` start with; None where they start with none.

    Returns its exit status, which is 2, with the message printed, for what it raises of ValueError and
    OSError. argparse ends the process itself, with 2, for wrong usage.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return None
    name, rest = arguments[0], list(arguments[1:])
    module, function = COMMANDS[name].split(":")
    try:
        return getattr(import_module(module), function)(rest)
    except (ValueError, OSError) as error:
        print(f"sweep {name}: {error}", file=sys.stderr)
        return 2
