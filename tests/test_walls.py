"""The walls between the parts, as imports: what a module may know of the others."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("models", "sweep", "analysis")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
}


@lru_cache(maxsize=None)
def imports(module: str, *, late: bool = True) -> frozenset[str]:
    """Every module named by an import statement of `module`, by its full name; those inside functions
    count if `late`."""
    found = set()
    left: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full, not relative"
            full = [f"{node.module}.{name.name}" for name in node.names]
            found.update(name if name in MODULES else node.module for name in full)
    return frozenset(found)


@lru_cache(maxsize=None)
def reached(module: str) -> frozenset[str]:
    """All that `module` imports itself, early or late, and all that comes along when it is imported."""
    return imports(module) | loaded_with(module)


@lru_cache(maxsize=None)
def loaded_with(module: str) -> frozenset[str]:
    """What importing `module` imports in turn; a package's __init__ counts for those outside of it."""
    seen, left = set(), [module]
    while left:
        here = left.pop()
        for name in imports(here, late=False):
            package = name.rpartition(".")[0]
            for found in (name, package) if package and not inside(here, package) else (name,):
                if found not in seen:
                    seen.add(found)
                    left += [found] if found in MODULES else []
    return frozenset(seen)


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def assert_wall(modules, forbidden: tuple[str, ...], names=reached, but: tuple[str, ...] = ()) -> None:
    broken = {
        module: sorted(over)
        for module in modules
        if not inside(module, *but) and (over := {name for name in names(module) if inside(name, *forbidden)})
    }
    assert broken == {}


def part(*packages: str) -> list[str]:
    modules = [module for module in MODULES if inside(module, *packages)]
    assert modules, packages
    return modules


STAGES = ("sweep.refusals", "sweep.experiment", "sweep.preparation", "sweep.pricing", "sweep.state")


def test_models_know_nothing_of_sweeps():
    assert_wall(part("models"), ("sweep", "analysis", "omegaconf", "hydra", "wandb"))


def test_the_plan_knows_nobody_above_it_and_needs_no_torch():
    above = ("sweep.data", "sweep.train", "sweep.execute", *STAGES, "analysis")
    assert_wall(part("sweep.plan"), (*above, "torch", "wandb", "hydra"))


def test_data_know_no_spec():
    """Of the plan they know how many sequences an update takes, which is arithmetic and imports nothing."""
    planning = [name for name in part("sweep.plan") if name not in ("sweep.plan", "sweep.plan.batch")]
    above = ("sweep.train", "sweep.execute", "models", "analysis", "torch")
    assert_wall(part("sweep.data"), (*planning, *above))


def test_training_knows_neither_execution_nor_analysis_nor_configuration():
    above = (
        "sweep.execute",
        *STAGES,
        "sweep.plan.schema",
        "analysis",
        "hydra",
        "omegaconf",
        "wandb",
    )
    assert_wall(part("sweep.train", "sweep.worker"), above)


def test_execution_starts_workers_and_never_imports_them():
    assert_wall(
        part("sweep.execute"), ("sweep.train", "sweep.worker", "torch", "analysis", "hydra", "omegaconf")
    )


def test_analysis_stands_alone():
    assert_wall(part("analysis"), ("torch", "wandb", "models", "sweep", "hydra"), but=("analysis.__main__",))


def test_only_the_reports_draw_and_only_the_entry_point_knows_hydra():
    statistics = [module for module in part("analysis") if not inside(module, "analysis.report")]
    assert_wall(statistics, ("matplotlib", "jinja2"), names=imports)
    third_party = {name.partition(".")[0] for module in statistics for name in imports(module)}
    known = {*sys.stdlib_module_names, "analysis", "numpy", "scipy"}
    # hydra in __main__, as the next test holds; pyarrow where a table of runs is a Parquet file
    assert third_party - known <= {"hydra", "omegaconf", "pyarrow"}
    assert_wall(statistics, ("pyarrow",), names=imports, but=("analysis.table",))


@pytest.mark.parametrize(
    "library, allowed",
    [
        ("omegaconf", ("sweep.plan.schema", "sweep.__main__", "analysis.__main__")),
        ("hydra", ("sweep.__main__", "analysis.__main__")),
    ],
)
def test_configuration_stops_at_the_entry_points(library, allowed):
    assert_wall(MODULES, (library,), names=imports, but=allowed)


def test_wandb_is_known_to_one_place():
    assert_wall(MODULES, ("wandb",), names=imports, but=("sweep.execute",))


def test_nothing_imports_in_a_circle():
    assert [module for module in MODULES if module in loaded_with(module)] == []


@pytest.mark.parametrize(
    "module, absent",
    [
        ("analysis", ("torch", "wandb", "models", "sweep", "hydra")),
        ("analysis.sweep", ("torch", "wandb", "models", "sweep", "hydra")),
        ("sweep.plan.plan", ("torch", "wandb", "sweep.data", "sweep.train", "sweep.execute", "hydra")),
        ("sweep.__main__", ("torch", "wandb", "scipy", "matplotlib", "datasets")),
        ("sweep.experiment", ("torch", "wandb", "datasets")),
        ("sweep.execute.coordinator", ("torch", "wandb")),
        ("sweep.worker", ("torch", "wandb", "numpy")),
    ],
)
def test_a_fresh_interpreter_loads_no_more_than_it_may(module, absent):
    program = f"import sys, {module}; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(found.stdout.split())
    assert module in loaded
    assert loaded & set(absent) == set()
