"""`stagjax checkpoint` as its user meets it: what is printed, what is written, and one line for what is wrong."""

import json
import re
import shutil

import jax
import pytest

import stagjax
from stagjax.checkpoints import inspection, stored
from stagjax.checkpoints.saving import Checkpoints, content_key
from stagjax.cli import main
from stagjax.model.accounting import count_parameters
from stagjax.training.state import abstract_state
from tests.checkpoints.test_strangers import edit
from tests.runs import tiny_run, write_corpus, write_run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def baseline(corpus, tmp_path_factory):
    """A baseline of 6 layers with checkpoints 2 and 4, of which 2 is the best."""
    return write_run(tiny_run("baseline_6", corpus), tmp_path_factory.mktemp("baseline") / "run", (2.0, 3.0))


def run(*argv):
    assert main(["checkpoint", *map(str, argv)]) == 0


@pytest.mark.parametrize(
    ("inside", "path", "kind"),
    [
        ("..", "run", "workdir"),
        (".", ".", "workdir"),
        ("..", "run/checkpoints/4", "checkpoint"),
        ("checkpoints", "4", "checkpoint"),
        ("checkpoints/4", ".", "checkpoint"),
        (".", "newest", "checkpoint"),
    ],
)
def test_inspect_takes_a_path_from_here(baseline, tmp_path, monkeypatch, capsys, inside, path, kind):
    (baseline / "newest").unlink(missing_ok=True)
    (baseline / "newest").symlink_to("checkpoints/4")
    monkeypatch.chdir(baseline / inside)
    run("inspect", path, "--verify", f"--json={tmp_path}/facts.json")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["path"], facts["kind"], facts["validity"]) == (path, kind, inspection.VERIFIED)
    assert facts["step"] == (2 if kind == "workdir" else 4)


def test_inspect_lists_everything_without_reading_arrays(baseline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stored, "_read", None)
    run("inspect", baseline, f"--json={tmp_path}/facts.json")
    printed = capsys.readouterr().out
    config = tiny_run("baseline_6", baseline)
    total = count_parameters(config.model).total
    for text in (
        "position_embedding",
        "48x32",
        "num_kv_heads=2",
        "best",
        f"{total:,}",
        "2.0000",
        "float32",
    ):
        assert text in printed
    facts = json.loads((tmp_path / "facts.json").read_text())
    metadata = Checkpoints(baseline, 1, read_only=True).read_metadata(2)
    assert (facts["step"], facts["content_key"], facts["validity"]) == (2, content_key(metadata), inspection.WHOLE)
    assert sum(row["count"] for row in facts["parameters"]) == total
    assert sum(row["bytes"] for row in facts["parameters"]) == 4 * total
    rest = jax.tree.leaves(abstract_state(config) | {"params": ()})
    assert facts["state_bytes"] == sum(leaf.size * leaf.dtype.itemsize for leaf in rest) > 8 * total
    assert [(row["step"], row["validation_loss"]) for row in facts["checkpoints"]] == [(2, 2.0), (4, 3.0)]
    assert facts["config"] == metadata["config"]
    assert facts["files"]["metadata/metadata"] > 1000


def test_inspect_one_checkpoint_and_an_export(baseline, tmp_path, capsys):
    run("export", baseline, f"--output={tmp_path}/export", "--checkpoint=4")
    for path, kind in ((baseline / "checkpoints" / "4", "checkpoint"), (tmp_path / "export", "export")):
        run("inspect", path, "--verify", f"--json={tmp_path}/facts.json")
        facts = json.loads((tmp_path / "facts.json").read_text())
        assert (facts["kind"], facts["step"], facts["validity"]) == (kind, 4, inspection.VERIFIED)
        assert facts["metrics"] == {"validation_loss": 3.0}
    assert "parameters, without optimizer state, of step 4 in float32" in capsys.readouterr().out


def test_inspect_shows_what_another_version_said_of_its_data(baseline, tmp_path, capsys):
    run("export", baseline, f"--output={tmp_path}/export")
    edit("manifest.json", lambda manifest: {"vocabulary_fingerprint": manifest["vocabulary_fingerprint"]})(
        tmp_path / "export"
    )
    run("inspect", tmp_path / "export")
    assert "unknown, vocabulary unknown, rows of unknown" in capsys.readouterr().out


