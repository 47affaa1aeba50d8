"""`python -m sweep +grid=NAME`, or the console script `sweep`: compose, check, run the experiment."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sweep.commands import run_command
from sweep.hardware import has_gpu
from sweep.plan.schema import ConfigError, to_config

CONF = Path(__file__).resolve().parent.parent / "conf"


def at_scale(asked: str, cpu: object, gpu: object) -> object:
    """Resolver: `gpu` at gpu scale or where auto finds a GPU, else `cpu`."""
    chosen = gpu if asked == "gpu" or asked == "auto" and has_gpu() else cpu
    return OmegaConf.create(chosen) if isinstance(chosen, list) else chosen


def times_largest(factor: float, values: list[float]) -> float:
    """Resolver: `factor` times the largest of `values`."""
    return factor * max(values)


def every(step: int, values: list[float]) -> list[float]:
    """Resolver: the first of the values and each `step`-th after it."""
    return OmegaConf.create(list(values[::step]))


def either(which: bool, one: object, other: object) -> object:
    """Resolver: `one` where `which` is true, else `other`."""
    return one if which else other


OmegaConf.register_new_resolver("either", either, replace=True)
OmegaConf.register_new_resolver("at_scale", at_scale, replace=True)
OmegaConf.register_new_resolver("every", every, replace=True)
OmegaConf.register_new_resolver("times_largest", times_largest, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def experiment(composed: DictConfig) -> None:
    """Exit status: 0 done, 1 some run failed or could not be run, 2 refused with nothing launched,
    130 or 143 stopped by Ctrl-C or SIGTERM with everything checkpointed."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        _refuse("--multirun: the grid is expanded by the planner; give lists under +grid=product grid.over instead")
    try:
        config = to_config(composed)
    except ConfigError as error:
        _refuse(f"{error}\nNothing was launched.")
    # the imports below take seconds: a bad configuration and tab completion don't wait for them
    from sweep.execute.interrupts import Interrupted
    from sweep.execute.lock import Locked
    from sweep.experiment import run
    from sweep.refusals import Refused

    try:
        sys.exit(run(config))
    except ConfigError as error:
        _refuse(str(error) if "Nothing was launched" in str(error) else f"{error}\nNothing was launched.")
    except (Refused, Locked, ValueError, OSError) as error:
        _refuse(str(error))
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(128 + interruption.signal)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def main() -> None:
    """A command of `sweep.commands` where the first argument names one, else the experiment."""
    status = run_command(sys.argv[1:])
    if status is not None:
        sys.exit(status)
    experiment()


def _refuse(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
