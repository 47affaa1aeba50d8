"""How much of one GPU the training uses.

    python scripts/benchmark_gpu.py [--seconds 20] [--batch 524288] [--packed 4]

Prints tokens a second, the share of the card's peak by nanoGPT's count of FLOPs, and peak memory against what
the planner predicts, for 124M parameters (12 layers of 768, T=1024, vocabulary 50,304); then, for 10M parameters,
the throughput of several runs packed on the card against one alone. Ends with status 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

import torch

from models.config import DecoderShape
from models.count import count_flops, count_parameters
from sweep.plan.cost import Measurement, Timing, run_cost
from sweep.plan.spec import DataSpec, OptimSpec, PlannedRun, RunSpec, ScheduleSpec

LARGE = DecoderShape(n_layer=12, d_model=768, n_head=12, d_ff=2048, vocab_size=50_304, seq_len=1024, tied=True)
SMALL = DecoderShape(n_layer=6, d_model=320, n_head=5, d_ff=896, vocab_size=8_192, seq_len=1024, tied=True)

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16, NVIDIA's data sheets (SXM)."""

WARMUP_STEPS = 10  # assumption: compilation and autotuning are over


def spec_of(shape: DecoderShape, batch_tokens: int) -> RunSpec:
    return RunSpec(
        shape=shape,
        data=DataSpec("f00d", shape.seq_len),
        optim=OptimSpec("mup", 0.01, 256, 0.9, 0.95, 1e-8, 0.1, 1.0),
        schedule=ScheduleSpec("constant", 10, 0, "", 1.0),
        batch_sequences=batch_tokens // shape.seq_len,
        steps=10**6,
        seed=0,
        precision="bf16",
    )


def throughput(spec: RunSpec, micro: int, mode: str, seconds: float, ready=None) -> tuple[float, int]:
    """Tokens a second and peak bytes of whole updates; `ready`: a barrier that packed processes wait at."""
    from sweep.train.train import Execution, build_learner, peak_bytes

    execution = Execution("cuda", 1, "", micro, 10**6, 0, 1e9, True, None, mode)
    learner = build_learner(spec, execution)
    tokens = torch.randint(spec.shape.vocab_size, (spec.batch_sequences, spec.shape.seq_len + 1), device="cuda")
    for _ in range(WARMUP_STEPS):
        learner.update(20, tokens)
    torch.cuda.synchronize()
    if ready is not None:
        ready.wait()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            learner.update(20, tokens)
        torch.cuda.synchronize()
        steps += 10
    return steps * spec.batch_tokens / (time.perf_counter() - started), peak_bytes("cuda")


def alone_in_a_process(spec: RunSpec, micro: int, seconds: float) -> tuple[float, int]:
    """`throughput` in a process of its own: its peak is its own, and its memory is free afterwards."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(throughput, (spec, micro, "default", seconds))


def packed(count: int, spec: RunSpec, mode: str, seconds: float) -> float:
    """Tokens a second of `count` processes on the card together."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=_answer, args=(answers, spec, mode, seconds, ready), daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    return sum(answers.get() for _ in processes)


def _answer(answers, spec: RunSpec, mode: str, seconds: float, ready) -> None:
    answers.put(throughput(spec, spec.batch_sequences, mode, seconds, ready)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=524_288, help="tokens in an update of the large model")
    parser.add_argument("--micro", type=int, default=32, help="its sequences at once")
    parser.add_argument("--packed", type=int, default=4, help="most small runs side by side")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured. Run this on a machine with one GPU.", file=sys.stderr)
        sys.exit(2)
    name = torch.cuda.get_device_name()
    peak = next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)
    print(f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    large, small = spec_of(LARGE, arguments.batch), spec_of(SMALL, 16_384)
    print(f"{'N total':>12} {'mode':>16} {'runs':>5} {'tokens/s':>12} {'of peak':>8} {'memory':>10}")
    speed, memory = alone_in_a_process(large, arguments.micro, arguments.seconds)
    share = f"{speed * count_flops(LARGE).attention_and_head / peak:8.0%}" if peak else f"{'?':>8}"
    print(f"{count_parameters(LARGE).total:12,} {'default':>16} {1:5} {speed:12,.0f} {share} {memory / 2**30:8.2f}Gi")
    alone = None
    for mode in ("default", "reduce-overhead"):
        for count in [c for c in (1, 2, 4, 8) if c <= arguments.packed]:
            speed = packed(count, small, mode, arguments.seconds / 2)
            alone = alone or speed
            print(f"{count_parameters(SMALL).total:12,} {mode:>16} {count:5} {speed:12,.0f} {speed / alone:7.2f}x")
    predicted = predict_memory(arguments.micro)
    print(f"peak memory of the large model: {memory / 2**30:.2f} Gi, predicted {predicted / 2**30:.2f} Gi "
          f"({predicted / memory - 1:+.0%})")


def predict_memory(micro: int) -> float:
    """What the planner says of the large model from models of half and one and a half times its width."""
    timings = []
    for width in (384, 1152):
        shape = DecoderShape(12, width, width // 64, 8 * width // 3 // 64 * 64, 50_304, 1024, tied=True)
        spec = spec_of(shape, micro * shape.seq_len)
        speed, peak = alone_in_a_process(spec, micro, 2.0)
        per_token = count_flops(shape).exact
        timings.append(Timing(per_token, spec.batch_tokens, spec.batch_tokens / speed, 1 / speed, peak))
    measured = Measurement(0.0, "cuda", tuple(timings))
    return run_cost(PlannedRun(spec_of(LARGE, micro * LARGE.seq_len), ""), measured, 0).peak_bytes


if __name__ == "__main__":
    main()
