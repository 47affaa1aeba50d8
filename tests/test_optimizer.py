from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.config import DecoderShape
from models.decoder import token_losses
from models.transfer import build_decoder, initialise, is_hidden_matrix, stacked_matrices
from sweep.refusals import Refused, check_optimizer
from sweep.files import RunFolder
from sweep.plan.spec import OptimSpec, PlannedRun
from sweep.train.checkpoint import load_checkpoint
from sweep.train.optimizer import MuonAndAdamW, build_optimizer
from sweep.train.train import Execution, Stopped, build_learner, train

SHAPE = DecoderShape(2, 32, 2, 48, 16, 12)
MUON = OptimSpec("mup", 0.01, 16, 0.9, 0.95, 1e-8, 0.1, 1.0, "muon", None, 0.9)


def model_with_gradients(shape: DecoderShape = SHAPE, seed: int = 0):
    model = build_decoder(shape, "sp", 16)
    initialise(model, "sp", 16, seed)
    tokens = torch.randint(shape.vocab_size, (4, 13), generator=torch.Generator().manual_seed(seed))
    token_losses(model, tokens).mean().backward()
    return model


def matrices(model):
    """Each matrix in the layers by name and place, query, key and value apart."""
    return {
        (name, i): (rows, grad)
        for name, tensor in model.named_parameters()
        if is_hidden_matrix(name)
        for i, (rows, grad) in enumerate(zip(
            tensor.detach().chunk(stacked_matrices(name, model.shape)),
            tensor.grad.chunk(stacked_matrices(name, model.shape)),
        ))
    }  # fmt: skip


