"""The structure: imports go one way, and what is heavy is loaded only where it is needed."""

import ast
import pathlib
import subprocess
import sys

import pytest

from tests.waits import HANG

ROOT = pathlib.Path(__file__).parent.parent / "stagjax"

# Lower may not import higher. What stands on one level may import each other.
LEVELS = [
    {
        *("bucket", "errors", "files", "host_memory", "hardware", "hosts", "libtpu", "local_processes", "printable"),
        *("memory", "rules", "streams", "__init__"),
    },
    {"config", "config_rules"},
    {"experiment", "division", "mesh", "sharding"},
    {"distributed", "fingerprint"},
    {"model", "data"},
    {"decoding", "reporting", "workdir"},
    {"checkpoints"},
    {"library", "training", "tasks"},
    {"evaluation", "exporting"},
    {"bench"},
    {"cli", "__main__"},
]


def level(module):
    part = module.split(".")[1] if "." in module else "__init__"
    return next((n for n, names in enumerate(LEVELS) if part in names), None)


def imports(path):
    """Yield every stagjax module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stagjax":
            yield from (
                [f"stagjax.{alias.name}" for alias in node.names] if node.module == "stagjax" else [node.module]
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "stagjax")


def test_imports_go_one_way():
    arrows = 0
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("stagjax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        if name == "stagjax":
            continue  # its lazy attributes reach up on purpose
        assert level(name) is not None, f"{name} has no level; give it one"
        for imported in imports(path):
            if imported == "stagjax.__version__":
                continue
            arrows += 1
            assert level(imported) <= level(name), f"{name} imports {imported}, which stands above it"
    assert arrows > 50


def test_training_imports_neither_decoding_nor_tasks():
    for path in (ROOT / "training").glob("*.py"):
        assert not {module.split(".")[1] for module in imports(path)} & {"decoding", "tasks", "cli", "library"}, path


def test_only_tasks_import_seqio_and_tensorflow_datasets():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {name.split(".")[0] for name in names} & {"seqio", "tensorflow", "tensorflow_datasets"}:
                assert path.parent.name == "tasks", path


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("stagjax", {"jax", "tensorflow", "numpy"}),
        (
            "stagjax.cli, stagjax.cli.train, stagjax.cli.generate, stagjax.cli.info, stagjax.cli.demo, "
            "stagjax.cli.checkpoint",
            {"jax", "tensorflow"},
        ),
        ("stagjax.config, stagjax.host_memory", {"jax", "tensorflow"}),
        (
            "stagjax.library, stagjax.training.loop, stagjax.reporting.plots",
            {"tensorflow", "seqio", "matplotlib", "torch"},
        ),
        (
            "stagjax.tasks.catalog, stagjax.cli.evaluate; stagjax.tasks.catalog.all_benchmarks()",
            {"jax", "tensorflow", "seqio", "tensorflow_datasets"},
        ),
    ],
)
def test_heavy_packages_stay_out(modules, absent):
    code = f"import sys, {modules}; print(*sorted({absent!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANG)
    assert loaded.stdout.strip() == ""
