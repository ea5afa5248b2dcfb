"""Start-up: whom a process joins, and threads for forced devices."""

import os
import subprocess
import sys

import jax
import pytest

from stagjax import distributed, libtpu
from stagjax.decoding.placement import make_placement
from stagjax.mesh import DecodeMesh
from tests.variants import tiny


@pytest.fixture
def joined(monkeypatch):
    """Return the list of arguments with which `jax.distributed.initialize` was called."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_process_alone_joins_nobody(joined):
    distributed._join_cluster()
    assert joined == []


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_task_of_several_joins_the_others(name, joined, monkeypatch):
    monkeypatch.setenv(name, "1")
    distributed._join_cluster()
    assert joined == []
    monkeypatch.setenv(name, "4")
    distributed._join_cluster()
    assert joined == [()]


def test_the_hosts_of_a_tpu_slice_join_each_other(joined, monkeypatch):
    monkeypatch.setattr(libtpu, "has_tpus", lambda: True)
    distributed._join_cluster()
    assert joined == [()]


def test_tpus_of_no_cluster_are_used_alone_but_tasks_are_not(joined, monkeypatch):
    def unknown():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", unknown)
    monkeypatch.setattr(libtpu, "has_tpus", lambda: True)
    distributed._join_cluster()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ValueError, match="coordinator_address"):
        distributed._join_cluster()


@pytest.mark.parametrize(
    ("flags", "threads"), [("", None), ("--xla_force_host_platform_device_count=8 --other=1", "32")]
)
def test_forced_devices_get_threads(flags, threads, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", "")
    monkeypatch.delenv("NPROC")
    distributed._give_forced_devices_threads()
    assert distributed.os.environ.get("NPROC") == threads


def test_who_takes_part_in_a_mesh():
    mesh = make_placement(tiny(), DecodeMesh(stack=2, tensor=2)).mesh
    assert distributed.takes_part(mesh)
    distributed.barrier("nobody else to wait for")


def test_a_machine_without_tpus_can_profile_whatever_libtpu_is_installed(tmp_path):
    code = (
        "import sys, jax; from stagjax.distributed import start_up; start_up(); jax.profiler.start_trace(sys.argv[1]); "
        "jax.numpy.ones(3).block_until_ready(); jax.profiler.stop_trace()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    line = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(line, env=environment, capture_output=True, timeout=60).returncode == 0
    assert list(tmp_path.rglob("*.xplane.pb"))
