"""Models that change hands: exact there and back, refused where something differs, whole or not at all."""

import json
import os
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.experimental.layout import Format, Layout

import stagjax
from stagjax.checkpoints import exported, tensor_files
from stagjax.checkpoints.inspection import inspect
from stagjax.checkpoints.origin import parse, read_metadata, read_model
from stagjax.checkpoints.saving import Checkpoints, content_key
from stagjax.checkpoints.tensor_files import TensorFiles, write_tensors
from stagjax.data.vocabulary import ByteVocabulary
from stagjax.errors import RunFailed, UserError
from stagjax.evaluation.subjects import subjects_of
from stagjax.exporting import export_model, import_model
from stagjax.mesh import DecodeMesh, decoding_mesh
from stagjax.model.stagformer import abstract_params
from stagjax.sharding import stored_shardings
from stagjax.training.initial import find_origin
from stagjax.training.state import abstract_state
from tests.runs import tiny_run, write_corpus, write_run
from tests.variants import VARIANTS, params_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def workdir(corpus, tmp_path_factory):
    """Checkpoints 2, 4 and 6, of which 4 is the best."""
    config = tiny_run("separate_2x3", corpus)
    return write_run(config, tmp_path_factory.mktemp("source") / "run", (3.0, 2.0, 2.5))


@pytest.fixture(scope="module")
def export(workdir, tmp_path_factory):
    output = tmp_path_factory.mktemp("goods") / "export"
    export_model(workdir, output)
    return output


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variants_parameters_come_back_bit_for_bit_from_shards(variant, tmp_path):
    params = params_of(VARIANTS[variant])
    files = write_tensors(tmp_path, "model", params, shard_bytes=5_000)
    assert len(files) > 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(tmp_path / file)
    shapes = abstract_params(VARIANTS[variant])
    shardings = stored_shardings(decoding_mesh(DecodeMesh(tensor=2)), shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    got = TensorFiles(tmp_path, "model").read(abstract)
    assert_same(got, params)
    assert got["blocks"]["mlp"]["gate"].sharding.spec[3] == "tensor"


def test_a_shard_is_as_large_as_allowed_and_a_single_one_has_no_index(tmp_path):
    tree = {name: np.full((10,), value, np.float32) for value, name in enumerate("abcde")}
    files = write_tensors(tmp_path, "x", tree, shard_bytes=80)
    assert files == [f"x-0000{n}-of-00003.safetensors" for n in (1, 2, 3)] + ["x.safetensors.index.json"]
    assert [len(safetensors.numpy.load_file(tmp_path / file)) for file in files[:3]] == [2, 2, 1]
    assert write_tensors(tmp_path, "y", tree, shard_bytes=200) == ["y.safetensors"]


def test_the_tensors_are_named_by_their_path(export, workdir):
    tensors = safetensors.numpy.load_file(export / "model.safetensors")
    params, _ = Checkpoints(workdir, 1, read_only=True).restore_params(4)
    assert set(tensors) == {name.removeprefix("params/").replace("/", ".") for name in read_metadata(export)["arrays"]}
    np.testing.assert_array_equal(tensors["cross.attention.key"], np.asarray(params["cross"]["attention"]["key"]))
    mode = (export / "model.safetensors").stat().st_mode
    assert mode == (export / "config.json").stat().st_mode


def as_a_tpu_lays_them_out(state):
    """Return the state in layouts that are not row-major, as the results of programs on a TPU are."""

    def program(x):
        order = tuple(reversed(range(x.ndim)))
        return jax.jit(lambda x: x + 0, out_shardings=Format(Layout(order), x.sharding))(x)

    return jax.tree.map(program, state)


def test_an_export_is_right_whatever_the_layout_on_the_device(workdir, corpus, tmp_path):
    abstract = abstract_state(tiny_run("separate_2x3", corpus))
    state, metadata = Checkpoints(workdir, 1, read_only=True).restore(abstract, 4)
    moved = as_a_tpu_lays_them_out(state)
    assert not all(np.asarray(leaf).flags.c_contiguous for leaf in jax.tree.leaves(moved))
    exported.write_export(tmp_path, moved, metadata, ByteVocabulary(), None)
    assert_same(exported.read_state(tmp_path, abstract), state)
    saved = Checkpoints(tmp_path / "run", 1)
    saved.save(4, moved, metadata["config"], metadata["manifest"], None)
    assert_same(saved.restore(abstract)[0], state)
    saved.close()


def test_what_a_writer_gets_wrong_is_seen_before_the_export_is_there(workdir, tmp_path, monkeypatch):
    """A writer that ignores strides, which is what safetensors 0.8 is."""
    as_they_lie = lambda x: np.ascontiguousarray(x.T).reshape(x.shape)
    write = tensor_files.safetensors.numpy.save_file
    monkeypatch.setattr(
        tensor_files.safetensors.numpy,
        "save_file",
        lambda tensors, *rest, **more: write({name: as_they_lie(x) for name, x in tensors.items()}, *rest, **more),
    )
    with pytest.raises(RunFailed, match="export was not written: read back, it is not the model .params/"):
        export_model(workdir, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_an_imported_run_is_the_exported_one_with_a_new_state(export, workdir, tmp_path):
    imported = tmp_path / "imported"
    metadata = import_model(export, imported)
    wanted = Checkpoints(workdir, 1, read_only=True).read_metadata(4)
    assert content_key(metadata) == content_key(wanted) == content_key(read_metadata(export))
    assert (metadata["step"], metadata["skipped_batches"]) == (0, [])
    assert metadata["metrics"] == wanted["metrics"]
    assert (imported / "manifest.json").read_text() == (workdir / "manifest.json").read_text()
    config = stagjax.load(imported).config
    state, _ = Checkpoints(imported, 1, read_only=True).restore(abstract_state(config))
    assert_same(state["params"], Checkpoints(workdir, 1, read_only=True).restore_params(4)[0])
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state | {"params": ()}))
    assert find_origin(tmp_path / "new", config.model, str(imported)).content_key == content_key(wanted)
    assert find_origin(imported, config.model, None).step == 4


