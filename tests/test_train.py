from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.decoder import Decoder, token_losses
from models.transfer import initialise, output_multiplier
from sweep.data.batches import TokenBatches, heldout_blocks
from sweep.files import RunFolder, read_json
from sweep.plan.batch import BatchSpec
from sweep.plan.trunks import trunk_of
from sweep.train.checkpoint import load_checkpoint
from sweep.train.evaluate import evaluate
from sweep.train.out_of_memory import MicroBatch
from sweep.train.train import EXPLODED, Execution, Stopped, build_learner, train


@pytest.fixture(scope="module")
def execution(corpus) -> Execution:
    return Execution(
        device="cpu",
        threads=1,
        data_folder=str(corpus),
        micro_batch_sequences=8,
        log_every=1,
        evaluations=0,
        checkpoint_seconds=1e9,
        compile=False,
    )


def never() -> bool:
    return False


def stop_at_call(number: int):
    """A should_stop that is true from its `number`-th call on: it is asked once after each update."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= number


def run_to_end(spec, execution, folder, stops=()):
    """Train, interrupted after each of these many further steps, and go on until there is a result."""
    for steps in stops:
        with pytest.raises(Stopped):
            train(spec, execution, folder, stop_at_call(steps))
    return train(spec, execution, folder, never)


def metrics(folder: RunFolder) -> list[dict]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") >= 0
    return lines


def final_weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tiny_spec, execution, tmp_path_factory):
    """(spec, execution, result, folder) of a run that was left alone."""
    folder = RunFolder(tmp_path_factory.mktemp("undisturbed"))
    execution = replace(execution, evaluations=2)
    return tiny_spec(), execution, train(tiny_spec(), execution, folder, never), folder


@pytest.mark.parametrize("stops", [(1,), (7,), (8,), (23,), (3, 1, 12)])
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(undisturbed, tmp_path, stops):
    spec, execution, expected, reference = undisturbed
    result = run_to_end(spec, execution, RunFolder(tmp_path), stops)
    assert (result.loss, result.loss_se, result.bits_per_byte) == (
        expected.loss,
        expected.loss_se,
        expected.bits_per_byte,
    )
    assert (result.resumes, expected.resumes) == (len(stops), 0)
    assert metrics(RunFolder(tmp_path)) == metrics(reference)
    weights = final_weights(RunFolder(tmp_path))
    assert weights.keys() == final_weights(reference).keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in final_weights(reference).items())


def test_a_stop_between_two_log_lines_is_heard_at_once_and_leaves_no_trace(undisturbed, tmp_path):
    """Steps 3 and 8 are within a window of 10 losses: its mean, in the end, is over all ten."""
    spec, execution, expected, _ = undisturbed
    seldom = replace(execution, log_every=10)
    train(spec, seldom, RunFolder(tmp_path / "whole"), never)
    folder = RunFolder(tmp_path / "stopped")
    for steps, reached in ((3, 3), (5, 8)):
        with pytest.raises(Stopped):
            train(spec, seldom, folder, stop_at_call(steps))
        learner = build_learner(spec, seldom)
        assert load_checkpoint(folder, spec.run_id, learner.model, learner.optimizer).step == reached
    assert train(spec, seldom, folder, never).loss == expected.loss
    assert metrics(folder) == metrics(RunFolder(tmp_path / "whole"))


def test_divergence_is_found_at_the_same_step_however_often_the_run_was_stopped(tiny_spec, execution, tmp_path):
    spec, seldom = tiny_spec(optim={"lr": 1e4}), replace(execution, log_every=10)
    alone = train(spec, seldom, RunFolder(tmp_path / "alone"), never)
    stopped = run_to_end(spec, seldom, RunFolder(tmp_path / "stopped"), (2, 3, 1))
    assert alone.status == stopped.status == "diverged"
    assert (alone.step, alone.reason) == (stopped.step, stopped.reason)


def test_a_crash_after_the_checkpoint_leaves_no_line_twice(undisturbed, tmp_path):
    """What was logged after the last checkpoint is written again, a line cut off by the crash included."""
    spec, execution, expected, reference = undisturbed
    folder = RunFolder(tmp_path)
    with pytest.raises(Stopped):
        train(spec, execution, folder, stop_at_call(9))
    checkpoint = (folder.checkpoint / "state.pt").read_bytes()
    with pytest.raises(Stopped):
        train(spec, execution, folder, stop_at_call(5))
    (folder.checkpoint / "state.pt").write_bytes(checkpoint)
    with open(folder.metrics, "a") as file:
        file.write('{"step": 15, "tok')
    assert train(spec, execution, folder, never).loss == expected.loss
    assert metrics(folder) == metrics(reference)


def test_checkpoints_come_by_the_clock_too(undisturbed, tmp_path):
    spec, execution, expected, _ = undisturbed
    folder, steps_seen = RunFolder(tmp_path), []

    def crash_late() -> bool:
        if (folder.checkpoint / "state.pt").exists():
            learner = build_learner(spec, execution)
            steps_seen.append(load_checkpoint(folder, spec.run_id, learner.model, learner.optimizer).step)
        if len(steps_seen) == 4:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train(spec, replace(execution, checkpoint_seconds=0.0), folder, crash_late)
    assert steps_seen == sorted(steps_seen) and steps_seen[-1] > steps_seen[0]
    assert train(spec, execution, folder, never).loss == expected.loss


def test_a_checkpoint_of_another_run_is_refused(undisturbed, tmp_path):
    spec, execution, _, _ = undisturbed
    with pytest.raises(Stopped):
        train(spec, execution, RunFolder(tmp_path), stop_at_call(2))
    with pytest.raises(ValueError, match=f"belongs to run {spec.run_id}, not to"):
        train(replace(spec, seed=spec.seed + 1), execution, RunFolder(tmp_path), never)


def test_the_result_says_what_was_spent(undisturbed):
    spec, execution, result, folder = undisturbed
    assert (result.status, result.run_id, result.step) == ("finished", spec.run_id, spec.steps)
    assert result.tokens == spec.tokens == 24 * 8 * 16 and result.flops == spec.flops
    assert result.flops_6nd == 6 * result.params_non_embedding * spec.tokens
    assert result.params_total == result.params_non_embedding + 32 * 16
    assert result.eval_tokens == spec.data.eval_tokens
    assert result.unique_tokens == spec.tokens  # less than an epoch: nothing twice
    assert result.epochs == pytest.approx(spec.tokens / 4992)
    result.write(folder)
    assert read_json(folder.result) == asdict(result)


def test_metrics_have_a_line_a_step_and_each_evaluation(undisturbed):
    spec, _, result, folder = undisturbed
    training = [line for line in metrics(folder) if "loss" in line]
    evaluations = [line for line in metrics(folder) if "eval_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 25))
    assert [line["step"] for line in evaluations] == [8, 16, 24]
    assert evaluations[-1]["eval_loss"] == result.loss
    assert all(line["tokens"] == line["step"] * spec.batch_tokens for line in metrics(folder))
    assert metrics(folder)[-1]["flops"] == pytest.approx(spec.flops)
    assert training[0]["lr"] == pytest.approx(spec.optim.lr / 2)  # of two warmup steps
    assert training[1]["lr"] == pytest.approx(spec.optim.lr)
    assert training[-1]["lr"] == pytest.approx(spec.optim.lr / 8)  # of eight decay steps


def test_the_loss_goes_down_towards_the_source_s_entropy(tiny_spec, execution, tmp_path):
    result = train(tiny_spec(steps=120, schedule={"decay_steps": 40}), execution, RunFolder(tmp_path), never)
    losses = [line["loss"] for line in metrics(RunFolder(tmp_path)) if "loss" in line]
    assert losses[0] == pytest.approx(math.log(32), abs=1e-5)  # a zero head knows nothing
    surprise = 0.25 / 32
    entropy = -(0.75 + surprise) * math.log(0.75 + surprise) - 31 * surprise * math.log(surprise)
    assert entropy - 3 * result.loss_se < result.loss < entropy + 0.35 * (math.log(32) - entropy)
    assert np.mean(losses[-10:]) == pytest.approx(result.loss, abs=0.2)


def heldout(spec, execution) -> tuple[np.ndarray, np.ndarray]:
    return heldout_blocks(Path(execution.data_folder), spec.shape.seq_len, spec.data.eval_tokens)


def test_the_final_weights_alone_reproduce_the_final_loss(undisturbed):
    spec, execution, result, folder = undisturbed
    model = Decoder(spec.shape, output_multiplier(spec.shape, spec.optim.param, spec.optim.base_width))
    model.load_state_dict(final_weights(folder), strict=True)
    assert evaluate(model, *heldout(spec, execution), MicroBatch(8), nullcontext).loss == result.loss


def test_evaluating_in_mid_run_does_not_change_the_result(tiny_spec, execution, tmp_path):
    losses = set()
    for evaluations in (0, 3):
        folder = RunFolder(tmp_path / str(evaluations))
        losses.add(train(tiny_spec(), replace(execution, evaluations=evaluations), folder, never).loss)
    assert len(losses) == 1


def test_logging_less_often_does_not_change_the_result(undisturbed, execution, tmp_path):
    spec, _, expected, reference = undisturbed
    assert train(spec, replace(execution, log_every=10), RunFolder(tmp_path), never).loss == expected.loss
    each = [line["loss"] for line in metrics(reference) if "loss" in line]
    means = [(line["step"], line["loss"]) for line in metrics(RunFolder(tmp_path)) if "loss" in line]
    assert [step for step, _ in means] == [10, 20, 24]
    assert [loss for _, loss in means] == pytest.approx(
        [np.mean(each[:10]), np.mean(each[10:20]), np.mean(each[20:])]
    )


@pytest.mark.parametrize("sequences", [1, 3, 4])
def test_accumulated_gradients_are_the_whole_batch_s(tiny_spec, execution, tmp_path, corpus, sequences):
    """Also where the last part is smaller than the others, as with 3 of 8."""
    spec = tiny_spec()
    whole = train(spec, execution, RunFolder(tmp_path / "whole"), never)
    parts = train(
        spec, replace(execution, micro_batch_sequences=sequences), RunFolder(tmp_path / "parts"), never
    )
    assert parts.loss == pytest.approx(whole.loss, abs=1e-4)

    tokens = torch.from_numpy(TokenBatches(corpus, 16, spec.batch, spec.seed).batch(0))
    gradients = []
    for size in (8, sequences):
        learner = build_learner(spec, replace(execution, micro_batch_sequences=size))
        initialise(learner.model, "sp", 16, seed=0)  # under μP every gradient but the head's starts at zero
        learner.optimizer.step = lambda: None
        learner.optimizer.zero_grad = lambda set_to_none: None
        loss, norm = learner.update(0, tokens)
        gradients.append([loss, norm, *(tensor.grad for tensor in learner.model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_gradient_is_clipped_and_its_norm_logged_as_it_was(tiny_spec, execution, corpus):
    tokens = torch.from_numpy(TokenBatches(corpus, 16, BatchSpec(8), 0).batch(0))
    norms = []
    for clip in (1e9, 1e-3):
        learner = build_learner(tiny_spec(optim={"clip": clip}), execution)
        learner.optimizer.zero_grad = lambda set_to_none: None
        _, before = learner.update(0, tokens)
        after = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in learner.model.parameters()]))
        norms.append((before.item(), after.item()))
    (free, same), (reported, clipped) = norms
    assert free == pytest.approx(same) and free == pytest.approx(reported)
    assert clipped == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("log_every", [1, 10])
def test_divergence_is_a_result_with_the_step_it_happened_at(tiny_spec, execution, tmp_path, log_every):
    spec = tiny_spec(optim={"param": "sp", "lr": 1e25})
    result = train(spec, replace(execution, log_every=log_every), RunFolder(tmp_path), never)
    assert (result.status, result.loss) == ("diverged", None)
    assert re.fullmatch(r"training loss nan at step 2 of 24 \(limit 5.2 nats a token\)", result.reason)
    assert result.step == (2 if log_every == 1 else 10)
    assert result.flops == pytest.approx(spec.flops * result.step / spec.steps)
    assert not (tmp_path / "checkpoint" / "model.safetensors").exists()
    result.write(RunFolder(tmp_path))  # as JSON, which has no NaN


def test_a_finite_loss_far_above_knowing_nothing_is_divergence_too(tiny_spec, execution, tmp_path):
    result = train(tiny_spec(optim={"param": "sp", "lr": 3.0}), execution, RunFolder(tmp_path), never)
    assert result.status == "diverged"
    loss, step = re.match(r"training loss (\S+) at step (\d+) of 24", result.reason).groups()
    assert EXPLODED * math.log(32) < float(loss) < math.inf
    assert int(step) == result.step


def test_the_held_out_loss_is_the_mean_with_its_standard_error_and_bits_per_byte(undisturbed):
    spec, execution, _, folder = undisturbed
    model = Decoder(spec.shape, output_multiplier(spec.shape, spec.optim.param, spec.optim.base_width))
    model.load_state_dict(final_weights(folder))
    blocks, block_bytes = heldout(spec, execution)
    assert blocks.shape == (32, 17)
    with torch.no_grad():
        log_probability = torch.log_softmax(model(torch.from_numpy(blocks[:, :-1])), dim=-1).double().numpy()
    labels = blocks[:, 1:]
    losses = -np.take_along_axis(log_probability, labels[..., None], axis=-1)[..., 0]
    for sequences in (1, 5, 32, 100):
        beats = []
        found = evaluate(model, blocks, block_bytes, MicroBatch(sequences), nullcontext, lambda: beats.append(1))
        assert len(beats) == -(-32 // sequences)
        assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
        assert found.loss_se == pytest.approx(losses.mean(axis=1).std(ddof=1) / math.sqrt(32), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(losses.sum() / math.log(2) / block_bytes.sum(), rel=1e-6)
        assert found.tokens == labels.size
    assert evaluate(model, blocks, np.zeros_like(block_bytes), MicroBatch(8), nullcontext).bits_per_byte is None


def test_bfloat16_trains_and_keeps_its_weights_in_float32(tiny_spec, execution, tmp_path):
    exact = train(tiny_spec(), execution, RunFolder(tmp_path / "fp32"), never)
    rounded = train(tiny_spec(precision="bf16"), execution, RunFolder(tmp_path / "bf16"), never)
    assert rounded.loss != exact.loss and rounded.loss == pytest.approx(exact.loss, abs=0.05)
    assert {tensor.dtype for tensor in final_weights(RunFolder(tmp_path / "bf16")).values()} == {
        torch.float32
    }


def test_the_order_has_a_seed_of_its_own_and_the_initialisation_stays(tiny_spec, execution, tmp_path):
    own, other = tiny_spec(), tiny_spec(order_seed=7)
    assert own.run_id != other.run_id
    first = [build_learner(spec, execution).model.state_dict() for spec in (own, other)]
    assert all(torch.equal(value, first[1][name]) for name, value in first[0].items())
    losses = [
        train(spec, execution, RunFolder(tmp_path / name), never).loss
        for name, spec in (("a", own), ("b", other), ("c", tiny_spec(order_seed=own.seed)))
    ]
    assert losses[0] == losses[2] != losses[1]


def test_another_seed_is_another_run_and_the_same_seed_the_same(tiny_spec, execution, tmp_path):
    torch.manual_seed(0)
    first = train(tiny_spec(), execution, RunFolder(tmp_path / "a"), never)
    torch.manual_seed(1)
    np.random.seed(1)
    again = train(tiny_spec(), execution, RunFolder(tmp_path / "b"), never)
    other = train(tiny_spec(seed=4), execution, RunFolder(tmp_path / "c"), never)
    assert first.loss == again.loss != other.loss


def test_an_update_is_adamw_s_at_the_scheduled_rate(tiny_spec, execution, corpus):
    """Against torch's plain AdamW, with one group for all and every rate the same (param=sp)."""
    spec = tiny_spec(optim={"param": "sp", "weight_decay": 0.0})
    learner = build_learner(spec, execution)
    model = Decoder(spec.shape)
    initialise(model, "sp", 16, spec.seed)
    plain = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, foreach=False
    )
    batches = TokenBatches(corpus, 16, spec.batch, spec.seed)
    for step, factor in enumerate((0.5, 1.0, 1.0)):
        tokens = torch.from_numpy(batches.batch(step))
        learner.update(step, tokens)
        plain.param_groups[0]["lr"] = spec.optim.lr * factor
        plain.zero_grad()
        token_losses(model, tokens).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        plain.step()
    for one, other in zip(learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_data_that_are_not_there_raise(tiny_spec, execution, tmp_path):
    with pytest.raises(FileNotFoundError):
        train(tiny_spec(), replace(execution, data_folder=str(tmp_path)), RunFolder(tmp_path), never)


BRANCHING = {"warmup_steps": 3, "decay_steps": 8}


def branched(spec, execution, root, lengths, stops=()) -> RunFolder:
    """Train the trunk of `spec` in segments of these many updates, then `spec` from the last one."""
    parent = None
    for steps in lengths:
        trunk = replace(trunk_of(spec), steps=steps)
        result = run_to_end(trunk, replace(execution, parent=parent), RunFolder(root / trunk.run_id), stops)
        assert (result.status, result.loss, result.step) == ("finished", None, steps)
        parent = trunk.run_id
    folder = RunFolder(root / spec.run_id)
    result = run_to_end(spec, replace(execution, parent=parent), folder, stops)
    result.write(folder)
    return folder


@pytest.mark.parametrize("stops", [(), (2, 3)])
@pytest.mark.parametrize("lengths", [(32,), (8, 32), (8, 17, 32), (20,)])
@pytest.mark.parametrize("doubles_at", [None, 16])
def test_a_branch_is_the_uninterrupted_run_of_its_schedule_bit_for_bit(
    tiny_spec, execution, tmp_path, lengths, stops, doubles_at
):
    batch = {} if doubles_at is None else {"batch_sequences": 2, "batch_doubles_at": doubles_at}
    spec = tiny_spec(steps=40, schedule=BRANCHING, **batch)
    whole = RunFolder(tmp_path / "whole")
    expected = train(spec, execution, whole, never)
    folder = branched(spec, execution, tmp_path, lengths, stops)
    result = read_json(folder.result)
    for name in ("loss", "loss_se", "bits_per_byte", "flops", "tokens", "unique_tokens", "epochs", "step"):
        assert result[name] == getattr(expected, name), name
    one, other = final_weights(whole), final_weights(folder)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(folder) == [line for line in metrics(whole) if line["step"] > lengths[-1]]


def test_a_branch_with_muon_and_completep_is_the_uninterrupted_run_too(tiny_spec, execution, tmp_path):
    optim = {"kind": "muon", "momentum": 0.95, "param": "completep", "base_depth": 1}
    spec = tiny_spec(steps=40, schedule=BRANCHING, optim=optim)
    expected = train(spec, execution, RunFolder(tmp_path / "whole"), never)
    folder = branched(spec, execution, tmp_path, (8, 32), stops=(2,))
    assert read_json(folder.result)["loss"] == expected.loss
    weights = final_weights(RunFolder(tmp_path / "whole"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in final_weights(folder).items())


def test_a_branch_counts_its_own_time_and_its_whole_compute(tiny_spec, execution, tmp_path):
    spec = tiny_spec(steps=40, schedule=BRANCHING)
    result = read_json(branched(spec, execution, tmp_path, (32,)).result)
    assert result["flops"] == spec.flops
    own_tokens = 8 * spec.batch_tokens
    # wall_seconds is rounded to milliseconds, of which there are few
    assert own_tokens / result["tokens_per_second"] == pytest.approx(result["wall_seconds"], abs=6e-4)
    assert result["resumes"] == 0


def test_a_trunk_is_evaluated_at_its_end_where_runs_are_on_their_way(tiny_spec, execution, tmp_path):
    """Nothing of what goes on from it depends on that."""
    spec = tiny_spec(steps=40, schedule=BRANCHING)
    trunk, seen, losses = trunk_of(spec), {}, set()
    for evaluations in (0, 1):
        root = tmp_path / str(evaluations)
        losses.add(read_json(branched(spec, replace(execution, evaluations=evaluations), root, (32,)).result)["loss"])
        seen[evaluations] = [line for line in metrics(RunFolder(root / trunk.run_id)) if "eval_loss" in line]
    assert len(losses) == 1 and not seen[0]
    assert [line["step"] for line in seen[1]] == [16, 32]
    assert min(losses) < seen[1][-1]["eval_loss"] < seen[1][0]["eval_loss"]


def test_a_branch_whose_trunk_left_no_checkpoint_makes_all_its_updates(tiny_spec, execution, tmp_path):
    spec = tiny_spec(steps=40, schedule=BRANCHING)
    expected = train(spec, execution, RunFolder(tmp_path / "whole"), never)
    alone = train(spec, replace(execution, parent="0123456789ab"), RunFolder(tmp_path / "alone"), never)
    assert alone.loss == expected.loss


def test_a_trunk_that_has_gone_too_far_is_refused(tiny_spec, execution, tmp_path):
    spec = tiny_spec(steps=40, schedule=BRANCHING)
    with pytest.raises(ValueError, match="has made 36 updates; this run shares 32"):
        branched(spec, execution, tmp_path, (36,))
