"""The benchmark scripts count what they say, and fit the code that they measure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.count import count_parameters, training_flops_per_token
from sweep.plan.grids import cells, family
from sweep.plan.plan import Corpus, plan

ROOT = Path(__file__).parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def training():
    return script("benchmark_training")


@pytest.fixture
def config(compose):
    return compose("scale=cpu", "+grid=isoflop")


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


def test_every_kind_of_operation_is_found_by_the_name_that_torch_gives_it(training, config):
    like = plan(cells(config, training.VOCAB), Corpus("f00d", training.VOCAB, 10**12))[0].spec
    shares = training.shares(training.spec_of(config, like, family(config, training.VOCAB).shape(64)))
    assert set(training.KINDS) < set(shares) and all(0 < share < 1 for share in shares.values())


def test_branch_quality_finds_a_planted_difference_and_its_trends():
    """1% better in the mean than the better of two arms, by 0.5% less for each doubling of D, by 0.25% more of N."""
    quality, rng = script("branch_quality"), np.random.default_rng(0)
    branch, linear, cosine = {}, {}, {}
    cells = [(params, tokens) for params in (16_000, 32_000, 64_000) for tokens in (4e5, 8e5, 1.6e6, 3.2e6)]
    for params, tokens in cells:
        losses = 1.5 + 0.1 * rng.random(3)
        planted = -1.0 - 0.25 * np.log2(params / 32_000) + 0.5 * (np.log2(tokens / 4e5) - 1.5)
        linear[params, tokens], cosine[params, tokens] = list(losses), list(1.01 * losses)
        branch[params, tokens] = list(np.exp(planted / 100) * losses)
    said = quality.report(branch, {"linear own": linear, "cosine own": cosine}).splitlines()
    assert len(said) == 1 + len(cells) + 4
    mean, of_params, of_tokens = (float(line.partition("%")[0].split()[-1]) for line in said[-4:-1])
    assert (mean, of_params, of_tokens) == (-1.0, -0.25, 0.5)


def test_branch_quality_asks_for_what_it_says(compose):
    """At the branches' batch, arms differ from them in schedule, rate and decay alone; in its own they have a constant one."""
    quality = script("branch_quality")
    product = ["+grid=product", "scale=cpu", "grid.params=27e3", "grid.tokens=1.6e6"]

    def spec(overrides):
        return plan(cells(compose(*product, *overrides), 257), Corpus("f00d", 257, 10**12))[0].spec

    branch = spec(["schedule=trunk", quality.WARM])
    for arm, decay in (("linear", 0.93), ("wsd", 0.2), ("cosine", None)):
        for batch in quality.BATCHES:
            (found,) = (
                spec(overrides)
                for tokens, overrides in quality.sweeps(f"{arm} {batch}").values()
                if 1.6e6 in tokens
            )
            assert (found.batch == branch.batch) == (batch == "growing")
            assert (found.batch.doubles_at is None) == (batch == "own")
            assert found.optim.lr != branch.optim.lr
            decayed = found.steps - found.decay_start
            if decay is not None:
                assert 1 - found.batch.seen(found.steps - decayed) / found.batch.seen(found.steps) == pytest.approx(decay, abs=0.01)