def test_inspect_names_damage(baseline, tmp_path, capsys):
    shutil.copytree(baseline, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    arrays = max((checkpoints / "2" / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    (checkpoints / "4" / "state" / "_METADATA").unlink()
    run("inspect", tmp_path / "run")  # that a value has changed is not in the metadata
    assert "damaged (" in " ".join(capsys.readouterr().out.split())
    for options, message in (
        (["--verify"], "step 2 of .* is damaged .*not what was saved"),
        (["--checkpoint=4"], "step 4 of .* is damaged"),
    ):
        assert main(["checkpoint", "inspect", str(tmp_path / "run"), *options]) == 3
        assert re.search(message, capsys.readouterr().err)
    (checkpoints / "4" / "metadata" / "metadata").unlink()
    assert main(["checkpoint", "inspect", str(checkpoints / "4")]) == 3
    assert "checkpoints/4 is damaged (metadata: " in capsys.readouterr().err


def test_there_and_back_by_the_command_line(baseline, tmp_path, capsys):
    run("export", baseline, f"--output={tmp_path}/export")
    run("import", tmp_path / "export", f"--workdir={tmp_path}/copy")
    assert "as step 0: the optimizer, the schedule and the data begin anew" in capsys.readouterr().out
    lines = []
    for workdir in (baseline, tmp_path / "export", tmp_path / "copy"):
        assert main(["generate", f"--workdir={workdir}", "--prompt=the", "--max-new-tokens=5"]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] == lines[2]
    run("export", baseline, f"--output={tmp_path}/all", "--state")
    run("import", tmp_path / "all", f"--workdir={tmp_path}/other")
    assert "parameters and optimizer state of step 2 are in" in capsys.readouterr().out


def losses(printed):
    found = dict(re.findall(r"validation loss (before|after): ([0-9.]+)", printed))
    return found["before"], found["after"]


def test_convert_says_what_it_does_to_the_loss(baseline, corpus, tmp_path, capsys):
    run("convert", baseline, "--to=shared", f"--output={tmp_path}/shared", "--config.model.cross_window=8")
    before, after = losses(capsys.readouterr().out)
    assert before == after
    lm = stagjax.load(tmp_path / "shared")
    assert (lm.config.model.num_stacks, lm.config.model.cross_window, lm.step) == (2, 8, 0)
    (row,), (wanted,) = (stagjax.load(path).generate("the quick", 6) for path in (tmp_path / "shared", baseline))
    assert row.ids == wanted.ids
    run("convert", baseline, "--to=separate", "--layers=interleaved", f"--output={tmp_path}/separate")
    before, after = losses(capsys.readouterr().out)
    assert before != after
    metadata = Checkpoints(tmp_path / "separate", 1, read_only=True).read_metadata(0)
    assert f"{metadata['metrics']['validation_loss']:.4f}" == after
    assert metadata["config"]["model"]["layers_per_stack"] == 3


def test_convert_without_its_corpus_says_that_it_is_not_validated(baseline, corpus, tmp_path, capsys):
    gone = write_run(tiny_run("baseline_3", corpus), tmp_path / "run")
    moved = tmp_path / "gone"
    corpus.rename(moved)
    try:
        run("convert", gone, f"--output={tmp_path}/longer", "--config.model.max_length=99")
    finally:
        moved.rename(corpus)
    assert "not validated: data.path=" in capsys.readouterr().out
    assert stagjax.load(tmp_path / "longer").params["position_embedding"].shape == (99, 32)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspect", "/nowhere"], "'/nowhere' holds no checkpoints and is no export; give the --workdir"),
        (["inspect", "{run}", "--checkpoint=3"], "there is no checkpoint 3 in"),
        (["inspect", "{run}", "--checkpoint=first"], "--checkpoint=first is neither best, latest nor a step"),
        (["inspect", "{run}", "--config.model.lag=2"], "--config.model.lag=2 has no meaning here"),
        (["export", "{run}", "--output={tmp}"], "exists and is never overwritten"),
        (["export", "{run}", "--output={tmp}/new", "--dtype=int8"], "unknown --dtype 'int8'"),
        (["import", "{run}", "--workdir={tmp}/new"], "is no export"),
        (["convert", "{run}", "--output={tmp}/new", "--to=separate", "--stacks=4"], "--stacks=4 does not divide the 6"),
        (["convert", "{run}", "--output={tmp}/new", "--to=separate", "--layers=all"], "unknown --layers 'all'"),
        (
            ["convert", "{run}", "--output={tmp}/new", "--config.training.steps=4"],
            "--config.training.steps has no meaning",
        ),
        (["convert", "{run}", "--output={tmp}/new", "--config.model.lag=two"], "model.lag='two' is str, not int"),
        (["convert", "{run}", "--output={tmp}/new"], "give --to, or fields of the model"),
    ],
)
def test_bad_input_is_one_line(baseline, tmp_path, argv, message, capsys):
    assert main(["checkpoint", *(word.format(run=baseline, tmp=tmp_path) for word in argv)]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1]
    assert len(printed) == 1
    assert list(tmp_path.iterdir()) == []
