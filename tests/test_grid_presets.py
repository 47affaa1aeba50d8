"""Every grid in conf/grid is planned at both scales within what it may cost; and one of a user's own, as docs say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.studies import load
from models.count import count_parameters
from sweep.plan.grids import cells, target_cell
from sweep.plan.plan import Corpus, plan
from sweep.plan.schema import ConfigError

ROOT = Path(__file__).resolve().parent.parent
VOCAB = {"cpu": 257, "gpu": 32768}


def planned(config):
    vocab = VOCAB[config.scale.name]
    target = target_cell(config, vocab)
    return plan([*cells(config, vocab), *([target] if target else [])], Corpus("f00d", vocab, 10**14))


@pytest.mark.parametrize("grid", ["noise", "shape", "gpt4"])
def test_a_cpu_scale_takes_what_two_cores_do_in_a_quarter_of_an_hour_and_a_gpu_scale_is_10m_to_500m(
    compose, grid
):
    runs = planned(compose("scale=cpu", f"+grid={grid}"))
    assert (
        sum(run.spec.flops for run in runs) < 1.6e13
    )  # 2 cores at some 20 GFLOP/s for 15 minutes are 3.6e13
    assert len({run.run_id for run in runs}) == len(runs)
    assert min(run.spec.steps for run in runs) > 100  # fewer are in no fit
    config = compose("scale=gpu", f"+grid={grid}")
    assert config.grid.studies == [grid] and load(grid)
    largest = max(count_parameters(run.spec.shape).non_embedding for run in planned(config))
    assert 1e7 < largest < 5.1e8


def test_the_noise_grid_varies_one_seed_at_a_time(compose):
    runs = planned(compose("scale=cpu", "+grid=noise"))
    first = [(run.spec.seed, run.spec.order_seed) for run in runs[:9]]
    assert first == [(0, None), *((s, 0) for s in (1, 2, 3, 4)), *((0, s) for s in (1, 2, 3, 4))]
    assert len({run.spec.shape for run in runs}) == 2 and len({run.spec.tokens for run in runs}) == 2


def test_the_shape_grid_holds_n_and_leaves_the_head_out_of_it(compose):
    for scale in ("cpu", "gpu"):
        runs = planned(compose(f"scale={scale}", "+grid=shape"))
        counts = [count_parameters(run.spec.shape) for run in runs if "params" not in run.group]
        base = counts[0].non_embedding
        assert all(count.head == 0 for count in counts)
        held = [count for count in counts if 0.8 < count.non_embedding / base < 1.25]
        assert len(held) == len(counts) - 6  # three other sizes of two seeds
    with pytest.raises(ConfigError, match="grid.each: params: a list"):
        planned(compose("scale=cpu", "+grid=shape", "grid.each.params=3"))


def test_baichuan_2_s_ladder_has_the_counts_of_its_table_10(compose):
    runs = planned(compose("scale=gpu", "+grid=baichuan2"))
    counts = [count_parameters(run.spec.shape) for run in runs]
    found = [(count.non_embedding - count.head) / 1e6 for count in counts]
    # Yang et al. 2023 (arXiv 2309.10305), table 10, in millions
    assert found[:-1] == pytest.approx([11.51, 51.56, 108.01, 307.60, 835.00, 1565.60, 3019.33], abs=0.006)
    assert all(run.spec.tokens == pytest.approx(1e12, rel=1e-4) for run in runs[:-1])
    assert counts[-1].non_embedding - counts[-1].head == 6_476_271_616  # Baichuan2-7B's own layers and norms


def test_mindllm_s_ladder_is_five_models_between_10m_and_500m(compose):
    runs = planned(compose("scale=gpu", "+grid=mindllm"))
    sizes = [count_parameters(run.spec.shape).non_embedding for run in runs]
    assert (
        len(runs) == 6
        and sizes[0] == pytest.approx(1e7, rel=0.2)
        and sizes[4] == pytest.approx(5e8, rel=0.01)
    )
    assert sizes[5] == pytest.approx(3.1e9, rel=0.05) and runs[5].spec.tokens == pytest.approx(5e11, rel=0.1)


@pytest.mark.parametrize(
    "override, message",
    [
        ("grid.shapes=[[2,64,2]]", r"grid.shapes: \[2, 64, 2\]"),
        ("grid.shapes=[[2,64,3,128]]", "not a multiple of n_head=3"),
        ("grid.sizes=[1e7]", "give sizes or shapes"),
    ],
)
def test_shapes_that_are_none_are_refused(compose, override, message):
    with pytest.raises(ConfigError, match=message):
        planned(compose("scale=gpu", "+grid=baichuan2", override))


def sweep(cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}"}
    command = [sys.executable, "-m", "sweep", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_a_grid_of_one_s_own_as_docs_say(tmp_path):
    text = (ROOT / "docs" / "add_a_grid.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 32
    yaml, python = re.findall(r"```(?:yaml|python)\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "my" / "grid").mkdir(parents=True)
    (tmp_path / "my" / "grid" / "depth.yaml").write_text(yaml)
    (tmp_path / "my" / "depth.py").write_text(python)
    command = re.search(r"^    python -m sweep (.*)$", text, flags=re.MULTILINE).group(1).split()
    tiny = ["scale=cpu", "device=cpu", "data=synthetic", "data.vocab_size=64", "data.cache=cache", "data.eval_tokens=1024",
            "data.heldout_fraction=0.3", "model.seq_len=32", "grid.params=4e3", "grid.tokens=1.6e4", "out=out",
            "optim.batch_tokens=128", "optim.batch_exponent=0", "logger=none", "executor.evaluations=0",
            "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.03"]  # fmt: skip
    done = sweep(tmp_path, *command, *tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Depth: " in done.stdout and "layers are best." in done.stdout
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "layers are best." in page and "worst depth against the best" in page
    stored = json.loads((tmp_path / "out" / "report" / "fits.json").read_text())["findings"]
    assert stored[0]["study"] == "my.depth"

    refused = sweep(tmp_path, *command, *tiny, "grid.studies=[my.width]", "out=other")
    assert refused.returncode == 2 and "studies: my.width: there is no such study" in refused.stderr
    assert not (tmp_path / "other").exists()
