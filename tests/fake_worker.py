"""A worker that keeps sweep.worker's contract without training: `fake_worker.py RUN_DIR`.

What it does is in the request: execution.act, one of ACTS; execution.seconds, how long it "trains".
"""

import fcntl
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

STEPS = 20
stop_asked = False


def main():
    folder = Path(sys.argv[1])
    request = json.loads((folder / "spec.json").read_text())
    execution = request["execution"]
    lock = open(folder / "worker.lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": "now"}))
    lock.flush()
    with open(folder / "starts", "a") as starts:
        gpu, threads = os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]
        starts.write(f"{os.getpid()} {gpu} {threads}\n")
    print("fake worker", request["run_id"], flush=True)
    parent = os.getppid()
    signal.signal(signal.SIGTERM, ask_stop)
    checkpoint = folder / "checkpoint"
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    act = ACTS[execution["act"]]
    for step in range(begin + 1, STEPS + 1):
        time.sleep(execution["seconds"] / STEPS)
        write_metrics(folder, request["spec"], step)
        checkpoint.write_text(str(step))
        act(folder, request, step, resumed=begin > 0)
        if execution["act"] != "deaf" and (stop_asked or os.getppid() != parent):
            sys.exit(75)
    write_result(folder, request, "finished", STEPS, loss=2.5, loss_se=0.01)


def ask_stop(number, frame):
    global stop_asked
    stop_asked = True


def succeed(folder, request, step, resumed):
    pass


def die_once(folder, request, step, resumed):
    if step == 10 and not resumed:
        os.kill(os.getpid(), signal.SIGKILL)


def hang_once(folder, request, step, resumed):
    if step == 10 and not resumed:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def hang(folder, request, step, resumed):
    time.sleep(600)


def always_die(folder, request, step, resumed):
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def stop_once(folder, request, step, resumed):
    if step == 10 and not resumed:
        sys.exit(75)


def stop_unlogged_once(folder, request, step, resumed):
    if not resumed:
        (folder / "metrics.jsonl").write_text("")
        sys.exit(75)


def stop_without_moving(folder, request, step, resumed):
    (folder / "metrics.jsonl").write_text("")
    (folder / "checkpoint").unlink()
    sys.exit(75)


def leave_without_result(folder, request, step, resumed):
    sys.exit(0)


def fail(folder, request, step, resumed):
    write_result(folder, request, "failed", step, reason="ValueError: no such thing", traceback="...")
    sys.exit(0)


def diverge(folder, request, step, resumed):
    write_result(folder, request, "diverged", step, reason="loss is not finite")
    sys.exit(0)


def outgrow_memory(folder, request, step, resumed):
    """Be killed as by the kernel, which counts it, while more than execution.fits sequences go at once."""
    execution = request["execution"]
    if execution["micro_batch_sequences"] > execution["fits"]:
        counts = Path(execution["counts"])
        counts.write_text(f"pgfault 17\noom_kill {int(counts.read_text().split()[-1]) + 1}\n")
        os.kill(os.getpid(), signal.SIGKILL)


def cut_result_off(folder, request, step, resumed):
    if not resumed:
        (folder / "result.json").write_text('{"run_id": "' + request["run_id"] + '", "status": "finis')
        os.kill(os.getpid(), signal.SIGKILL)


ACTS = {
    "succeed": succeed,
    "die_once": die_once,
    "always_die": always_die,
    "hang_once": hang_once,
    "hang": hang,
    "stop_once": stop_once,
    "stop_unlogged_once": stop_unlogged_once,
    "stop_without_moving": stop_without_moving,
    "leave_without_result": leave_without_result,
    "fail": fail,
    "diverge": diverge,
    "cut_result_off": cut_result_off,
    "outgrow_memory": outgrow_memory,
    "deaf": succeed,
}


def write_metrics(folder, spec, step):
    tokens = step * spec["steps"] * spec["batch_sequences"] * spec["shape"]["seq_len"] // STEPS
    line = {"step": step, "tokens": tokens, "flops": tokens * 1e3, "loss": 5 - step / 10, "lr": 0.01,
            "grad_norm": 1.0, "seconds": 0.1 * step}  # fmt: skip
    with open(folder / "metrics.jsonl", "a") as metrics:
        metrics.write(json.dumps(line) + "\n")


def write_result(folder, request, status, step, **values):
    spec = request["spec"]
    tokens = spec["steps"] * spec["batch_sequences"] * spec["shape"]["seq_len"] * step // STEPS
    result = {"run_id": request["run_id"], "status": status, "reason": None, "step": step, "tokens": tokens,
              "flops": tokens * 1e3, "flops_6nd": tokens * 9e2, "wall_seconds": 1.5, **values}  # fmt: skip
    temporary = folder / "result.tmp"
    temporary.write_text(json.dumps(result))
    os.replace(temporary, folder / "result.json")


if __name__ == "__main__":
    main()
