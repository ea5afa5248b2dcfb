"""The command line: no defaults that belong to somebody, dry runs that need nothing, scripts without a fault."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.arguments import refuse_numbers_without_meaning
from tpu import cli
from tpu.cli import main

ROOT = pathlib.Path(__file__).parent.parent.parent
LINE = ["stagjax", "train", "--config=experiments/pile.py:separate_2x18", "--workdir=gs://bucket/run"]
VM = {"name": "pile-1", "project": "some-project", "zone": "some-zone", "topology": "v5e:4x4"}
GKE = VM | {"cluster": "some-cluster", "image": "some-image"}


def words(flags, without=None):
    return [f"--{name}={value}" for name, value in flags.items() if name != without]


def test_dry_runs_need_no_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["vm", "run", *words(VM), "--dry-run", "--", *LINE]) == 0
    assert main(["gke", "run", *words(GKE), "--dry-run", "--", *LINE]) == 0
    assert main(["vm", "run", *words(VM), "--", *LINE]) == 2
    assert "gcloud is not installed; install the Google Cloud CLI" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["create", "run", "status", "logs", "stop", "delete"])
@pytest.mark.parametrize("target", ["vm", "gke"])
def test_every_verb_has_a_dry_run(target, verb, capsys):
    line = ["--", *LINE] if verb == "run" else []
    assert main([target, verb, *words(GKE if target == "gke" else VM), "--dry-run", *line]) == 0
    out = capsys.readouterr().out
    commands = [text for text in out.splitlines() if re.match(r"gcloud|kubectl", text)]
    assert commands
    # Whatever Google Cloud is asked, the project and the place are the user's.
    for command in commands:
        if command.startswith("gcloud"):
            assert "--project=some-project" in command and re.search("--(zone|location)=some-zone", command), command
    if verb in ("stop", "delete"):
        assert "bucket" not in out and "gsutil" not in out and "storage" not in out


@pytest.mark.parametrize(("target", "flags"), [("vm", VM), ("gke", GKE)])
def test_nothing_has_a_default_that_belongs_to_somebody(target, flags, capsys):
    for name in flags:
        assert main([target, "run", *words(flags, without=name), "--dry-run", "--", *LINE]) == 2
        assert f"--{name} is missing" in capsys.readouterr().err


def test_no_names_of_projects_zones_or_buckets_in_the_code():
    for path in (*(ROOT / "tpu").glob("*.py"), *(ROOT / "tpu").glob("*.sh"), ROOT / "tpu" / "Dockerfile"):
        text = path.read_text()
        assert not re.search(r"\b(us|europe|asia)-(central|east|west|south|north)\w*\d", text), path
        assert not re.search(r"gs://[a-z]", text), path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["vm", "run", *words(VM)], "there is no line to run; give it after --"),
        (["vm", "stop", *words(VM), "--", "stagjax"], "vm stop runs nothing"),
        (["vm", "run", *words(VM | {"name": "Pile"}), "--", "a"], "--name=Pile: a name is of lower-case letters"),
        (["vm", "run", *words(VM), "--slices=0", "--", "a"], "--slices=0"),
        (["vm", "run", *words(VM), "--mount=gs://rows", "--", "a"], "--mount=gs://rows: use WHAT:/DIRECTORY"),
        (["vm", "run", *words(VM), "--env=A", "--", "a"], "--env=A: use NAME=VALUE"),
        (["vm", "run", *words(VM), "--source=/nowhere", "--", "a"], "--source=/nowhere holds no setup.py"),
        (["gke", "run", *words(GKE), "--capacity=reserved", "--", "a"], "--reservation is missing"),
        (
            ["gke", "run", *words(GKE | {"topology": "v5e:2x2"}), "--slices=2", "--", "a"],
            "only slices of several hosts",
        ),
        (["gke", "run", *words(GKE), "--using=xpk", "--mount=pvc:a:/b", "--dry-run", "--", "a"], "xpk storage attach"),
        (["local", "run", "--processes=0", "--", "a"], "--processes=0"),
    ],
)
def test_bad_input(argv, message, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_the_table_of_slices(capsys):
    assert main(["topologies"]) == 0
    assert re.search(r"v5e:16x16 +v5litepod-256 +256 +64 +64 +ct5lp-hightpu-4t", capsys.readouterr().out)


def test_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    scripts = sorted((ROOT / "tpu").glob("*.sh"))
    assert len(scripts) == 2
    subprocess.run([shellcheck, "--enable=all", "--exclude=SC2250,SC2310,SC2312", *scripts], check=True)


def test_only_the_standard_library_and_yaml():
    """What launches runs on a laptop without JAX; what it takes of stagjax is loaded with all that it takes itself."""
    code = "import sys\nbefore = {*sys.modules}\nimport tpu.cli\nprint(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    roots = {name.split(".")[0] for name in done.stdout.split()} - {*sys.stdlib_module_names}
    assert {root for root in roots if "cython" not in root} - {"_yaml"} == {"stagjax", "tpu", "yaml"}


def test_the_image_holds_what_a_run_needs():
    lines = (ROOT / "tpu" / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (.+) \S+$", lines, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source
    extras = re.search(r"pip install '\.\[(.+)\]'", lines)[1].split(",")
    assert set(extras) == {"tpu", "gcs"}
    assert set(extras) == set(
        re.search(r"^extras=(.+)$", (ROOT / "tpu/setup.sh").read_text(), re.MULTILINE)[1].split(",")
    )


def test_no_argument_takes_a_number_without_meaning(capsys):
    assert len(refuse_numbers_without_meaning(cli.main, cli.build_parser(), "tpu", capsys)) > 20
