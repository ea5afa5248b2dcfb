"""The scripts of benchmarks/ at a tiny size; what needs more packages than the tests runs under `make docs-check`."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import pytest

import stagjax.host_memory
from stagjax.data.layout import list_shards
from stagjax.data.preparing import Settings, prepare
from stagjax.training import loop
from tests.data.pile import write_pile
from tests.data.test_preparing import Watcher
from tests.runs import FIELDS, write_corpus

ROOT = pathlib.Path(__file__).parent.parent
# Script -> where it is run at a tiny size: the test here, another file, or `make docs-check`.
RUN_IN = {
    "peers": "test_our_side_of_peers",
    "loop_cost": "test_loop_cost",
    "read_rows": "test_read_rows",
    "referee": "tests/test_referee.py",
    "harness": "docs-check",
    "harness_model": "docs-check",
    "hugging_face_twin": "docs-check",
}


def test_every_script_is_run_somewhere():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == RUN_IN.keys()
    for where in RUN_IN.values():
        assert where in globals() or where == "docs-check" or (ROOT / where).exists()


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_our_side_of_peers(monkeypatch):
    monkeypatch.setattr(stagjax.host_memory, "keep_host_memory", lambda: None)  # of this process, for all other tests
    peers = load("peers")
    tasks = peers._stagjax_tasks(1, peers.TINY)
    assert tasks.keys() == {"decode", "decode_two_stacks", "train"}
    for name in ("decode_two_stacks", "train"):  # "decode" is the first of them with one stack
        run = tasks[name]()
        run()
        run()  # The state of the first call is donated to the second.


def test_loop_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "_Run", loop._Run)
    fields = FIELDS | {"data.path": write_corpus(tmp_path)}
    spec = ",".join(f"{name}={value}" for name, value in fields.items())
    load("loop_cost").main(f"experiments/stdlib.py:baseline_3,runlocal,{spec}", 1, 1)
    lines = capsys.readouterr().out.splitlines()
    assert sum("ms a step" in line for line in lines) == 3 and "the loop" in lines[-1]


def test_read_rows(tmp_path, capsys):
    write_pile(tmp_path / "in", shards=1, number=20)
    prepare(list_shards(str(tmp_path / "in"), None), Settings("bytes", 32, 0, True), tmp_path / "out", Watcher())
    load("read_rows").main(str(tmp_path / "out"), 4, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["rows", "batches"] and "Mtok a second" in lines[0]


@pytest.mark.parametrize("arguments", [["harness.py", "--data=none"], ["peers.py"]])
def test_what_is_not_installed_is_named(arguments):
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed")
    command = [sys.executable, f"benchmarks/{arguments[0]}", *arguments[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("not installed: pip install .[benchmarks]\n"), done.stderr


def test_a_state_made_without_jit_can_be_donated():
    """No two of its leaves are one buffer."""
    from stagjax.config import Config, DataConfig, TrainingConfig
    from stagjax.training.state import state_around
    from tests.variants import tiny

    config = Config(tiny(), DataConfig(), TrainingConfig())
    leaves = jax.tree.leaves(state_around(config, {"w": jax.numpy.zeros(3)}))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves) > 5
