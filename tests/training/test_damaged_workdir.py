"""Small files of a workdir, damaged in every way: one line that names the file, or a run that goes on as it was."""

import json
import os
import pathlib
import shutil

import pytest

from stagjax.checkpoints.inspection import WHOLE, inspect
from stagjax.checkpoints.origin import read_metadata
from stagjax.errors import RunFailed, UserError
from stagjax.training.goodput import Goodput
from stagjax.training.loop import train
from tests.runs import tiny_run, write_corpus, write_run

DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_text(""),
    "cut": lambda file: file.write_text(file.read_text()[: -len(file.read_text()) // 2]),
    "a list": lambda file: file.write_text("[]\n"),
    "a number": lambda file: file.write_text("1\n"),
    "no fields": lambda file: file.write_text("{}\n"),
    "fields of other types": lambda file: file.write_text(json.dumps(dict.fromkeys(fields(file), [7])) + "\n"),
    "garbage": lambda file: file.write_bytes(b"\x00\xff{\n\xfe"),
    "nested": lambda file: file.write_text("[" * 100_000 + "\n"),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a dangling link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "a link to itself": lambda file: (file.unlink(), file.symlink_to(file)),
}
GOES_ON = {
    "metrics.jsonl": {"missing", "empty", "cut"},  # a killed process leaves a line without its end
    "goodput.json": {"missing", "a dangling link", "a link to itself"},
    "init_from.json": {"missing", "a dangling link", "a link to itself"},
    ".lock": {*DAMAGE} - {"a directory", "a link to itself"},  # what is in it says nothing
}


def fields(file):
    return json.loads(file.read_text().partition("\n")[0] if file.suffix == ".jsonl" else file.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is at its end, so that going on is to say so."""
    folder = tmp_path_factory.mktemp("damaged")
    config = tiny_run("baseline_3", write_corpus(folder))
    workdir = write_run(config, folder / "run")
    (workdir / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "train/loss": 2.5}}\n' for step in range(1, 5)))
    Goodput(workdir / "goodput.json").write()
    origin = {"source": "/elsewhere", "step": 2, "content_key": "00", "vocabulary_fingerprint": None}
    origin["vocabulary_fingerprint"] = json.loads((workdir / "manifest.json").read_text())["vocabulary_fingerprint"]
    (workdir / "init_from.json").write_text(json.dumps(origin))
    assert train(config, workdir).step == 4
    (workdir / ".lock").write_text("{}")
    return config, workdir


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name", ["config.json", "manifest.json", "metrics.jsonl", "goodput.json", "init_from.json", ".lock"]
)
def test_a_run_goes_on_or_says_in_one_line_what_is_wrong(run, tmp_path, name, damage):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    DAMAGE[damage](tmp_path / "run" / name)
    try:
        assert train(config, tmp_path / "run").step == 4
    except UserError as error:
        assert "\n" not in str(error) and str(tmp_path / "run") in str(error) and "; " in str(error)
        assert damage not in GOES_ON.get(name, ())
        assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    else:
        assert damage in GOES_ON.get(name, ())
    if damage in ("garbage", "a directory"):  # Whoever reads the model needs none of them.
        assert read_metadata(tmp_path / "run")["step"] == inspect(tmp_path / "run")["step"] == 4


@pytest.mark.parametrize("damage", ["a file", "a dangling link"])
def test_a_run_without_its_checkpoints_directory_is_refused(run, tmp_path, damage):
    config, workdir = run
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "init_from.json").unlink()
    place = tmp_path / "run" / "checkpoints"
    shutil.rmtree(place)
    place.write_text("") if damage == "a file" else place.symlink_to("nowhere")
    for use in (lambda path: train(config, path), read_metadata, inspect):
        with pytest.raises(UserError, match="cannot be read: Not a directory|cannot create|holds no checkpoints"):
            use(tmp_path / "run")


@pytest.mark.parametrize("target", ["nowhere", "."])
def test_links_below_a_workdir_do_not_keep_one_from_looking_into_it(run, tmp_path, target):
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    before = inspect(workdir)
    for directory, _, _ in os.walk(workdir):
        for name in ("link", "other"):
            (pathlib.Path(directory) / name).symlink_to(target)
    assert inspect(workdir) == before
    (workdir / "checkpoints" / "7").symlink_to(target)
    with pytest.raises(RunFailed, match=r"checkpoints/7 is damaged \(metadata: .*and may be the best; name another"):
        inspect(workdir)
    facts = inspect(workdir, 4)
    assert [row["validity"].partition(" (")[0] for row in facts["checkpoints"]] == [WHOLE, WHOLE, "damaged"]
    assert facts["files"] == before["files"]


def test_a_checkpoint_with_a_dangling_link_for_a_file_is_damaged_or_whole(run, tmp_path):
    shutil.copytree(run[1], tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "4"
    for file in sorted(file for file in best.rglob("*") if file.is_file()):
        content = file.read_bytes()
        file.unlink()
        file.symlink_to("nowhere")
        try:
            assert inspect(tmp_path / "run", 4)["step"] == 4
        except RunFailed as error:
            assert file.name == "metadata" and f"{best} is damaged (metadata: " in str(error)
        file.unlink()
        file.write_bytes(content)
