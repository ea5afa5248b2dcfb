"""The command line as its user meets it: help, exit statuses, and one clear line for what is wrong."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import stagjax
from stagjax import streams
from stagjax.cli import COMMANDS, build_parser, main
from stagjax.cli.generate import _read_prompts
from stagjax.errors import UserError
from stagjax.reporting.metrics import read_metrics
from tests.arguments import refuse_numbers_without_meaning

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = "--config=experiments/stdlib.py:shared_2x3,runlocal"
FEWER = [
    "--config.training.steps=4",
    "--config.training.warmup_steps=2",
    "--config.training.validation_rows=8",
    "--config.model.max_length=128",
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model trained by the command line, on a full disk of its log and before an audience that has gone."""
    workdir = tmp_path_factory.mktemp("cli") / "run"
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.MonkeyPatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr("sys.stdout", streams._text(full.fileno()))
        patch.setattr("sys.stderr", streams._text(writer))
        assert main(["train", RUN, f"--workdir={workdir}", *FEWER]) == 3
    os.close(writer)
    return workdir


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"] if command else ["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "stagjax" in printed
    assert "example" in printed or "exit status" in printed or "samples.txt" in printed


def test_a_command_that_does_not_exist_exits_with_2(capsys):
    assert main(["trian"]) == 2
    printed = capsys.readouterr().err
    assert "COMMAND: invalid choice: 'trian'" in printed and printed.endswith("; see stagjax --help\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_takes_a_number_without_meaning(command, capsys):
    refuse_numbers_without_meaning(main, build_parser(command), "stagjax", capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "--config=experiments/stdlib.py:baseline_9"], "unknown variant 'baseline_9'; did you mean"),
        (["info", RUN, "--context=5000"], "--context=5000 is over model.max_length=1024; use that or less"),
        (["info", RUN, "--flag"], "unknown argument '--flag'"),
        (["info", RUN, "--config.training.setps=3"], "did you mean 'training.steps'"),
        (["generate", "--workdir=/nowhere", "--prompt=x"], "'/nowhere' holds no checkpoints"),
        (["generate", "--workdir=/nowhere", "--prompt=x", "--config.model.lag=2"], "has no meaning here"),
        (
            ["generate", "--workdir=/nowhere", "--prompts-file=/nowhere.txt"],
            "--prompts-file=/nowhere.txt cannot be read",
        ),
        (["generate", "--workdir=/nowhere", "--prompt=x", "--checkpoint=first"], "--checkpoint=first is neither"),
        (["train", RUN, "--workdir=/proc/none"], "--workdir=/proc/none cannot be written"),
        (["train", RUN, "--workdir={tmp}/a", "--config.data.vocabulary={tmp}/no.model"], "data.vocabulary"),
        (["train", RUN, "--workdir={tmp}/b", "--config.data.source=text", "--config.data.path={tmp}"], "data.path"),
        (["train", RUN, "--workdir={tmp}/c", "--config.data.source=jsonl"], "data.path is not set"),
        (["train", RUN, "--workdir={tmp}/d", "--config.model.vocab_size=100"], "model.vocab_size=100"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main([word.format(tmp=tmp_path) for word in argv]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert printed.startswith("stagjax: ")
    assert "\n" not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt=" + "x" * 200], "is over model.max_length=128"),
        (["--prompt=x", "--decoding=paralel"], "did you mean 'parallel'"),
        (["--prompt=\udcff"], r"prompt '\udcff' is not Unicode text"),
        (["--prompt=x", "--checkpoint=999"], "there is no checkpoint 999"),
        (["--prompt=x", "--top-p=2"], "--top-p=2 is over 1; use more than 0, to 1"),
        (["--prompt=x", "--json=/proc/x.json", "--max-new-tokens=2"], "cannot write /proc/x.json"),
    ],
)
def test_bad_requests_to_a_model_are_one_line(workdir, options, message, capsys):
    assert main(["generate", f"--workdir={workdir}", *options]) == 2
    assert message in last_line(capsys)


