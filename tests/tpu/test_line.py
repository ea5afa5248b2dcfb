"""A line that every worker would refuse is refused before machines are asked for."""

import shutil
import subprocess
import sys

import pytest

from stagjax.cli.elsewhere import check
from stagjax.errors import UserError
from tpu import line
from tpu.cli import main

TRAIN = ["train", "--config=experiments/pile.py:separate_2x18", "--workdir=gs://bucket/run"]
PLACE = ["--name=pile-1", "--project=p", "--zone=z", "--topology=v5e:4x4", "--dry-run"]


@pytest.mark.parametrize(
    ("words", "devices", "slices", "message"),
    [
        (["train", "--config=experiments/nosuch.py:zzz", "--workdir=r"], 16, 1, "there is no file 'experiments/nosuch"),
        (["train", "--config=experiments/pile.py:zzz", "--workdir=r"], 16, 1, "unknown variant 'zzz'"),
        ([*TRAIN, "--config.training.stepz=3"], 16, 1, "unknown config field 'training.stepz'"),
        ([*TRAIN, "--profile-step=1:2"], 16, 1, "unknown argument '--profile-step=1:2'"),
        ([*TRAIN, "--profile-steps=2:1"], 16, 1, "--profile-steps=2:1 is not FIRST:LAST"),
        (TRAIN, 32, 2, "mesh.data=1 is not a multiple of the 2 TPU slices"),
        ([*TRAIN, "--config.mesh.tensor=5"], 16, 1, "= 5 does not divide the 16 devices"),
        ([*TRAIN, "--config.mesh.fsdp=8"], 16, 1, "= 8, but there are 16 devices"),
        ([*TRAIN, "--config.mesh.tensor=8"], 16, 1, "model.num_heads=12 does not divide over mesh.tensor=8"),
        ([*TRAIN, "--config.training.global_batch=1000"], 16, 1, "= 1000 rows do not divide over"),
        (["bench", "train", "--config=experiments/pile.py", "--variants=zzz"], 16, 1, "unknown variant 'zzz'"),
        (
            ["generate", "--workdir=r", "--prompt=a", "--config.model.num_heads=3"],
            16,
            1,
            "the workdir holds the config",
        ),
    ],
)
def test_what_a_worker_would_refuse(words, devices, slices, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        check(words, devices, slices)


@pytest.mark.parametrize(
    ("words", "devices", "slices"),
    [
        (TRAIN, 16, 1),
        ([*TRAIN, "--config.mesh.data=2"], 32, 2),
        (["generate", "--workdir=gs://bucket/run", "--prompt=$$HOME"], 16, 1),
        (["bench", "train", "--config=experiments/pile.py", "--variants=baseline_18,separate_2x18"], 16, 1),
    ],
)
def test_what_a_worker_would_run(words, devices, slices):
    check(words, devices, slices)


def test_no_jax_is_loaded_to_check():
    program = (
        "import sys; from stagjax.cli.elsewhere import check; check(sys.argv[1:], 16, 1); print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *TRAIN], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("target", [["vm", "run"], ["gke", "run", "--cluster=c", "--image=i"]])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config=experiments/nosuch.py:zzz", "--workdir=r"], "there is no file"),
        (["train", "--config=experiments/pile.py:baseline_18"], "the following arguments are required"),
    ],
)
def test_it_is_refused_in_one_line_and_nothing_is_asked_for(target, words, message, capsys):
    assert main([*target, *PLACE, "--", "stagjax", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tpu: what follows -- would be refused by every worker: ") and message in err
    assert err.count("\n") == 1 and not out
    assert main([*target, *PLACE, "--unchecked", "--", "stagjax", *words]) == 0


def test_what_is_shipped_is_what_is_checked(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "setup.py").touch()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    shutil.copy("experiments/stdlib.py", tmp_path / "experiments/mine.py")
    words = ["stagjax", "info", "--config=experiments/mine.py:baseline_6"]
    line.check_shipped(words, tmp_path, 16, 1)  # git does not know the file yet
    (tmp_path / ".gitignore").write_text("mine.py\n")
    with pytest.raises(UserError, match=r"there is no file 'experiments/mine\.py'"):
        line.check_shipped(words, tmp_path, 16, 1)


def test_other_programs_are_not_checked(tmp_path):
    for other in (["bash", "-c", "stagjax train"], ["env"], ["python", "train.py"]):
        line.check(other, tmp_path, 16, 1)


@pytest.mark.parametrize("start", [["env", "A=b", "stagjax"], ["python3", "-m", "stagjax"]])
def test_it_is_found_in_other_words(start, tmp_path):
    with pytest.raises(UserError, match="the following arguments are required"):
        line.check([*start, "train"], tmp_path, 16, 1)


def test_where_it_cannot_be_checked_that_is_said(tmp_path, monkeypatch):
    said = []
    (tmp_path / "stagjax").mkdir()
    (tmp_path / "stagjax/__init__.py").write_text("import nosuchmodule")
    line.check(["stagjax", "train", "--workdir=runs/a"], tmp_path, 16, 1, said.append)
    assert said[0].startswith("note: what follows -- is not checked, ") and "nosuchmodule" in said[0]
    assert said[1].startswith("note: --workdir=runs/a lies on the workers' own disks")