def test_with_its_state_a_run_goes_on_elsewhere(workdir, corpus, tmp_path):
    export_model(workdir, tmp_path / "export", 2, with_state=True, shard_bytes=50_000)
    metadata = import_model(tmp_path / "export", tmp_path / "imported")
    assert metadata["step"] == 2
    abstract = abstract_state(tiny_run("separate_2x3", corpus))
    got, wanted = (Checkpoints(run, 1, read_only=True).restore(abstract, 2) for run in (tmp_path / "imported", workdir))
    assert_same(got[0], wanted[0])
    assert got[1]["fingerprint"] == wanted[1]["fingerprint"]
    assert got[1]["skipped_batches"] == wanted[1]["skipped_batches"] == [[1, 2]]
    assert find_origin(tmp_path / "imported", tiny_run("separate_2x3", corpus).model, None) is None


def test_bfloat16_halves_the_file_rounds_once_and_says_so(export, workdir, tmp_path):
    metadata = export_model(workdir, tmp_path / "small", dtype="bfloat16")
    assert metadata["arrays"]["params/embedding"].startswith("bfloat16[")
    assert metadata["metrics"] == {"validation_loss": None}
    small, full = ((place / "model.safetensors").stat().st_size for place in (tmp_path / "small", export))
    assert 0.45 < small / full < 0.55
    params = stagjax.load(tmp_path / "small").params
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), stagjax.load(export).params)
    assert_same(params, rounded)
    import_model(tmp_path / "small", tmp_path / "imported")
    assert_same(stagjax.load(tmp_path / "imported").params, rounded)


def test_an_export_is_loaded_like_a_workdir(export, workdir):
    (got,), (wanted,) = (stagjax.load(path, 4).generate("the quick", 5) for path in (export, workdir))
    assert got == wanted
    with pytest.raises(UserError, match="is an export of step 4: it holds no checkpoint 6"):
        stagjax.load(export, 6)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda d: flip(d / "model.safetensors"),
    "a cut file": lambda d: os.truncate(d / "model.safetensors", 5000),
    "no tensors": lambda d: (d / "model.safetensors").unlink(),
    "other tensors": lambda d: shutil.copy(d.parent / "other" / "model.safetensors", d / "model.safetensors"),
    "an edited config": lambda d: (d / "config.json").write_text((d / "config.json").read_text().replace("48", "47")),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
    "edited facts": lambda d: (d / "export.json").write_text((d / "export.json").read_text().replace("2.0", "1.0")),
    "garbage facts": lambda d: (d / "export.json").write_bytes(b"\xff{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_export_is_named_with_what_is_wrong(export, workdir, tmp_path, damage):
    shutil.copytree(export, tmp_path / "export")
    if damage == "other tensors":
        export_model(workdir, tmp_path / "other", 6)
    DAMAGE[damage](tmp_path / "export")
    for read in (lambda: import_model(tmp_path / "export", tmp_path / "new"), lambda: read_model(tmp_path / "export")):
        with pytest.raises(RunFailed, match="export is damaged .*; copy it again, or export it anew"):
            read()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "other") == ["export"]


