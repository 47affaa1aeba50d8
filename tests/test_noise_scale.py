from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.decoder import token_losses
from sweep.data.batches import TokenBatches
from sweep.files import RunFolder
from sweep.train.noise import SEQUENCES, measure_noise, noise_scale
from sweep.train.train import Execution, build_learner, train


def quadratic(
    generator: torch.Generator, count: int, tokens: int, curvature: torch.Tensor, theta: torch.Tensor
) -> list:
    """Gradients of mean ½(θ - x)ᵀH(θ - x) over batches of x ~ N(0, 1): G = Hθ and Σ = H² exactly, whatever
    θ."""
    x = torch.randn(count, tokens, len(theta), generator=generator, dtype=torch.float64)
    return [
        [curvature[:30] * (theta - batch.mean(dim=0))[:30], curvature[30:] * (theta - batch.mean(dim=0))[30:]]
        for batch in x
    ]


@pytest.mark.parametrize("tokens", [1, 8])
def test_the_scale_of_a_quadratic_problem_is_the_exact_one(tokens):
    generator = torch.Generator().manual_seed(0)
    curvature, theta = (
        torch.linspace(0.5, 2.0, 100, dtype=torch.float64),
        torch.full((100,), 0.3, dtype=torch.float64),
    )
    square, trace = float((curvature * theta).square().sum()), float(curvature.square().sum())
    found = [noise_scale(quadratic(generator, 16, tokens, curvature, theta), tokens) for _ in range(100)]
    for values, truth in (
        (np.array([f.square for f in found]), square),
        (np.array([f.trace for f in found]), trace),
    ):
        assert abs(values.mean() - truth) < 4 * values.std() / len(values) ** 0.5  # unbiased
        assert values.std() / len(values) ** 0.5 < 0.05 * truth  # and not by being vague
    large = noise_scale(quadratic(generator, 4000, tokens, curvature, theta), tokens)
    assert large.tokens == pytest.approx(trace / square, rel=0.05)


def test_what_chance_hides_is_below_0_and_without_a_gradient_there_is_no_scale():
    same = [[torch.ones(3)]] * 4
    assert noise_scale(same, 8).trace == pytest.approx(0.0, abs=1e-12) and noise_scale(
        same, 8
    ).square == pytest.approx(3.0)
    opposed = [[torch.ones(3)], [-torch.ones(3)]]
    assert noise_scale(opposed, 8).square < 0 and noise_scale(opposed, 8).tokens < 0
    assert noise_scale([[torch.zeros(3)]] * 2, 8).tokens is None
    with pytest.raises(ValueError, match="two or more"):
        noise_scale(same[:1], 8)


@pytest.fixture(scope="module")
def execution(corpus) -> Execution:
    return Execution("cpu", 1, str(corpus), 8, 8, 0, 1e9, False, noise_scales=3)


def test_it_is_the_one_of_the_two_batch_sizes_of_the_paper(tiny_spec, execution, corpus):
    """Equation A.2 and A.3 term by term, with gradients that backward() leaves."""
    spec = tiny_spec()
    learner = build_learner(spec, execution)
    batches = TokenBatches(corpus, spec.shape.seq_len, spec.batch, spec.seed)
    found = measure_noise(learner.model, batches, 5, nullcontext)
    tokens = torch.from_numpy(np.concatenate([batches.batch(5 + i) for i in range(SEQUENCES // 8)]))

    def squared_norm(part) -> float:
        learner.model.zero_grad()
        token_losses(learner.model, part).mean().backward()
        return sum(float(p.grad.double().square().sum()) for p in learner.model.parameters())

    small, large = spec.shape.seq_len, SEQUENCES * spec.shape.seq_len
    g_small, g_large = np.mean([squared_norm(part) for part in tokens.split(1)]), squared_norm(tokens)
    square = (large * g_large - small * g_small) / (large - small)
    trace = (g_small - g_large) / (1 / small - 1 / large)
    assert found.square == pytest.approx(square, rel=1e-3)
    assert found.trace == pytest.approx(trace, rel=1e-3)


def test_measuring_changes_nothing_of_the_run(tiny_spec, execution, tmp_path):
    spec, folders = tiny_spec(), [RunFolder(tmp_path / name) for name in ("with", "without")]
    never = lambda: False  # noqa: E731
    measured = train(spec, execution, folders[0], never)
    plain = train(spec, replace(execution, noise_scales=0), folders[1], never)
    times = ("wall_seconds", "tokens_per_second", "peak_bytes")
    assert {k: v for k, v in asdict(measured).items() if k not in times} == {
        k: v for k, v in asdict(plain).items() if k not in times
    }
    first, second = (load_file(folder.checkpoint / "model.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in second)
    lines = [json.loads(line) for line in folders[0].metrics.read_text().splitlines()]
    noisy = [line for line in lines if "gradient_square" in line]
    assert [line["step"] for line in noisy] == [6, 12, 18] and all(
        line["gradient_noise"] > 0 for line in noisy
    )
    assert [line for line in lines if "gradient_square" not in line and line.pop("seconds") >= 0] == [
        line
        for line in map(json.loads, folders[1].metrics.read_text().splitlines())
        if line.pop("seconds") >= 0
    ]
