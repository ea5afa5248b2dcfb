"""`stagjax data prepare` and `verify`: what they say, and what they refuse in one line."""

import hashlib
import json

import pytest

from stagjax.cli import main
from tests.data.pile import write_pile


def prepare(root, *arguments, **flags):
    flags = {"path": f"{root}/in", "output": f"{root}/out", "vocabulary": "bytes", "row-length": "32"} | flags
    given = [f"--{name}={value}" for name, value in flags.items()]
    return main(["data", "prepare", *given, "--rows-only", "--processes=1", *arguments])


def test_it_says_what_is_there_what_is_broken_and_how_fast_it_went(tmp_path, capfd):
    corpus = write_pile(tmp_path / "in", shards=2, checksum=False)
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(
        "".join(f"{hashlib.sha256((tmp_path / 'in' / name).read_bytes()).hexdigest()}  {name}\n" for name in corpus)
    )
    assert prepare(tmp_path, f"--sha256={sums}") == 0
    out, err = capfd.readouterr()
    num_bytes = sum(len(text.encode()) for text, _ in corpus["val.jsonl.zst"])
    assert f"validation: 40 documents, {num_bytes:,} bytes, {num_bytes + 40:,} tokens in " in out
    assert "4 zstd frames have no checksum: only --sha256 would show that their text has changed" in out
    assert "prepared 4 of 4 shards: " in out and " Mtok/s a core" in out and "broken" not in out
    assert f"train on it: --config.data.source=prepared --config.data.path={tmp_path}/out" in out
    assert "(4 of 4 shards)" in err and "train/01.jsonl.zst: 40 documents, " in err
    assert prepare(tmp_path) == 0
    out, err = capfd.readouterr()
    assert "all 4 shards were there already; nothing was done" in out and "4 of 4 shards are there already" in err
    assert main(["data", "verify", f"--path={tmp_path}/out"]) == 0
    assert capfd.readouterr().out.startswith("all 4 files, ")


def test_broken_input_is_shown_and_above_the_share_stops_with_status_3(tmp_path, capfd):
    write_pile(tmp_path / "in", shards=1, number=5)
    (tmp_path / "in" / "train" / "01.jsonl").write_text('{"text": "good"}\n{"txt": "a"}\n\n{"text": 5}\n')
    assert prepare(tmp_path) == 3
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err
    assert "  missing text: train/01.jsonl:2: not an object with a string" in err
    assert err.splitlines()[-1].startswith(
        "stagjax: 11.111% of the input is broken, above --max-broken=0.001 (missing text: 1, the first "
        "train/01.jsonl:2; text not a string: 1, the first train/01.jsonl:4); see "
    )
    assert prepare(tmp_path, "--max-broken=0.2") == 0
    out = capfd.readouterr().out
    assert "broken: 11.1111% of the input (see " in out and "text not a string: 1\n" in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["faults"]["text not a string"] == {
        "count": 1,
        "first": [{"where": "train/01.jsonl:4", "detail": 'not an object with a string "text"'}],
    }
    assert report["broken_documents"] == pytest.approx(2 / 18) and report["lost_bytes"] == 0


def test_verify_names_a_file_that_has_changed(tmp_path, capfd):
    write_pile(tmp_path / "in", shards=1, number=5)
    assert prepare(tmp_path) == 0
    path = tmp_path / "out" / "rows" / "train-00000.array_record"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    capfd.readouterr()
    assert main(["data", "verify", f"--path={tmp_path}/out"]) == 3
    assert "1 of 3 files are not what was written: rows/train-00000.array_record" in capfd.readouterr().err
    assert main(["data", "verify", f"--path={tmp_path}/in"]) == 2
    assert f"stagjax: --path={tmp_path}/in holds no prepared data" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "flags", "message"),
    [
        ([], {"path": "{}/none"}, "--path={}/none does not exist; correct it"),
        ([], {"row-length": 1}, "--row-length=1 is below 2; use 2 or more"),
        (["--processes=0"], {}, "--processes=0 is below 1; use 1 or more"),
        (["--validation-percent=51"], {}, "--validation-percent=51 is over 50; use 1 to 50"),
        (["--validation-percent=5"], {}, "--validation-percent=5 holds out training documents, but --path={}/in has a"),
        (["--max-broken=1.5"], {}, "--max-broken=1.5 is over 1; use 0 to 1"),
        (["--sha256={}/none"], {}, "--sha256={}/none cannot be read"),
        ([], {"vocabulary": "{}/none.model"}, "--vocabulary='{}/none.model' cannot be read (No such file"),
        ([], {"output": "gs://bucket/out"}, "--output=gs://bucket/out is no directory of this machine"),
        ([], {"output": "{}/in"}, "--output={}/in is not empty and was not made by stagjax data prepare"),
        (["--config.data.path=x"], {}, "--config.data.path=x: `stagjax data prepare` reads no experiment"),
        (["--max-brokn=1"], {}, "unknown argument '--max-brokn=1'"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(tmp_path, capfd, arguments, flags, message):
    write_pile(tmp_path / "in", shards=1, number=1)
    flags = {name: str(value).format(tmp_path) for name, value in flags.items()}
    assert prepare(tmp_path, *(argument.format(tmp_path) for argument in arguments), **flags) == 2
    err = capfd.readouterr().err
    assert err.startswith("stagjax: " + message.format(tmp_path)) and err.count("\n") == 1, err
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.parametrize("command", ["prepare", "verify"])
def test_help_shows_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main(["data", command, "--help"])
    assert stop.value.code == 0 and f"  stagjax data {command} --path=pile" in capsys.readouterr().out
