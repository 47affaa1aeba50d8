"""How much of a CPU the training uses, against matrix products and against Hugging Face's Llama.

    python scripts/benchmark_training.py [--seconds 1.5] [--repeats 3]

For widths of the cpu-scale family and for the shapes of its default grid, in turns and in one run:
  ours    one-thread workers side by side on all cores, each making whole updates (batch, forward, backward, clip, AdamW)
  peak    the matrix products of the same update alone, in the same workers or by one process with all threads,
          whichever is faster
  llama   transformers' LlamaForCausalLM and torch.optim.AdamW at equal shapes, one process with all threads
FLOPs are the useful ones (models/count.py) in every column. Each figure is the median of the repeats. Without
transformers the last column is left out. Then where the time of ours goes, by torch's profiler, which makes short
operations look longer than they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import torch

from models.config import DecoderShape
from models.count import count_parameters, training_flops_per_token
from sweep.__main__ import CONF
from sweep.hardware import usable_cores
from sweep.plan import rules
from sweep.plan.grids import cells, family
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import to_config
from sweep.plan.spec import DataSpec, RunSpec

WIDTHS = (32, 64, 128, 256)
VOCAB = 257  # of the byte tokenizer
WARMUP = 3


def updates(spec: RunSpec) -> Callable[[], None]:
    """One update of ours on a batch cut from random tokens."""
    from sweep.train.train import Execution, build_learner

    execution = Execution(
        device="cpu", threads=1, data_folder="", micro_batch_sequences=spec.batch_sequences, log_every=1,
        evaluations=0, checkpoint_seconds=1e9, compile=False,
    )  # fmt: skip
    learner = build_learner(spec, execution)
    stream = np.random.default_rng(0).integers(VOCAB, size=10**6).astype(np.uint16)
    length = spec.shape.seq_len

    def update() -> None:
        starts = np.arange(spec.batch_sequences)[:, None] * length + np.arange(length + 1)
        learner.update(spec.schedule.warmup_steps, torch.from_numpy(stream[starts].astype(np.int64)))

    return update


def products(spec: RunSpec) -> Callable[[], None]:
    """The matrix products of one update: of each weight forward, and twice backward; of attention likewise."""
    shape, rows = spec.shape, spec.batch_sequences * spec.shape.seq_len
    d, size = shape.d_model, shape.head_size
    weights = [(d, 3 * d), (d, d), (d, (2 if shape.gated else 1) * shape.d_ff), (shape.d_ff, d)] * shape.n_layer
    pairs = []
    for into, out in [*weights, (d, shape.vocab_size)]:
        x, w, y = torch.randn(rows, into), torch.randn(into, out), torch.randn(rows, out)
        pairs += [(x, w), (y, w.t()), (x.t(), y)]
    heads = spec.batch_sequences * shape.n_head
    q, scores = torch.randn(heads, shape.seq_len, size), torch.randn(heads, shape.seq_len, shape.seq_len)
    pairs += [(q, q.transpose(1, 2)), (scores, q)] * 3 * shape.n_layer

    def multiply() -> None:
        for left, right in pairs:
            left @ right

    return multiply


def llama(spec: RunSpec) -> Callable[[], None]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = spec.shape
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.d_model, intermediate_size=shape.d_ff,
        num_hidden_layers=shape.n_layer, num_attention_heads=shape.n_head, num_key_value_heads=shape.n_head,
        max_position_embeddings=shape.seq_len, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(shape.vocab_size, (spec.batch_sequences, shape.seq_len))

    def update() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward"),
    "AdamW": ("aten::_fused_adamw_",),
}
"""Operations by kind; attention's products are inside of it. What is left: norms, rotation, gating, embedding, loss, sums of
gradients, clipping, and torch's and Python's work between operations."""
PROFILED_STEPS = 30


def shares(spec: RunSpec) -> dict[str, float]:
    """The share, 0 to 1, of each kind of operation in the wall time of updates by one thread."""
    update = updates(spec)
    for _ in range(WARMUP):
        update()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        for _ in range(PROFILED_STEPS):
            update()
        elapsed = 1e6 * (time.perf_counter() - started)
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    found = {kind: sum(own.get(name, 0.0) for name in names) / elapsed for kind, names in KINDS.items()}
    return {**found, "the rest": 1.0 - sum(found.values())}


SIDES = {"ours": updates, "peak": products, "llama": llama}


def serve(pipe, threads: int) -> None:
    """In a process of its own: time what is asked for; answers steps a second."""
    torch.set_num_threads(threads)
    known: dict[tuple, Callable[[], None]] = {}
    while (request := pipe.recv()) is not None:
        side, spec, seconds = request
        if (side, spec) not in known:
            known[side, spec] = SIDES[side](spec)
            for _ in range(WARMUP):
                known[side, spec]()
        pipe.send("ready")
        pipe.recv()
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            known[side, spec]()
            steps += 1
        pipe.send(steps / (time.perf_counter() - started))


class Workers:
    """Processes that time the same thing at the same time."""

    def __init__(self, count: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, threads), daemon=True).start()
            self.pipes.append(ours)

    def rate(self, side: str, spec: RunSpec, seconds: float) -> float:
        """Steps a second of all together."""
        for message in ((side, spec, seconds), "go"):
            for pipe in self.pipes:
                pipe.send(message)
            if message != "go":
                assert all(pipe.recv() == "ready" for pipe in self.pipes)
        return sum(pipe.recv() for pipe in self.pipes)

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = to_config(hydra.compose("config", overrides=["scale=cpu", "+grid=isoflop"]))
    runs = [run.spec for run in plan(cells(config, VOCAB), Corpus("f00d", VOCAB, 10**12))]
    steps_of = {run: Counter(run.batch.at(step) for step in range(run.steps)) for run in runs}
    of_grid = {(run.shape, batch): at_batch(run, batch) for run, steps in steps_of.items() for batch in steps}
    of_width = {width: spec_of(config, runs[0], family(config, VOCAB).shape(width)) for width in WIDTHS}

    cores = usable_cores()
    packed, whole = Workers(cores, 1), Workers(1, cores)
    has_llama = importlib.util.find_spec("transformers") is not None
    sides = [("ours", packed), ("peak", packed), ("peak", whole), *([("llama", whole)] if has_llama else [])]
    print(f"{processor()}, {cores} cores; Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'width':>6} {'N':>9} {'batch':>6} {'ours':>12} {'peak':>12} {'of peak':>8} {'llama':>12} {'ratio':>6}")
    rates: dict[tuple[DecoderShape, int], dict[str, float]] = {}
    for spec in [*of_width.values(), *of_grid.values()]:
        found: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.repeats):
            for side, workers in sides:
                found.setdefault((side, len(workers.pipes)), []).append(workers.rate(side, spec, arguments.seconds))
        best = {side: max(statistics.median(v) for (s, _), v in found.items() if s == side) for side, _ in sides}
        rates[spec.shape, spec.batch_sequences] = best
        print(line(spec, best), flush=True)
    packed.end()
    whole.end()
    if has_llama:
        ours, theirs = (
            sum(n / rates[run.shape, batch][side] for run, steps in steps_of.items() for batch, n in steps.items())
            for side in ("ours", "llama")
        )
        print(f"the default grid's {len(runs)} runs, each from its first update, from these rates: ours {ours:.0f} s, "
              f"llama one after the other {theirs:.0f} s: {theirs / ours:.2f} times")
    else:
        print("transformers is not installed: no comparison with Llama (pip install transformers)")
    torch.set_num_threads(1)
    for width, spec in of_width.items():
        said = ", ".join(f"{kind} {share:.0%}" for kind, share in shares(spec).items())
        print(f"time of an update at width {width}, batch {spec.batch_sequences}: {said}")


def spec_of(config, like: RunSpec, shape: DecoderShape) -> RunSpec:
    """A run of this shape, on as many tokens as the rule takes a run of its size to have."""
    params = count_parameters(shape).non_embedding
    recipe = rules.recipe(config.optim, params, config.optim.tokens_per_param * params)
    return at_batch(replace(like, shape=shape, data=DataSpec("f00d", 256)), max(1, round(recipe.batch_tokens / shape.seq_len)))


def at_batch(run: RunSpec, sequences: int) -> RunSpec:
    """The run while its batch is this one."""
    return replace(run, batch_sequences=sequences, batch_doubles_at=None)


def line(spec: RunSpec, best: dict[str, float]) -> str:
    flops = training_flops_per_token(spec.shape) * spec.batch_tokens
    llama = f"{flops * best['llama'] / 1e9:7.1f} GF/s {best['ours'] / best['llama']:6.2f}" if "llama" in best else ""
    return (
        f"{spec.shape.d_model:6} {count_parameters(spec.shape).non_embedding:9,} {spec.batch_sequences:6} "
        f"{flops * best['ours'] / 1e9:7.1f} GF/s {flops * best['peak'] / 1e9:7.1f} GF/s "
        f"{best['ours'] / best['peak']:7.0%} {llama}"
    )


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [row.split(":", 1)[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
