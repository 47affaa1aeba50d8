"""What `sweep NAME ...` does besides training: a table, looked up before Hydra reads the command line."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "export": "sweep.exchange:export_main",
    "import": "sweep.exchange:import_main",
    "status": "sweep.execute.status:main",
    "cancel": "sweep.execute.cancel:main",
    "logs": "sweep.execute.logs:main",
    "wandb": "sweep.execute.wandb_mirror:main",
}
"""Name -> "module:function"; the function takes the arguments after the name and gives the exit status."""


def run_command(arguments: list[str]) -> int | None:
    """The exit status of the command that `arguments` begin with, 2 where it is refused; None for no command."""
    if not arguments or arguments[0] not in COMMANDS:
        return None
    module, function = COMMANDS[arguments[0]].split(":")
    try:
        return getattr(import_module(module), function)(arguments[1:])
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
