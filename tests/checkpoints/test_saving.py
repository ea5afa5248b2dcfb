import functools
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stagjax.checkpoints import stored
from stagjax.checkpoints.saving import Checkpoints, content_key, fingerprint
from stagjax.errors import RunFailed, UserError
from tests.compiling import environment

CONFIG = {"model": {"model_dim": 8}, "training": {"steps": 3}}
MANIFEST = {"vocabulary": "abc"}


def make_state(seed=0, rows=50):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "embedding": jax.random.normal(keys[0], (rows, 8)),
        "blocks": {"gate": jax.random.normal(keys[1], (2, 3, 8), jnp.bfloat16)},
    }
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(seed)}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save_all(workdir, losses, keep_last=10):
    """Save {step: validation loss}, each step with a state made from it."""
    checkpoints = Checkpoints(workdir, keep_last)
    for step, loss in losses.items():
        checkpoints.save(step, make_state(step), CONFIG, MANIFEST, loss)
    checkpoints.close()


def opened(workdir, keep_last=10, **arguments):
    warnings = []
    return Checkpoints(workdir, keep_last, warn=warnings.append, **arguments), warnings


def test_state_and_metadata_come_back(tmp_path):
    save_all(tmp_path, {10: 2.5})
    checkpoints, warnings = opened(tmp_path)
    state, metadata = checkpoints.restore(abstract(make_state()))
    assert_same(state, make_state(10))
    assert metadata["step"] == 10
    assert metadata["config"] == CONFIG
    assert metadata["manifest"] == MANIFEST
    assert metadata["metrics"] == {"validation_loss": 2.5}
    assert metadata["arrays"]["params/blocks/gate"] == "bfloat16[2,3,8]"
    assert metadata["fingerprint"] == fingerprint(state)
    assert checkpoints.read_metadata(10) == metadata
    assert warnings == []


def test_params_alone(tmp_path, monkeypatch):
    save_all(tmp_path, {10: 2.5, 20: 1.5, 30: 2.0})
    checkpoints, _ = opened(tmp_path, read_only=True)
    read = []
    monkeypatch.setattr(stored, "fingerprint", lambda tree: read.append(tree) or fingerprint(tree))
    for wanted, step in (("latest", 30), ("best", 20), (10, 10)):
        params, metadata = checkpoints.restore_params(wanted)
        assert_same(params, make_state(step)["params"])
        assert metadata["step"] == checkpoints.read_metadata(wanted)["step"] == step
        assert params["embedding"].devices() == {jax.devices()[0]}
    assert all(list(tree) == ["params"] for tree in read)


@pytest.mark.parametrize(
    ("losses", "keep_last", "kept", "best"),
    [
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, 1, [2, 4], 2),
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 0.5}, 2, [3, 4], 4),
        ({1: 3.0, 2: None, 3: 4.0, 4: None, 5: None}, 2, [1, 3, 4, 5], 1),
        ({1: None, 2: None, 3: None}, 1, [3], None),
        ({1: float("nan"), 2: 7.0, 3: float("-inf"), 4: 8.0}, 1, [2, 4], 2),
        ({1: 1.0, 2: 1.0, 3: 2.0}, 1, [2, 3], 2),
    ],
)
def test_newest_and_best_are_kept(tmp_path, losses, keep_last, kept, best):
    save_all(tmp_path, losses, keep_last)
    checkpoints, _ = opened(tmp_path)
    assert checkpoints.steps() == kept
    assert checkpoints.best() == best
    assert checkpoints.latest() == kept[-1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(map(str, kept))


def test_every_mth_is_kept_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1, keep_every=3)
    for step in range(1, 9):
        checkpoints.save(step, make_state(step), CONFIG, MANIFEST, 10.0 - step, [(4, 6)])
    checkpoints.close()
    assert opened(tmp_path)[0].steps() == [3, 6, 8]
    assert opened(tmp_path)[0].read_metadata()["skipped_batches"] == [[4, 6]]