def set_rates(optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


@pytest.mark.parametrize("activation, count", [("swiglu", 7), ("relu2", 6)])
def test_each_matrix_of_a_layer_gets_torch_s_muon_of_its_own(activation, count):
    shape = replace(SHAPE, activation=activation)
    model = model_with_gradients(shape)
    apart = {key: torch.nn.Parameter(rows.clone()) for key, (rows, _) in matrices(model).items()}
    assert len(apart) == count * shape.n_layer
    for key, (_, gradient) in matrices(model).items():
        apart[key].grad = gradient.clone()
    factor = (16 / 32) ** 0.5  # sqrt(base_width / width)
    plain = torch.optim.Muon(
        apart.values(), lr=0.02 * factor, weight_decay=0.1 / factor, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = build_optimizer(model, MUON)
    set_rates(optimizer, 0.02)
    for _ in range(2):
        optimizer.step()
        plain.step()
    for key, (rows, _) in matrices(model).items():
        assert torch.equal(rows, apart[key]), key


def test_the_rest_gets_adamw_as_if_it_were_alone():
    one, other = model_with_gradients(), model_with_gradients()
    for model, optim in ((one, MUON), (other, replace(MUON, kind="adamw", momentum=None))):
        optimizer = build_optimizer(model, optim)
        set_rates(optimizer, 0.02)
        optimizer.step()
    left = dict(other.named_parameters())
    for name, tensor in one.named_parameters():
        assert torch.equal(tensor, left[name]) == (not is_hidden_matrix(name)), name


def test_every_parameter_is_moved_by_one_of_the_two():
    model = model_with_gradients()
    optimizer = build_optimizer(model, MUON)
    held = [tensor.numel() for group in optimizer.param_groups for tensor in group["params"]]
    assert sum(held) == sum(tensor.numel() for tensor in model.parameters())
    set_rates(optimizer, 0.02)
    before = [tensor.detach().clone() for tensor in model.parameters()]
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("width", [16, 64])
def test_at_the_base_width_muon_moves_a_matrix_about_as_far_as_adamw(width):
    """Liu et al. 2025 (arXiv 2502.16982), section 2.2: an rms of 0.2 to 0.4 of the rate for both; and
    over the width Muon's falls with its root, as its spectral norm stays."""
    model = build_decoder(replace(SHAPE, d_model=width, d_ff=width), "sp", 16)
    for tensor in model.parameters():  # of full rank
        tensor.grad = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, replace(MUON, weight_decay=0.0))
    set_rates(optimizer, 0.02)
    before = {key: rows.clone() for key, (rows, _) in matrices(model).items()}
    optimizer.step()
    for key, (rows, _) in matrices(model).items():
        change = rows - before[key]
        expected = 0.2 * 0.02 * (16 / width) ** 0.5
        assert change.square().mean().sqrt().item() == pytest.approx(expected, rel=0.3), key
        norm = torch.linalg.matrix_norm(change, 2).item()
        assert norm == pytest.approx(0.2 * 0.02 * 16**0.5, rel=0.3), key


def test_gradients_are_dropped_or_zeroed_as_asked():
    model = model_with_gradients()
    optimizer = build_optimizer(model, MUON)
    optimizer.zero_grad(set_to_none=False)
    assert all(tensor.grad.count_nonzero() == 0 for tensor in model.parameters())
    optimizer.zero_grad()
    assert all(tensor.grad is None for tensor in model.parameters())


def never() -> bool:
    return False


@pytest.fixture
def execution(corpus) -> Execution:
    return Execution("cpu", 1, str(corpus), 8, 1, 0, 1e9, False)


def muon_spec(tiny_spec, **optim):
    return tiny_spec(optim={"kind": "muon", "momentum": 0.95, **optim})


@pytest.mark.parametrize("stop_after", [1, 9, 23])
def test_a_resumed_run_with_muon_is_the_undisturbed_one_bit_for_bit(tiny_spec, execution, tmp_path, stop_after):
    spec = muon_spec(tiny_spec)
    expected = train(spec, execution, RunFolder(tmp_path / "whole"), never)
    calls = []

    def stop() -> bool:
        calls.append(None)
        return len(calls) >= stop_after

    folder = RunFolder(tmp_path / "stopped")
    with pytest.raises(Stopped):
        train(spec, execution, folder, stop)
    learner = build_learner(spec, execution)
    assert isinstance(learner.optimizer, MuonAndAdamW)
    assert load_checkpoint(folder, spec.run_id, learner.model, learner.optimizer).step == stop_after
    assert train(spec, execution, folder, never).loss == expected.loss
    weights = [tmp_path / name / "checkpoint" / "model.safetensors" for name in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_with_muon_learns(tiny_spec, execution, tmp_path):
    losses = {
        kind: train(spec, execution, RunFolder(tmp_path / kind), never).loss
        for kind, spec in (("adamw", tiny_spec(steps=60)), ("muon", replace(muon_spec(tiny_spec), steps=60)))
    }
    assert losses["muon"] < 1.1 * losses["adamw"] < 3.47  # ln 32: knowing nothing


def test_completep_trains_a_deeper_model_with_the_multiplier_of_its_depth(tiny_spec, execution):
    spec = tiny_spec(shape={"n_layer": 8}, optim={"param": "completep", "base_depth": 2})
    learner = build_learner(spec, execution)
    assert {block.residual_multiplier for block in learner.model.blocks} == {0.25}
    assert {group["eps"] for group in learner.optimizer.param_groups} == {1e-8, 0.25e-8}  # width = base_width


def test_without_muon_in_torch_the_plan_is_refused_and_a_worker_says_why(tiny_spec, monkeypatch):
    runs = [PlannedRun(muon_spec(tiny_spec), "here")]
    check_optimizer(runs)
    monkeypatch.setattr("sweep.hardware.metadata.version", lambda name: "2.8.0+cpu")
    check_optimizer([PlannedRun(tiny_spec(), "here")])
    with pytest.raises(Refused, match=r"optim=muon wants torch 2.9 .* 2.8.0\+cpu.*Nothing was launched"):
        check_optimizer(runs)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RuntimeError, match="optim=muon wants torch 2.9 or later"):
        build_optimizer(build_decoder(SHAPE, "mup", 16), MUON)
