"""One run: spec and batches in, result out."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.decoder import Decoder, token_losses
from models.transfer import build_decoder, initialise
from sweep.data.batches import TokenBatches, heldout_blocks
from sweep.files import RunFolder, write_atomically
from sweep.plan.spec import RunSpec
from sweep.train import distributed
from sweep.train.checkpoint import TrainingState, load_checkpoint, load_trunk, save_checkpoint, save_final_weights
from sweep.train.evaluate import Evaluation, evaluate
from sweep.train.noise import NoiseScale, measure_noise
from sweep.train.optimizer import MuonAndAdamW, build_optimizer
from sweep.train.out_of_memory import MicroBatch, is_out_of_memory, release
from sweep.train.result import RunResult, result_for
from sweep.train.schedule import rate_factor
from sweep.train.stream import BatchStream

EXPLODED = 1.5
"""A mean training loss of this many times ln(vocabulary), the loss of knowing nothing, counts as
divergence. Assumption: a run that gets there does not come back in time to be worth fitting."""


@dataclass(frozen=True)
class Execution:
    """How and where a run runs; nothing here changes its result beyond rounding.

    micro_batch_sequences: sequences that go through the model at once, after oom_halvings of earlier
    processes that memory ran out for; evaluations: how many times the held-out loss is measured before
    the end; checkpoint_seconds: wall time between checkpoints; parent: id of the trunk whose checkpoint
    the run goes on from, in the same sweep; compile_mode: torch.compile's; ranks: processes that share
    each batch, one a GPU (sweep/train/ranks.py), each with micro-batches of that size; shard: whether
    they share weights, gradients and moments too, None where one GPU would be too full of them.
    """

    device: str
    threads: int
    data_folder: str
    micro_batch_sequences: int
    log_every: int
    evaluations: int
    checkpoint_seconds: float
    compile: bool
    parent: str | None = None
    compile_mode: str = "default"
    oom_halvings: int = 0
    ranks: int = 1
    shard: bool | None = None
    noise_scales: int = 0  # measurements of the gradient noise scale (sweep/train/noise.py) under way


class Stopped(Exception):
    """The run was asked to stop; its checkpoint holds everything up to here."""


@dataclass(frozen=True)
class Learner:
    """A model, its compiled or plain forward pass, its optimizer and the precision it runs in."""

    spec: RunSpec
    model: Decoder
    forward: nn.Module
    optimizer: torch.optim.Optimizer | MuonAndAdamW
    autocast: Callable
    device: torch.device
    micro_batch: MicroBatch

    def update(self, step: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One update on int64[batch, T + 1]; returns the mean loss, on a rank such that the ranks' mean is the
        batch's, and the gradient's norm before clipping, both float32 scalars left on the device."""
        factor = rate_factor(self.spec.schedule, step, self.spec.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.optim.lr * factor * group["rate"]
        loss = None
        while loss is None:
            try:
                loss = self._gradients(tokens)
            except Exception as error:
                if not is_out_of_memory(error) or not self.micro_batch.halve():
                    raise
            if loss is None:  # here the error is gone, and with it what it held of the failed attempt
                self.optimizer.zero_grad(set_to_none=True)
                release()
        norm = distributed.full(nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.optim.clip))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _gradients(self, tokens: Tensor) -> Tensor:
        """Leave the gradient of the mean loss in the parameters; returns that loss, detached."""
        loss = torch.zeros((), device=self.device)
        for micro_batch, weight, is_last in distributed.micro_batches(tokens, self.micro_batch.sequences):
            with distributed.accumulating(self.forward, is_last):
                with self.autocast():
                    part = token_losses(self.forward, micro_batch).mean() * weight
                part.backward()
            loss += part.detach()
        return loss


def build_learner(spec: RunSpec, execution: Execution) -> Learner:
    """A freshly initialised learner on the run's device."""
    optim, device = spec.optim, torch.device(execution.device)
    model = build_decoder(spec.shape, optim.param, optim.base_width, optim.base_depth)
    initialise(model, optim.param, optim.base_width, spec.seed, optim.embedding_mean)
    forward = distributed.spread(model, spec, execution.shard, device)
    optimizer = build_optimizer(model, optim)
    autocast = (
        partial(torch.autocast, device.type, dtype=torch.bfloat16) if spec.precision == "bf16" else nullcontext
    )
    if execution.compile:
        forward = torch.compile(forward, mode=execution.compile_mode)
    micro_batch = MicroBatch(execution.micro_batch_sequences, execution.oom_halvings)
    return Learner(spec, model, forward, optimizer, autocast, device, micro_batch)