def test_recurrent_decoding_of_separate_weights_is_refused(tmp_path, capsys):
    argv = ["train", "--config=experiments/stdlib.py:separate_2x3,runlocal", f"--workdir={tmp_path}", *FEWER]
    assert main(argv) == 0
    assert main(["generate", f"--workdir={tmp_path}", "--prompt=x", "--decoding=recurrent"]) == 2
    assert "recurrent decoding needs a shared-weights model" in last_line(capsys)


@pytest.mark.parametrize("decoding", ["parallel", "sequential", "recurrent"])
def test_generate_prints_and_writes_what_the_library_returns(workdir, tmp_path, decoding, capsys):
    out = tmp_path / "out.json"
    options = [f"--decoding={decoding}", "--max-new-tokens=6", "--temperature=0.9", "--seed=3"]
    assert main(["generate", f"--workdir={workdir}", "--prompt=def ", f"--json={out}", *options]) == 0
    printed = capsys.readouterr().out
    (wanted,) = stagjax.load(workdir).generate("def ", 6, decoding=decoding, temperature=0.9, seed=3)
    assert printed.rstrip("\n") == (wanted.prompt + wanted.text).rstrip("\n")
    (row,) = json.loads(out.read_text())["rows"]
    assert row["ids"] == wanted.ids
    assert row["stop_reason"] == wanted.stop_reason