def test_the_newest_validated_checkpoint_is_passed_over_where_it_is_damaged_only(tmp_path):
    save_all(tmp_path, {10: 2.0, 20: 1.0, 30: None})
    assert opened(tmp_path)[0].restore(abstract(make_state()))[1]["step"] == 30
    assert opened(tmp_path)[0].restore(abstract(make_state()), validated=True)[1]["step"] == 20
    shutil.rmtree(tmp_path / "checkpoints" / "20" / "metadata")
    checkpoints, warnings = opened(tmp_path)
    assert checkpoints.restore(abstract(make_state()), validated=True)[1]["step"] == 10
    assert len(warnings) == 1 and "20 is damaged" in warnings[0]
    save_all(tmp_path / "other", {30: None})
    assert opened(tmp_path / "other")[0].restore(abstract(make_state()), validated=True) is None


def test_checking_reports_a_save_that_failed_and_waits_for_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, make_state(1), CONFIG, MANIFEST, 1.0)
    checkpoints.wait()
    checkpoints.check()
    checkpoints.save(2, make_state(2), CONFIG, MANIFEST, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._writer, "wait_until_finished", lambda: pytest.fail("it waited"))
        checkpoints.check()
    monkeypatch.setattr(checkpoints._writer._async_manager, "_exception", OSError("Input/output error"))
    with pytest.raises(RunFailed, match="checkpoint 2 could not be written to .*: input/output error; the last good"):
        checkpoints.check()
    checkpoints.check()
    checkpoints.close()


def test_saving_a_step_again_changes_nothing(tmp_path):
    save_all(tmp_path, {10: 1.0})
    checkpoints, _ = opened(tmp_path)
    checkpoints.save(10, make_state(11), CONFIG, MANIFEST, 5.0)
    checkpoints.close()
    state, metadata = opened(tmp_path)[0].restore(abstract(make_state()))
    assert_same(state, make_state(10))
    assert metadata["metrics"]["validation_loss"] == 1.0


def test_nothing_there(tmp_path):
    checkpoints, _ = opened(tmp_path / "new", read_only=True)
    assert not (tmp_path / "new").exists()
    assert checkpoints.restore(abstract(make_state())) is None
    assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
    for step in (None, "latest", "best", 3):
        with pytest.raises(UserError, match="there is no checkpoint in .*; train first"):
            checkpoints.restore_params(step)
    with pytest.raises(ValueError, match="opened for reading"):
        checkpoints.save(1, make_state(), CONFIG, MANIFEST, None)


