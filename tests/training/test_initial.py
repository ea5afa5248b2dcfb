"""A run that starts from another one's parameters: exactly those, on any mesh, once, and never from others."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from stagjax.checkpoints.saving import Checkpoints, content_key
from stagjax.config import MeshConfig
from stagjax.data.manifest import Manifest
from stagjax.errors import RunFailed, UserError
from stagjax.mesh import training_mesh
from stagjax.reporting.metrics import read_metrics
from stagjax.training.initial import RECORD, Origin, find_origin
from stagjax.training.loop import train
from stagjax.training.state import abstract_state
from stagjax.training.validation import validate
from tests.runs import tiny_run, write_corpus, write_run

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def source(corpus, tmp_path_factory):
    return write_run(tiny_run("separate_2x3", corpus), tmp_path_factory.mktemp("source") / "run")


@pytest.fixture(scope="module")
def started(corpus, source, tmp_path_factory):
    """A run on eight devices that began at step 2 of a source which is no longer there, and all that it saved."""
    folder = tmp_path_factory.mktemp("started")
    shutil.copytree(source, folder / "gone")
    train(tiny_run("separate_2x3", corpus, training__keep_last=9), folder / "run", f"{folder}/gone:2")
    shutil.rmtree(folder / "gone")
    return folder / "run"


def params(workdir, step):
    return Checkpoints(workdir, 1, read_only=True).restore_params(step)[0]


def test_the_first_state_is_the_origins_parameters_with_a_new_optimizer(source, started, corpus):
    config = tiny_run("separate_2x3", corpus)
    state, metadata = Checkpoints(started, 1, read_only=True).restore(abstract_state(config), step=0)
    jax.tree.map(np.testing.assert_array_equal, state["params"], params(source, 2))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(state["opt_state"]))
    assert int(state["step"]) == 0
    lines = [line for line in read_metrics(started) if line["step"] == 0 and "validation/loss" in line]
    assert [line["validation/loss"] for line in lines] == [metadata["metrics"]["validation_loss"]]


def test_a_model_is_validated_alone_as_in_its_run(started, corpus):
    params, metadata = Checkpoints(started, 1, read_only=True).restore_params(0)
    manifest = Manifest.from_dict(metadata["manifest"])
    (result,) = validate([(tiny_run("separate_2x3", corpus), params)], manifest)
    (logged,) = (line for line in read_metrics(started) if line["step"] == 0 and "validation/loss" in line)
    for name, value in result.items():
        np.testing.assert_allclose(value, logged[f"validation/{name}"], rtol=1e-6)
    with pytest.raises(
        UserError, match="data.source='text' is not what the model was trained on: row_length: 32 -> 16"
    ):
        validate([(tiny_run("separate_2x3", corpus, data__row_length=16), params)], manifest)


def test_a_resume_does_not_need_the_origin(started, corpus, tmp_path):
    shutil.copytree(started, tmp_path / "run")
    for step in (2, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    train(tiny_run("separate_2x3", corpus), tmp_path / "run")
    got, wanted = (Checkpoints(run, 1, read_only=True).read_metadata(4) for run in (tmp_path / "run", started))
    assert got["fingerprint"] == wanted["fingerprint"]


def test_another_origin_is_refused_and_a_moved_one_is_not(source, started, corpus):
    model = tiny_run("separate_2x3", corpus).model
    record = json.loads((started / RECORD).read_text())
    gone = record["source"]
    assert (gone.rpartition("/")[2], record["step"]) == ("gone", 2)
    for init_from in (None, gone, f"{gone}:2", f"{gone}:best", f"{source}:2"):
        assert find_origin(started, model, init_from).step == 2
    for init_from in (f"{source}:4", str(source)):
        with pytest.raises(UserError, match=r"is not what --workdir=.* was started from, which is step 2 of .*/gone;"):
            find_origin(started, model, init_from)
    with pytest.raises(UserError, match="has begun without it; give a new --workdir"):
        find_origin(source, model, f"{started}:4")


def test_killed_before_its_first_checkpoint_it_needs_the_same_origin_again(source, started, corpus, tmp_path):
    config = tiny_run("separate_2x3", corpus)
    shutil.copytree(source, tmp_path / "source")
    workdir = tmp_path / "run"
    workdir.mkdir()
    origin = find_origin(workdir, config.model, f"{tmp_path}/source:2")
    origin.record(workdir)
    with pytest.raises(UserError, match=f"nothing of it is saved yet; give --init-from={tmp_path}/source:2 again"):
        find_origin(workdir, config.model, None)
    shutil.rmtree(tmp_path / "source" / "checkpoints" / "2")
    shutil.copytree(started / "checkpoints" / "2", tmp_path / "source" / "checkpoints" / "2")
    with pytest.raises(UserError, match="is not what the run was started from"):
        find_origin(workdir, config.model, f"{tmp_path}/source").state(config, training_mesh(MeshConfig()))


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        (
            "separate_2x3",
            {"model__max_length": 64},
            r"params/position_embedding has there the shape \[48,32\], but in this run's config \[64,32\]; .*convert",
        ),
        ("baseline_6", {}, r"params/blocks/mlp/down has there the shape \[2,3,32,32\], .* config \[1,6,32,32\]"),
        ("baseline_3", {"model__num_stacks": 2, "model__shared_weights": True}, r"blocks/mlp/down .*\[1,3,32,32\]"),
        ("window_1", {}, r"params/cross/attention/key has there .* \(none: it has no such parameter\)"),
    ],
)
def test_other_shapes_are_refused_by_the_first_that_differs(source, corpus, tmp_path, variant, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny_run(variant, corpus, **changes), tmp_path / "run", str(source))
    assert not (tmp_path / "run" / "config.json").exists()


def test_another_vocabulary_and_a_place_without_a_model_are_refused(source, corpus, tmp_path):
    metadata = Checkpoints(source, 1, read_only=True).read_metadata(4)
    manifest, model = Manifest.from_dict(metadata["manifest"]), tiny_run("separate_2x3", corpus).model
    find_origin(tmp_path, model, str(source)).check_vocabulary(manifest)
    with pytest.raises(UserError, match="data.vocabulary: the ids of 'bytes' .* are not those that runs/other was"):
        Origin("runs/other", 4, content_key(metadata), "0" * 64).check_vocabulary(manifest)
    for init_from, message in (
        (f"{source}:3", "there is no checkpoint 3 in .*; use one of"),
        (f"{tmp_path}/nowhere", "holds no checkpoints and is no export"),
    ):
        with pytest.raises(UserError, match=message):
            find_origin(tmp_path, model, init_from)


def test_a_damaged_origin_is_named(source, corpus, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    for file in (tmp_path / "source" / "checkpoints" / "4").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunFailed, match="checkpoints/4 is damaged"):
        train(tiny_run("separate_2x3", corpus), tmp_path / "run", f"{tmp_path}/source:4")


def test_parameters_without_a_finite_loss_are_refused(source, corpus, tmp_path, monkeypatch):
    lost = {"loss": math.nan, "bits_per_byte": math.nan}
    monkeypatch.setattr("stagjax.training.validation.SubsetSums.total", lambda self: lost)
    with pytest.raises(RunFailed, match=r"step 0: validation loss nan .* give another --init-from"):
        train(tiny_run("separate_2x3", corpus), tmp_path / "run", f"{source}:2")
    assert not Checkpoints(tmp_path / "run", 1, read_only=True).steps()
