"""Start-up: whom a process joins, and threads for forced devices."""

import os
import subprocess
import sys

import pytest

from stagjax import distributed, libtpu
from stagjax.decoding.placement import make_placement
from stagjax.errors import UserError
from stagjax.hosts.hub import BEAT_SECONDS, SILENCE_SECONDS
from stagjax.hosts.place import Place
from stagjax.mesh import DecodeMesh
from tests.variants import tiny
from tests.waits import HANG

FORCED = "--xla_force_host_platform_device_count"


@pytest.fixture
def cluster(monkeypatch):
    """Say what JAX finds out about the cluster; return the list of the times that it was asked."""
    asked = []
    monkeypatch.setattr(
        "jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params",
        lambda *args: asked.append(args) or ("host:8476", 4, 3, None),
    )
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_a_process_alone_joins_nobody(cluster):
    assert distributed._detected() is None
    assert cluster == []


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_task_of_several_joins_the_others(name, cluster, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert distributed._detected() is None
    monkeypatch.setenv(name, "4")
    assert distributed._detected() == Place(3, 4, "host:8476")


def test_the_hosts_of_a_tpu_slice_join_each_other(cluster, monkeypatch):
    monkeypatch.setattr(libtpu, "has_tpus", lambda: True)
    assert distributed._detected() == Place(3, 4, "host:8476")


def test_a_silent_process_is_noticed_here_before_jax_aborts_the_others():
    assert distributed._JAX_SILENCE_SECONDS / 2 > SILENCE_SECONDS + 2 * BEAT_SECONDS


def test_what_jax_is_asked_exists():
    # Outside of any cluster it knows nothing; that there is something to ask, with these arguments, is what counts.
    assert distributed._ask_jax() == (None, None, None)


def test_tpus_of_no_cluster_are_used_alone_but_tasks_are_not(monkeypatch):
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    monkeypatch.setattr(distributed, "_ask_jax", lambda: (None, None, None))
    monkeypatch.setattr(libtpu, "has_tpus", lambda: True)
    assert distributed._detected() is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match="started with others, but JAX does not find out who they are"):
        distributed._detected()


def test_hosts_have_equally_many_devices():
    distributed._check_devices([4, 4, 4])
    with pytest.raises(UserError, match=r"2 \(process 1\), 4 \(process 0, 2-3\); use hosts of one kind"):
        distributed._check_devices([4, 2, 4, 4])


def test_who_met_is_said_in_one_line():
    line = distributed._introduction(["a", "a"], 4, {"training.seed": "0"})
    assert line.startswith("2 processes on 1 host, 4 devices each; config and options ")
    assert ", jax 0." in line and "libtpu missing" not in line
    assert line == distributed._introduction(["a", "a"], 4, {"training.seed": "0"})
    assert line != distributed._introduction(["a", "a"], 4, {"training.seed": "1"})
    assert distributed._introduction(["a", "b"], 4, {}).startswith("2 processes on 2 hosts, ")


def test_a_process_alone_agrees_with_itself():
    assert distributed.gather("topic", {"a": 1}) == [{"a": 1}]
    distributed.agree("topic", {"a": "1"})
    assert distributed.stop_here(None) is None
    assert distributed.stop_here(15) == 15
    distributed.part()


@pytest.mark.parametrize(
    ("flags", "threads"),
    [("", None), (f"{FORCED}=8 --other=1", "32"), (f"{FORCED}=2 {FORCED}=8", "32"), (f"{FORCED}=1", None)],
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
    assert subprocess.run(line, env=environment, capture_output=True, timeout=HANG).returncode == 0
    assert list(tmp_path.rglob("*.xplane.pb"))