def test_a_step_that_is_not_there(tmp_path):
    save_all(tmp_path, {10: None, 20: None})
    checkpoints, _ = opened(tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint 15 in .*; use one of 10, 20"):
        checkpoints.restore(abstract(make_state()), step=15)
    with pytest.raises(UserError, match="no checkpoint in .* has a validation loss"):
        checkpoints.restore_params("best")


def test_default_warning_is_one_line_on_stderr(tmp_path, capsys):
    save_all(tmp_path, {10: 2.0, 20: 1.0})
    shutil.rmtree(tmp_path / "checkpoints" / "20" / "metadata")
    Checkpoints(tmp_path, 1).restore(abstract(make_state()))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert f"{tmp_path}/checkpoints/20 is damaged" in err


def test_what_a_killed_run_left_is_removed_by_the_next_writer_only(tmp_path):
    save_all(tmp_path, {10: 2.0})
    left = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp-7"
    left.mkdir()
    assert opened(tmp_path, read_only=True)[0].steps() == [10]
    assert left.exists()
    assert opened(tmp_path)[0].steps() == [10]
    assert not left.exists()


def test_donating_the_state_at_once_does_not_change_what_is_saved(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def overwrite(state):
        return jax.tree.map(lambda x: x + 1, state)

    checkpoints, warnings = opened(tmp_path)
    state = {"params": {str(i): jnp.zeros((512, 1024)) for i in range(4)}}
    layout = abstract(state)
    for step in range(1, 16):
        state = overwrite(state)
        checkpoints.save(step, state, CONFIG, MANIFEST, None)
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        restored, _ = checkpoints.restore(layout, step=step)
        assert_same(restored, {"params": {str(i): jnp.full((512, 1024), 4.0 * step - 3) for i in range(4)}})
    assert warnings == []


def test_content_key_is_of_params_and_model_config():
    state = make_state(1)
    metadata = {"config": CONFIG, "fingerprint": fingerprint(state)}
    key = content_key(metadata)
    other_optimizer = fingerprint({**state, "step": jnp.int32(9)})
    assert content_key({"config": {**CONFIG, "training": {}}, "fingerprint": other_optimizer}) == key
    assert content_key({"config": {"model": {"model_dim": 9}}, "fingerprint": fingerprint(state)}) != key
    assert content_key({"config": CONFIG, "fingerprint": fingerprint(make_state(2))}) != key


def run_script(script, *arguments, devices=1):
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=environment(f"--xla_force_host_platform_device_count={devices}"),
    )


SHARDED = """
import sys
import jax, numpy as np
from stagjax.checkpoints.saving import Checkpoints, fingerprint
from tests.checkpoints.test_saving import CONFIG, MANIFEST, abstract, assert_same, make_state

def place(state, shape, names, spec):
    mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    def put(x):
        fits = x.ndim and x.shape[-1] == 8
        parts = jax.sharding.PartitionSpec(*(None,) * (x.ndim - 1), spec) if fits else jax.sharding.PartitionSpec()
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, parts))
    return jax.tree.map(put, state)

plain = make_state(3)
first = place(plain, (2, 2), ("fsdp", "tensor"), ("fsdp", "tensor"))
second = place(plain, (4,), ("tensor",), "tensor")
assert fingerprint(plain) == fingerprint(first) == fingerprint(second)
checkpoints = Checkpoints(sys.argv[1], 1)
checkpoints.save(3, first, CONFIG, MANIFEST, None)
for layout in (first, second, plain):
    restored, _ = checkpoints.restore(abstract(layout))
    assert_same(restored, plain)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(layout), strict=True):
        assert got.sharding == want.sharding, (got.sharding, want.sharding)
assert len(checkpoints.restore_params()[0]["embedding"].devices()) == 1
checkpoints.close()
"""


def test_sharding_of_the_save_does_not_matter(tmp_path):
    process = run_script(SHARDED, tmp_path, devices=4)
    assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert_same(opened(tmp_path)[0].restore(abstract(make_state()))[0], make_state(3))


FULL_DISK = """
import resource, sys
from stagjax.checkpoints.saving import Checkpoints
from stagjax.errors import RunFailed
from tests.checkpoints.test_saving import CONFIG, MANIFEST, make_state

checkpoints = Checkpoints(sys.argv[1], 1)
checkpoints.save(10, make_state(10), CONFIG, MANIFEST, 1.0)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpoints.save(20, make_state(20), CONFIG, MANIFEST, 0.5)
    checkpoints.save(30, make_state(30), CONFIG, MANIFEST, 0.5)
except RunFailed as error:
    if sys.argv[3] == "freed":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        checkpoints.save(40, make_state(40), CONFIG, MANIFEST, 0.5)
    checkpoints.close()
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("limit", "then", "last"), [(100, "freed", 40), (400, "still full", 10)])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path, limit, then, last):
    process = run_script(FULL_DISK, tmp_path, limit, then)
    out, err = process.communicate()
    assert out == ""
    assert err == (
        f"checkpoint 20 could not be written to {tmp_path}/checkpoints: file too large; "
        f"the last good checkpoint is {tmp_path}/checkpoints/10\n"
    )
    checkpoints, warnings = opened(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(last)]
    assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(last))
    assert warnings == []


KILLED = """
import sys
from stagjax.checkpoints.saving import Checkpoints
from tests.checkpoints.test_saving import CONFIG, MANIFEST, make_state

checkpoints = Checkpoints(sys.argv[1], 1)
for step in range(1, 1000):
    print("saving", step, flush=True)
    checkpoints.save(step, make_state(step, rows=200_000), CONFIG, MANIFEST, None)
    checkpoints.wait()
    print("saved", step, flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_while_saving_loses_nothing_that_was_saved(tmp_path, seed):
    process = run_script(KILLED, tmp_path)
    for line in process.stdout:
        if line == "saving 3\n":
            break
    time.sleep(random.Random(seed).uniform(0.0, 0.15))
    process.kill()
    out, err = process.communicate()
    assert err == ""
    last = max([2, *(int(line.split()[1]) for line in out.splitlines() if line.startswith("saved "))])

    checkpoints, warnings = opened(tmp_path, keep_last=1)
    state, metadata = checkpoints.restore(abstract(make_state(rows=200_000)))
    assert metadata["step"] in (last, last + 1)
    assert_same(state, make_state(metadata["step"], rows=200_000))
    assert warnings == []
    assert all(path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir())
    checkpoints.save(last + 1, make_state(last + 1), CONFIG, MANIFEST, None)
    checkpoints.close()
    assert opened(tmp_path)[0].steps() == [last + 1]
