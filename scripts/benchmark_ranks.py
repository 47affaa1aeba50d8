"""How much faster a lone run is when the cores of a machine share its batches.

    python scripts/benchmark_ranks.py [--flops 2e12] [--params 174000]

One run of the default cpu-scale grid's recipe (batches that grow, for so many FLOPs and non-embedding parameters), in
one call: by one process, then by as many as a lone run gets here (sweep/places.py), with their losses.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

import hydra
import torch

from models.count import count_parameters
from sweep.__main__ import CONF
from sweep.files import RunFolder
from sweep.hardware import usable_cores
from sweep.places import hardware_for, ranks_of
from sweep.plan.grids import target_cell
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import to_config
from sweep.preparation import prepare_corpus
from sweep.tables import console
from sweep.train.ranks import train_on_ranks
from sweep.train.train import Execution, train


class Never:
    """No request to stop."""

    orphaned = staticmethod(lambda: False)

    def __call__(self) -> bool:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=2e12)
    parser.add_argument("--params", type=float, default=174e3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["+grid=isoflop", "scale=cpu", "logger=none", f"grid.target.flops={arguments.flops}"]
        config = to_config(hydra.compose("config", overrides=overrides))
    corpus = prepare_corpus(config, 2e7, console())
    cell = target_cell(config, corpus.vocab_size, arguments.params)
    planned = plan([cell], Corpus(corpus.fingerprint, corpus.vocab_size, corpus.train_tokens))[0]
    spec, hardware = planned.spec, hardware_for(config)
    execution = Execution(
        device="cpu", threads=1, data_folder=str(corpus.folder), micro_batch_sequences=spec.most_sequences,
        log_every=20, evaluations=0, checkpoint_seconds=1e9, compile=False,
    )  # fmt: skip
    print(f"{platform.processor() or platform.machine()}, {usable_cores()} cores; torch {torch.__version__}")
    print(
        f"N={count_parameters(spec.shape).non_embedding:,}, D={spec.tokens:,}, {spec.steps:,} updates of up to "
        f"{spec.most_sequences} x {spec.shape.seq_len} tokens"
    )
    seconds = []
    for ranks in (1, ranks_of(config, hardware, spec, alone=True)):
        with tempfile.TemporaryDirectory() as folder:
            do = train if ranks == 1 else train_on_ranks
            result = do(spec, replace(execution, ranks=ranks), RunFolder(Path(folder)), Never())
        seconds.append(result.wall_seconds)
        print(f"{ranks} process{'es' if ranks > 1 else '  '}  {result.wall_seconds:6.1f} s  loss {result.loss:.6f}", flush=True)
    print(f"{seconds[0] / seconds[1]:.2f} times as fast")


if __name__ == "__main__":
    main()