def test_prompts_from_a_file_are_one_batch(workdir, tmp_path, capsys):
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("import os\nx\n")
    lines.write_text('{"prompt": "import os"}\n{"prompt": "x"}\n')
    printed = []
    for file in (plain, lines):
        assert main(["generate", f"--workdir={workdir}", f"--prompts-file={file}", "--max-new-tokens=4"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "--- prompt 2" in printed[0]
    lines.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert main(["generate", f"--workdir={workdir}", f"--prompts-file={lines}"]) == 2
    assert "prompts.jsonl:2" in last_line(capsys)
    lines.write_text('{"prompt": 5}\n')
    assert main(["generate", f"--workdir={workdir}", f"--prompts-file={lines}"]) == 2
    assert "prompts.jsonl:1" in last_line(capsys)


def test_lines_of_a_prompts_file_end_in_newlines_alone(tmp_path):
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    wanted = ["a\x0cb", "c\u2028d\x85", " e"]
    plain.write_bytes("\ufeffa\x0cb\r\n\n  \nc\u2028d\x85\n e".encode())
    assert _read_prompts(plain) == wanted
    records = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in wanted]
    lines.write_bytes("\ufeff{}\n\n{}\r\n{}\n\n".format(*records).encode())
    assert _read_prompts(lines) == wanted
    lines.write_text('\n{"prompt": "a"}\n\n{"text": "b"}\n')
    with pytest.raises(UserError, match="prompts.jsonl:4 is not"):
        _read_prompts(lines)


def test_a_terminal_is_shown_no_control_characters(workdir, capsys, monkeypatch):
    argv = ["generate", f"--workdir={workdir}", "--prompt=\x1b[31md\te\nf\u202e", "--max-new-tokens=1"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("\x1b[31md\te\nf\u202e")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main([*argv, "--prompt=\x07"]) == 0
    out = capsys.readouterr().out
    assert "\n\\x1b[31md\te\nf\\u202e" in out and "\n\\x07" in out and "\x1b" not in out


def test_a_vocabulary_that_was_trained_with_is_kept_with_the_run(tmp_path, capsys):
    vocabulary = tmp_path / "v.model"
    (tmp_path / "text").mkdir()
    for n in range(40):
        (tmp_path / "text" / f"{n}.txt").write_text(f"file {n}: the cat sat on the mat, and the dog ate the log.\n" * 5)
    source = ["--source=text", f"--path={tmp_path}/text"]
    assert main(["data", "vocab", *source, "--size=320", f"--output={vocabulary}"]) == 0
    fields = ["source=text", f"path={tmp_path}/text", f"vocabulary={vocabulary}", "row_length=32"]
    argv = ["train", RUN, f"--workdir={tmp_path}/run", *FEWER, "--config.model.vocab_size=320"]
    assert main([*argv, *(f"--config.data.{field}" for field in fields)]) == 0
    vocabulary.unlink()
    lm = stagjax.load(tmp_path / "run")
    assert lm.vocabulary.size == 320
    (row,) = lm.generate("the cat", 5)
    assert lm.vocabulary.decode(row.ids) == row.text
    (tmp_path / "run" / "vocabulary.model").write_bytes(b"something else")
    with pytest.raises(UserError, match="vocabulary"):
        stagjax.load(tmp_path / "run")


def test_info_writes_the_figures_that_it_prints(tmp_path, capsys):
    out = tmp_path / "info.json"
    assert main(["info", "--config=experiments/pile.py:shared_2x18", f"--json={out}", "--batch=4"]) == 0
    figures = json.loads(out.read_text())
    assert figures["parameters"]["total"] == 1_754_221_056
    assert figures["cache_bytes"]["total"] == 4 * 3 * 18 * 2 * 1280 * 12 * 128 * 2
    assert figures["flops_per_token"]["recurrent_decoding"] < figures["flops_per_token"]["decoding"]
    assert "1,754,221,056" in capsys.readouterr().out


def test_a_run_whose_log_is_lost_loses_nothing(workdir):
    assert [row["step"] for row in read_metrics(workdir)][-1] == 4
    assert main(["checkpoint", "inspect", str(workdir)]) == 0
    assert sys.stdout is not sys.__stdout__, "pytest's own is left alone"


ALL = """
import json, sys, tpu.cli
from stagjax.cli import main
run, empty, statuses = sys.argv[1:]
def ended(call, argv):
    try:
        return call(argv)
    except SystemExit as stop:
        return stop.code
listing = ["evaluate", "--list", "--data-dir=" + empty]
lines = ["--help"], ["info", "--nonsense"], ["checkpoint", "inspect", run], listing
done = [ended(main, argv) for argv in lines] + [ended(tpu.cli.main, argv) for argv in (["topologies"], ["--help"])]
open(statuses, "w").write(json.dumps(done))
sys.exit(done[-1])
"""
"""Several commands in one process, which ends as the last of them."""


@pytest.mark.parametrize(
    ("redirection", "unbuffered", "status"),
    [("<&- >&- 2>&-", "", 0), (">/dev/full", "", 3), ("unread 2>/dev/full", "1", 0), ("ascii", "", 0)],
)
def test_no_command_fails_on_what_it_prints(workdir, tmp_path, redirection, unbuffered, status):
    run = tmp_path / "m\u00f6del\u2192"
    run.symlink_to(workdir)
    encoding = {"PYTHONIOENCODING": "ascii"} if redirection == "ascii" else {"PYTHONUTF8": "1"}
    reader, writer = os.pipe()
    os.close(reader)
    unread = redirection.startswith("unread")
    script = 'exec "$@" ' + redirection.removeprefix("unread").removeprefix("ascii")
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", ALL, run, tmp_path, tmp_path / "statuses"],
        stdout=writer if unread else subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)} | encoding,
        cwd=ROOT,
    )
    os.close(writer)
    told = done.stderr.decode()
    assert done.returncode == status, told
    assert json.loads((tmp_path / "statuses").read_text()) == [status, 2, *[status] * 4]
    assert "Traceback" not in told and "Exception ignored" not in told
    lost = "standard output could not be written: No space left on device; all else is done"
    assert told.count(lost) == (5 if status else 0), "all print but the one that is refused"
    if redirection == "ascii":
        assert "m\\xf6del\\u2192" in done.stdout.decode("ascii")
