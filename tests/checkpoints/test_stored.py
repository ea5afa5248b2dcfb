import asyncio
import os
import pathlib
import shutil

import jax.numpy as jnp
import pytest
from etils import epath

from stagjax import distributed
from stagjax.checkpoints import stored
from stagjax.errors import RunFailed, UserError
from tests.checkpoints.test_saving import (
    CONFIG,
    MANIFEST,
    abstract,
    assert_same,
    make_state,
    opened,
    run_script,
    save_all,
)


def test_another_model_is_an_error_and_not_damage(tmp_path):
    save_all(tmp_path, {10: None, 20: None})
    checkpoints, warnings = opened(tmp_path)
    with pytest.raises(UserError, match=r"20 holds .* as float32\[50,8\], but this run has it as float32\[60,8\]"):
        checkpoints.restore(abstract(make_state(rows=60)))
    with pytest.raises(UserError, match="holds extra as nothing, but this run has it as int32"):
        checkpoints.restore(abstract({**make_state(), "extra": jnp.int32(0)}))
    assert warnings == []
    assert checkpoints.steps() == [10, 20]


def flip_data(path):
    """Flip a bit in the middle of the file with the arrays: the one that no checksum of OCDBT covers."""
    file = max((path / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(path):
    for file in (path / "state").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


def edit_metadata(path):
    file = path / "metadata" / "metadata"
    file.write_text(file.read_text().replace('"model_dim": 8', '"model_dim": 9'))


def swap_values(path):
    """Put the arrays of another checkpoint, in themselves whole, below this one's metadata."""
    shutil.rmtree(path / "state")
    shutil.copytree(path.parent / "10" / "state", path / "state")


DAMAGE = {
    "no arrays": lambda path: shutil.rmtree(path / "state"),
    "no array data": lambda path: [file.unlink() for file in (path / "state").rglob("d/*")],
    "no manifest": lambda path: (path / "state" / "manifest.ocdbt").unlink(),
    "no tree": lambda path: (path / "state" / "_METADATA").unlink(),
    "truncated": truncate,
    "flipped bit": flip_data,
    "empty directory": empty,
    "a file": lambda path: (shutil.rmtree(path), path.write_text("")),
    "no metadata": lambda path: shutil.rmtree(path / "metadata"),
    "garbage metadata": lambda path: (path / "metadata" / "metadata").write_bytes(b"\x00\xff{"),
    "metadata of another type": lambda path: (path / "metadata" / "metadata").write_text("[1]"),
    "edited metadata": edit_metadata,
    "other values": swap_values,
}


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    save_all(workdir, {10: 2.0, 20: 1.0})
    return workdir


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_skipped_and_repaired(two_saved, tmp_path, damage, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(two_saved, workdir)
    DAMAGE[damage](workdir / "checkpoints" / "20")
    checkpoints, warnings = opened(workdir, keep_last=1)

    state, metadata = checkpoints.restore(abstract(make_state()))
    assert_same(state, make_state(10))
    assert metadata["step"] == checkpoints.latest() == 10
    assert len(warnings) == 1
    assert f"{workdir}/checkpoints/20 is damaged (" in warnings[0]
    with pytest.raises(RunFailed, match=r"checkpoints/20 is damaged \(.*; name another \(--checkpoint=STEP, .*\): 10"):
        checkpoints.restore(abstract(make_state()), step=20)

    # Neither takes a place among the newest nor is removed before training has passed it.
    checkpoints.save(15, make_state(15), CONFIG, MANIFEST, 3.0)
    checkpoints.wait()
    assert checkpoints.steps() == [10, 15]
    assert (workdir / "checkpoints" / "20").exists()
    checkpoints.save(20, make_state(21), CONFIG, MANIFEST, 1.5)
    checkpoints.close()

    again, warnings = opened(workdir)
    state, _ = again.restore(abstract(make_state()))
    assert_same(state, make_state(21))
    assert warnings == []
    assert again.steps() == [20]
    assert capfd.readouterr() == ("", "")


def test_damaged_checkpoint_that_training_has_passed_is_removed(tmp_path):
    save_all(tmp_path, {10: 2.0, 20: 1.0})
    flip_data(tmp_path / "checkpoints" / "20")
    checkpoints, _ = opened(tmp_path)
    checkpoints.restore(abstract(make_state()))
    checkpoints.save(25, make_state(25), CONFIG, MANIFEST, None)
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "25"]


FILE_DAMAGE = {
    "missing": pathlib.Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage": lambda file: file.write_bytes(b"\x00\xff{" * 30),
    "another value": lambda file: file.write_text("[1]"),
}


def test_a_reader_takes_the_checkpoint_that_is_named_or_none(two_saved, tmp_path):
    """Whichever file of it is damaged, and however."""
    shutil.copytree(two_saved, tmp_path / "run")
    best, wanted = tmp_path / "run" / "checkpoints" / "20", make_state(20)["params"]
    refused = set()
    for file in sorted(file for file in best.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for damage in FILE_DAMAGE.values():
            damage(file)
            checkpoints, warnings = opened(tmp_path / "run", read_only=True)
            for name in ("best", "latest") if file.name == "metadata" else ("best",):
                try:
                    params, metadata = checkpoints.restore_params(name)
                except RunFailed as error:
                    assert f"{best} is damaged (" in str(error) and str(error).endswith("after --init-from): 10")
                    refused.add(file.relative_to(best).as_posix())
                    with pytest.raises(stored.DamagedError):
                        stored.verify(epath.Path(best))
                else:
                    assert metadata["step"] == 20
                    assert_same(params, wanted)
            assert warnings == []
            file.write_bytes(content)
    assert {"metadata/metadata", "state/_METADATA", "state/manifest.ocdbt"} <= refused
    with pytest.raises(RunFailed, match="name another"):
        (best / "metadata" / "metadata").write_text("")
        opened(tmp_path / "run", read_only=True)[0].best()
    assert opened(tmp_path / "run", read_only=True)[0].restore_params(10)[1]["step"] == 10
    shutil.rmtree(best)
    assert opened(tmp_path / "run", read_only=True)[0].best() == 10


def test_only_a_step_as_it_is_written_is_a_checkpoint(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "20").rename(tmp_path / "run" / "checkpoints" / "020")
    (tmp_path / "run" / "checkpoints" / "\uff12").mkdir()  # a digit of another script
    assert opened(tmp_path / "run", read_only=True)[0].present() == [10]


def test_the_first_save_of_a_run_is_read_back(tmp_path, monkeypatch):
    """Here the disk keeps other bytes than it was given, which is found before anything is called saved."""
    checkpoints, warnings = opened(tmp_path)
    wait = checkpoints._writer.wait_until_finished

    def wait_and_damage():
        wait()
        if (tmp_path / "checkpoints" / "10").exists():
            flip_data(tmp_path / "checkpoints" / "10")

    monkeypatch.setattr(checkpoints._writer, "wait_until_finished", wait_and_damage)
    with pytest.raises(
        RunFailed, match="checkpoint 10 could not be written to .*: read back, it is not what was saved"
    ):
        checkpoints.save(10, make_state(10), CONFIG, MANIFEST, 1.0)
    assert (warnings, list((tmp_path / "checkpoints").iterdir())) == ([], [])
    checkpoints.save(10, make_state(10), CONFIG, MANIFEST, 1.0)
    assert_same(checkpoints.restore(abstract(make_state()), 10)[0], make_state(10))
    checkpoints.close()


def test_what_another_process_cannot_read_is_damaged_for_all(tmp_path, monkeypatch):
    save_all(tmp_path, {1: 2.0, 2: 1.0})
    others = iter([None, "zarr: cut off", None, None])  # metadata and arrays of step 2, then of step 1
    answer = lambda topic, value: [value, next(others)] if topic == "checkpoint" else [value, value]
    monkeypatch.setattr(distributed, "gather", answer)
    monkeypatch.setattr(distributed, "process_name", lambda process: f"process {process} on b")
    checkpoints, warnings = opened(tmp_path)
    restored, metadata = checkpoints.restore(abstract(make_state(0)))
    assert metadata["step"] == 1
    assert_same(restored, make_state(1))
    assert [line for line in warnings if "2 is damaged (process 1 on b: zarr: cut off); it is skipped" in line]
    assert next(others, "asked for all") == "asked for all"


def test_all_damaged(tmp_path):
    save_all(tmp_path, {10: 2.0, 20: 1.0})
    for step in ("10", "20"):
        truncate(tmp_path / "checkpoints" / step)
    checkpoints, warnings = opened(tmp_path)
    with pytest.raises(RunFailed, match=r"checkpoints/20 is damaged \(.*checkpoints/10 is damaged \("):
        checkpoints.restore(abstract(make_state()))
    assert len(warnings) == 2


SKIPPING = """
import sys
from stagjax.checkpoints.saving import Checkpoints
from tests.checkpoints.test_saving import abstract, make_state
Checkpoints(sys.argv[1], 1).restore(abstract(make_state()))
"""


def test_damage_is_one_line_for_the_user_until_the_process_ends(tmp_path):
    """Orbax's own tracebacks come from threads and destructors, some of them at exit."""
    save_all(tmp_path, {10: 1.0, 20: 1.0, 30: 1.0})
    DAMAGE["no manifest"](tmp_path / "checkpoints" / "20")
    DAMAGE["no array data"](tmp_path / "checkpoints" / "30")
    out, err = run_script(SKIPPING, tmp_path).communicate()
    assert out == ""
    assert [line.split(" is damaged (")[0] for line in err.splitlines()] == [
        f"{tmp_path}/checkpoints/30",
        f"{tmp_path}/checkpoints/20",
    ]


def test_a_read_that_ends_after_another_has_failed_says_nothing():
    with stored.draining_loops():
        loop = asyncio.new_event_loop()
    loop.close()
    assert loop.call_soon_threadsafe(print) is None
    plain = asyncio.new_event_loop()
    plain.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        plain.call_soon_threadsafe(print)