def test_damage_of_the_text_vocabulary_is_seen_by_its_hash(export, tmp_path):
    shutil.copytree(export, tmp_path / "export")
    with (tmp_path / "export" / "vocabulary.json").open("a") as file:
        file.write(" ")
    with pytest.raises(RunFailed, match="vocabulary.json: not what was exported"):
        import_model(tmp_path / "export", tmp_path / "new")


def test_nothing_is_overwritten_and_what_is_no_export_is_refused(export, workdir, tmp_path):
    (tmp_path / "taken").mkdir()
    for write in (lambda output: export_model(workdir, output), lambda output: import_model(export, output)):
        with pytest.raises(UserError, match="taken exists and is never overwritten"):
            write(tmp_path / "taken")
    assert list((tmp_path / "taken").iterdir()) == []
    for call, message in (
        (lambda: import_model(workdir, tmp_path / "new"), "is no export: it has no export.json"),
        (lambda: export_model(tmp_path, tmp_path / "new"), "holds no checkpoints and is no export"),
        (lambda: export_model(workdir, tmp_path / "new", 5), "there is no checkpoint 5 in"),
        (lambda: export_model(workdir, tmp_path / "new", dtype="float16"), "unknown --dtype 'float16'"),
        (lambda: export_model(workdir, tmp_path / "new", dtype="bfloat16", with_state=True), "--dtype=bfloat16 with"),
        (lambda: export_model(export, tmp_path / "new", with_state=True), "--state: .* is an export"),
        (lambda: export_model(workdir, pathlib.Path("/proc/none/x")), "cannot write /proc/none/x: .*; choose another"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_full_disk_leaves_nothing_behind(workdir, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunFailed, match="free some space and start again"):
            export_model(workdir, tmp_path / "export")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".export.partial").mkdir()
    (tmp_path / ".export.partial" / "left.by.a.killed.one").write_text("")
    export_model(workdir, tmp_path / "export")
    exported.check_files(tmp_path / "export")
    assert not (tmp_path / "export" / "left.by.a.killed.one").exists()


@pytest.mark.parametrize(
    ("spec", "path", "checkpoint"),
    [
        ("runs/a", "runs/a", None),
        ("runs/a:best", "runs/a", "best"),
        ("runs/a:20", "runs/a", 20),
        ("runs/a:b", "runs/a:b", None),
        ("a:1:latest", "a:1", "latest"),
    ],
)
def test_a_place_with_its_checkpoint(spec, path, checkpoint):
    assert (str(parse(spec)[0]), parse(spec)[1]) == (path, checkpoint)


def test_no_other_checkpoint_is_taken_for_one_whose_metadata_are_damaged(workdir, corpus, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "metadata" / "metadata").write_text("")
    run, model = tmp_path / "run", tiny_run("separate_2x3", corpus).model
    for read in (
        lambda: stagjax.load(run),
        lambda: stagjax.load(run, "best"),
        lambda: stagjax.load(run / "checkpoints" / "4"),
        lambda: export_model(run, tmp_path / "export"),
        lambda: inspect(run),
        lambda: find_origin(tmp_path / "new", model, str(run)),
        lambda: subjects_of("run", str(run), ["all"]),
    ):
        with pytest.raises(RunFailed, match=r"checkpoints/4 is damaged \(metadata: .*\).*; name another \(.*\): 2, 6$"):
            read()
    assert read_metadata(run, "latest")["step"] == find_origin(tmp_path / "new", model, f"{run}:latest").step == 6
    assert [row["validity"][:7] for row in inspect(run, 2)["checkpoints"]] == ["whole, ", "damaged", "whole, "]


def test_a_directory_whose_name_ends_in_a_step_is_itself(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "lr:4")
    assert parse(f"{tmp_path}/lr:4") == (tmp_path / "lr:4", None)
    assert parse(f"{tmp_path}/lr:4:best") == (tmp_path / "lr:4", "best")
    (tmp_path / "lr").mkdir()
    with pytest.raises(UserError, match="lr:4 is a directory, and .*lr is one, too; write .*lr:4:best, or"):
        parse(f"{tmp_path}/lr:4")
    assert parse(f"{tmp_path}/lr/./:4") == (tmp_path / "lr", 4)
