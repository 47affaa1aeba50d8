"""The benchmark scripts count what they say, and fit the code that they measure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.count import count_parameters, training_flops_per_token
from sweep.__main__ import CONF
from sweep.plan.grids import cells, family
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import to_config

ROOT = Path(__file__).parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training():
    return script("benchmark_training")


@pytest.fixture(scope="module")
def config():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return to_config(hydra.compose("config", overrides=["scale=cpu", "+grid=isoflop"]))


def test_products_are_the_useful_flops_of_an_update(training, config):
    runs = [run.spec for run in plan(cells(config, training.VOCAB), Corpus("f00d", training.VOCAB, 10**12))]
    for width in training.WIDTHS:
        spec = training.spec_of(config, runs[0], family(config, training.VOCAB).shape(width))
        multiply = training.products(spec)
        with FlopCounterMode(display=False) as counter:
            multiply()
        assert counter.get_total_flops() == training_flops_per_token(spec.shape) * spec.batch_tokens


def test_a_width_of_the_grid_has_the_grids_batch(training, config):
    """The table's own widths and the grid's follow one rule."""
    runs = [run.spec for run in plan(cells(config, training.VOCAB), Corpus("f00d", training.VOCAB, 10**12))]
    for run in runs:
        followed = config.optim.tokens_per_param * count_parameters(run.shape).non_embedding
        there = run.batch.at(run.batch.steps(followed / run.shape.seq_len))
        assert 0.7 <= training.spec_of(config, runs[0], run.shape).batch_sequences / there <= 1.5


def test_a_timed_update_runs(training, config):
    runs = [run.spec for run in plan(cells(config, training.VOCAB), Corpus("f00d", training.VOCAB, 10**12))]
    training.updates(runs[0])()


def test_gpu_shapes_have_the_sizes_that_the_table_names():
    gpu = script("benchmark_gpu")
    assert count_parameters(gpu.LARGE).total == pytest.approx(124e6, rel=0.01)
    assert count_parameters(gpu.SMALL).total == pytest.approx(10e6, rel=0.03)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the benchmark would run")
def test_without_a_gpu_the_benchmark_says_so():
    done = subprocess.run(
        [sys.executable, "scripts/benchmark_gpu.py"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "no CUDA device here" in done.stderr
