from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from models.count import count_flops
from sweep.plan.spec import PlannedRun, RunSpec, digest

OTHER_SHAPE = {
    "n_layer": 3,
    "d_model": 32,
    "n_head": 4,
    "d_ff": 48,
    "vocab_size": 33,
    "seq_len": 17,
    "activation": "gelu",
    "qk_norm": False,
    "tied": True,
}


def leaves(value, path=()):
    """Every field that is no dataclass, as (path, value)."""
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if dataclasses.is_dataclass(part):
            yield from leaves(part, (*path, field.name))
        else:
            yield (*path, field.name), part


def replaced(value, path, new):
    name, *rest = path
    return dataclasses.replace(value, **{name: replaced(getattr(value, name), rest, new) if rest else new})


def changed(path, old):
    if path[0] == "shape":
        return OTHER_SHAPE[path[1]]
    if old is None:
        return 1
    return old + "x" if isinstance(old, str) else old * 2 + 1


def test_every_single_field_is_in_the_run_s_id(tiny_spec):
    spec = tiny_spec()
    ids = {(): spec.run_id}
    for path, old in leaves(spec):
        assert changed(path, old) != old
        ids[path] = replaced(spec, path, changed(path, old)).run_id
    assert len(ids) == 1 + 9 + 2 + 13 + 5 + 7
    assert len(set(ids.values())) == len(ids)


def test_the_id_is_the_same_in_every_process_and_twelve_digits_long(tiny_spec):
    spec = tiny_spec()
    program = (
        "import json, sys; from sweep.plan.spec import RunSpec; "
        "print(RunSpec.from_json(json.load(sys.stdin)).run_id)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(spec.to_json()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == spec.run_id
    assert len(spec.run_id) == 12 and int(spec.run_id, 16) >= 0


def test_group_and_role_are_not_in_the_id(tiny_spec):
    runs = [PlannedRun(tiny_spec(), group, role) for group in ("a", "b") for role in ("fit", "holdout")]
    assert {run.run_id for run in runs} == {tiny_spec().run_id}


def test_it_comes_back_from_json_as_it_was(tiny_spec):
    spec = tiny_spec(seed=2**40, optim={"lr": 0.1 + 0.2})
    again = RunSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.run_id == spec.run_id and hash(again) == hash(spec)


@pytest.mark.parametrize("part", ["optim", None])
def test_json_with_an_unknown_or_a_missing_field_is_refused(tiny_spec, part):
    for damage in (lambda fields: fields.update(colour=1), lambda fields: fields.popitem()):
        fields = tiny_spec().to_json()
        damage(fields[part] if part else fields)
        with pytest.raises(TypeError):
            RunSpec.from_json(fields)


def test_flops_are_tokens_times_the_count_for_one(tiny_spec):
    spec = tiny_spec(steps=7, batch_sequences=5)
    assert spec.batch_tokens == 5 * spec.shape.seq_len
    assert spec.tokens == 7 * spec.batch_tokens
    assert spec.flops == spec.tokens * count_flops(spec.shape).exact


def test_the_digest_knows_values_and_not_their_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"a": "2"})
    with pytest.raises(ValueError):
        digest({"a": float("nan")})
