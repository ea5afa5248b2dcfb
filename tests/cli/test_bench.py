"""`stagjax bench`: what it refuses, before anything is measured, and what `--help` teaches."""

import json

import pytest

from stagjax import cli
from stagjax.bench.comparators import COMPARATORS

CONFIG = "--config=experiments/stdlib.py:separate_2x3,runlocal"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against=baselin"], "unknown --against 'baselin'; did you mean 'baseline'"),
        (["--split=modl"], "unknown --split 'modl'; did you mean 'model'"),
        (["--heads=halved"], "unknown --heads 'halved'"),
        (["--batch=0"], "--batch=0 is below 1; use 1 or more"),
        (["--context=1,x"], "--context=x is no whole number; use 1 or more"),
        (["--tokens=64"], "--tokens=64 is over 32; use 2 to 32"),
        (["--mesh=stack=3"], "mesh.stack=3 does not fit: model.num_stacks=2"),
        (["--mesh=stack=2,tensor=64"], "needs 128 devices"),
        (["--local-processes=1000"], "--local-processes=1000 is outside 1.."),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert cli.main(["bench", "decode", CONFIG, *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("stagjax: ") and message in told and told.count("\n") == 1


def test_a_directory_with_results_is_left_alone(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"complete": False}))
    assert cli.main(["bench", "decode", CONFIG, f"--output={tmp_path}"]) == 2
    assert "holds the results of another run; choose another directory" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text()) == {"complete": False}


def test_help_says_what_a_model_is_compared_with(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "decode", "--help"])
    told = capsys.readouterr().out
    assert all(f"  {name} " in told and text in told for name, text in COMPARATORS.items())