def train(spec: RunSpec, execution: Execution, folder: RunFolder, should_stop: Callable[[], bool]) -> RunResult:
    """Train one run to its end, from its checkpoint if it has one, else from its trunk's. A trunk leaves
    its own behind, and is evaluated at its end only where there are evaluations under way. Where a trunk has
    left none, all updates are made here.

    Returns a result with status "finished" or "diverged". Raises Stopped, after a checkpoint, once
    `should_stop()` is true; whatever else goes wrong is raised as it is.

    On a CPU the result is a function of `spec`, of `execution`'s threads and micro-batches and of
    the numerical libraries alone, bit for bit, however often the run was stopped.
    """
    learner = build_learner(spec, execution)
    data = Path(execution.data_folder)
    batches = TokenBatches(data, spec.shape.seq_len, spec.batch, spec.seed if spec.order_seed is None else spec.order_seed)
    blocks, block_bytes = heldout_blocks(data, spec.shape.seq_len, spec.data.eval_tokens)

    def measure() -> Evaluation:
        return evaluate(learner.forward, blocks, block_bytes, learner.micro_batch, learner.autocast, beat)

    save = partial(save_checkpoint, folder, spec.run_id, model=learner.model, optimizer=learner.optimizer)
    state = first_state(spec, execution, folder, learner)
    metrics = MetricsLog(folder.metrics, spec, resume_after=state.step)
    evaluate_at = {spec.steps * (i + 1) // (execution.evaluations + 1) for i in range(execution.evaluations)}
    noise_at = {max(1, spec.steps * (i + 1) // (execution.noise_scales + 1)) for i in range(execution.noise_scales)}
    ceiling = EXPLODED * math.log(spec.shape.vocab_size)
    beat = Heartbeat(folder.heartbeat)
    stream = BatchStream(batches, learner.device)

    started = saved = time.monotonic()
    before = state.seconds
    losses = list(torch.tensor(state.window, device=learner.device))
    while state.step < spec.steps:
        loss, norm = learner.update(state.step, stream.batch(state.step))
        beat()
        losses.append(loss)
        state.step += 1
        if state.step in noise_at:
            metrics.noise(state, measure_noise(learner.model, batches, state.step, learner.autocast))
        if state.step % execution.log_every == 0 or state.step == spec.steps or state.step in evaluate_at:
            window = distributed.mean(torch.stack(losses)).tolist()
            losses.clear()
            state.seconds = before + time.monotonic() - started
            mean = sum(window) / len(window)
            if not mean <= ceiling:
                return _diverged(spec, state, window, ceiling, execution, learner)
            rate = spec.optim.lr * rate_factor(spec.schedule, state.step - 1, spec.steps)
            metrics.training(state, loss=mean, lr=rate, grad_norm=float(norm))
            if state.step in evaluate_at and state.step < spec.steps:
                metrics.evaluation(state, measure())
        is_due = time.monotonic() - saved > execution.checkpoint_seconds
        stop, is_due = distributed.agreed(should_stop(), is_due)
        if state.step < spec.steps and (stop or is_due):
            state.seconds = before + time.monotonic() - started
            state.window = distributed.mean(torch.stack(losses)).tolist() if losses else []
            save(state=state)
            saved = time.monotonic()
            if stop:
                raise Stopped
    if spec.is_trunk:
        if execution.evaluations:
            metrics.evaluation(state, measure())
        state.seconds = before + time.monotonic() - started
        save(state=state)
        return result_for(spec, "finished", state.step, **_seen(spec, batches), **_timing(spec, state, execution, learner))
    final = measure()
    state.seconds = before + time.monotonic() - started
    metrics.evaluation(state, final)
    if not math.isfinite(final.loss):
        return _diverged(spec, state, [final.loss], ceiling, execution, learner)
    save_final_weights(folder, learner.model)
    return result_for(
        spec,
        "finished",
        state.step,
        loss=final.loss,
        loss_se=final.loss_se,
        bits_per_byte=final.bits_per_byte,
        eval_tokens=final.tokens,
        **_seen(spec, batches),
        **_timing(spec, state, execution, learner),
    )


def first_state(spec: RunSpec, execution: Execution, folder: RunFolder, learner: Learner) -> TrainingState:
    """Where the run stands before this process' first update, with the learner brought there."""
    state = load_checkpoint(folder, spec.run_id, learner.model, learner.optimizer)
    if state is None and execution.parent is not None:
        trunk = folder.sibling(execution.parent)
        state = load_trunk(trunk, execution.parent, spec.decay_start, learner.model, learner.optimizer)
        if state is None:
            print(f"trunk {execution.parent} has left no checkpoint: training from the first update", flush=True)
    return state or TrainingState(0, 0.0, 0)


def _seen(spec: RunSpec, batches: TokenBatches) -> dict:
    return {"unique_tokens": batches.unique_tokens(spec.tokens), "epochs": batches.epochs(spec.tokens)}


def _diverged(
    spec: RunSpec,
    state: TrainingState,
    window: list[float],
    ceiling: float,
    execution: Execution,
    learner: Learner,
) -> RunResult:
    bad = next(i for i, loss in enumerate(window) if not loss <= ceiling)
    step = state.step - len(window) + bad + 1
    reason = f"training loss {window[bad]:.4g} at step {step} of {spec.steps} (limit {ceiling:.3g} nats a token)"
    return result_for(spec, "diverged", state.step, reason=reason, **_timing(spec, state, execution, learner))


def _timing(spec: RunSpec, state: TrainingState, execution: Execution, learner: Learner) -> dict:
    own_tokens = spec.tokens_after(state.step) - spec.tokens_after(state.from_step)
    return {
        "wall_seconds": round(state.seconds, 3),
        "tokens_per_second": round(own_tokens / max(state.seconds, 1e-9), 1),
        "device": (f"{execution.ranks} x " if execution.ranks > 1 else "") + device_name(execution.device),
        "resumes": state.resumes,
        "peak_bytes": peak_bytes(execution.device),
        "micro_batch_sequences": learner.micro_batch.sequences,
        "oom_halvings": learner.micro_batch.halvings,
    }


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def peak_bytes(device: str) -> int:
    """Most memory held so far: by torch on a GPU, by the process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


HEARTBEAT_SECONDS = 5.0  # assumption: far below the minutes after which a worker counts as hung


class Heartbeat:
    """A file that is touched while updates and evaluations are made, so that a slow run is told from one that hangs."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, -math.inf

    def __call__(self) -> None:
        if time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            self._last = time.monotonic()
            with suppress(OSError):  # of a full disk or a vanished folder, what is written next tells
                self._path.touch()


class MetricsLog:
    """metrics.jsonl: one line for each log step and each evaluation, in the order they happened."""

    def __init__(self, path: Path, spec: RunSpec, resume_after: int) -> None:
        """Drop the lines after step `resume_after`: the run is about to write them again."""
        self.path, self.spec, self.flops_per_token = path, spec, spec.flops / spec.tokens
        if not distributed.is_first():
            return
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= resume_after:
                        kept.append(line + "\n")
                except (ValueError, KeyError):
                    continue  # cut off by the crash that made this a resumption
        write_atomically(path, "".join(kept))

    def training(self, state: TrainingState, *, loss: float, lr: float, grad_norm: float) -> None:
        self._write(state, loss=loss, lr=lr, grad_norm=grad_norm)

    def evaluation(self, state: TrainingState, result: Evaluation) -> None:
        self._write(state, eval_loss=result.loss, eval_loss_se=result.loss_se, bits_per_byte=result.bits_per_byte)

    def noise(self, state: TrainingState, found: NoiseScale) -> None:
        known = {} if found.tokens is None else {"noise_scale": found.tokens}
        self._write(state, **known, gradient_square=found.square, gradient_noise=found.trace)

    def _write(self, state: TrainingState, **values: float) -> None:
        if not distributed.is_first():
            return
        tokens = self.spec.tokens_after(state.step)
        line = {
            "step": state.step,
            "tokens": tokens,
            "flops": tokens * self.flops_per_token,
            **values,
            "seconds": round(state.seconds, 3),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
