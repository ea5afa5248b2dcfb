"""`stagjax evaluate --list`: what is here, what is partial, what is missing."""

import json

from stagjax.cli import main
from tests.tasks import official_files


def test_the_list_shows_what_is_here_and_what_is_missing(tmp_path, capsys):
    official_files.write(tmp_path / "data")
    (tmp_path / "data/superglue/CB/val.jsonl").write_text('{"premise": 1}\n')
    (tmp_path / "data/superglue/RTE/train.jsonl").unlink()
    arguments = [f"--data-dir={tmp_path}/data", f"--json={tmp_path}/list.json"]
    assert main(["evaluate", "--list", "superglue", "mbpp", *arguments]) == 0
    out = capsys.readouterr().out
    table = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "1 of 3,270" in table["boolq"] and "validation" in table["boolq"]
    assert "malformed" in table["cb"] and "2 of 500" in table["mbpp"] and "its own: 3" in table["mbpp"]
    assert f"{tmp_path}/data/superglue/CB/val.jsonl:1: field 'premise' is 1; it has to be a string\n" in out
    assert f"{tmp_path}/data/superglue/RTE/train.jsonl is missing (rte, train split); put it there" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "list.json").read_text())["tasks"]}
    assert list(rows) == ["boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc", "mbpp"]
    assert rows["rte"]["documents"]["partial"] and rows["rte"]["examples"] is None
    assert rows["mbpp"]["metrics"] == ["pass_at_1", "pass_at_10", "pass_at_100"]


def test_bad_arguments_are_one_line(tmp_path, capsys):
    assert main(["evaluate", "--list", "helaswag"]) == 2
    assert "did you mean 'hellaswag'" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err
