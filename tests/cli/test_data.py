"""`stagjax data vocab`: trains on the training split, checks both, and refuses in one line."""

import json
import subprocess
import sys

import pytest

from stagjax.cli import main
from stagjax.data.sources import split_of
from stagjax.data.vocabulary import SentencePieceVocabulary, load_vocabulary, train_sentencepiece


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(40):
        name = f"{number}.txt"
        word = "heldout" if split_of(name, 5) == "validation" else "studied"
        (tmp_path / "texts" / name).write_text(f"{word} {word}  text {number}\n    of  {word}\n" * 8)
    return tmp_path


def vocab(folder, *arguments, source="text", size=300, output="v.model"):
    path = [f"--path={folder}/texts"] if source != "stdlib" else []
    return main(
        ["data", "vocab", f"--source={source}", f"--size={size}", f"--output={folder}/{output}", *path, *arguments]
    )


def test_vocab_trains_on_the_training_split_and_checks_both(folder, capsys):
    assert vocab(folder) == 0
    out = capsys.readouterr().out
    vocabulary = load_vocabulary(f"{folder}/v.model")
    names = [f"{number}.txt" for number in range(40)]
    for split in ("train", "validation"):
        texts = [(folder / "texts" / name).read_text() for name in names if split_of(name, 5) == split]
        num_bytes, num_tokens = sum(map(len, texts)), sum(len(vocabulary.encode(text)) for text in texts)
        assert texts
        assert f"read {split}: {len(texts)} documents, {num_bytes:,} bytes\n" in out
        assert f"checked {split}: all {len(texts)} documents decode exactly; {num_tokens:,} tokens, " in out
        assert f"{num_bytes / num_tokens:.2f} bytes a token" in out
    assert "trained 300 ids in " in out and f"{folder}/v.model\n" in out
    studied = [(folder / "texts" / name).read_text() for name in sorted(names) if split_of(name, 5) == "train"]
    assert vocabulary.fingerprint == train_sentencepiece(studied, 300, folder / "studied.model").fingerprint


def test_vocab_reads_jsonl_and_names_what_it_skips(folder, capsys):
    texts = [path.read_text() for path in (folder / "texts").iterdir()]
    lines = [json.dumps({"text": text}) for text in texts for _ in range(3)]
    (folder / "texts" / "a.jsonl").write_text("\n".join(["{[markup]", *lines]))
    assert vocab(folder, "--validation-percent=10", source="jsonl") == 0
    assert "skipped 1:\n  a.jsonl:1: not JSON" in capsys.readouterr().out


def test_vocab_reads_the_standard_library(folder, capsys):
    assert vocab(folder, source="stdlib", size=1000) == 0
    assert "trained 1,000 ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], dict(size=10_000_000), r"--size=10000000 is more than this text yields; use "),
        ([], dict(size=5), "--size=5 is below the 4 specials and 256 bytes; use 512 or more"),
        (["--share=0"], {}, "--share=0 is not above 0; use more than 0, to 1"),
        ([], dict(source="jsonl"), "empty corpus: --path='{}/texts' has no file that ends in .jsonl, .jsonl.zst, "
                                   ".jsonl.zstd, .jsonl.gz, which "
                                   "is what --source='jsonl' reads; correct one of the two"),
        ([], dict(source="txt"), "unknown --source 'txt'; did you mean 'text'?"),
        (["--path={}/none"], {}, "--path='{}/none' does not exist; --source='text' reads a directory"),
        (["--validation-percent=0"], {}, "--validation-percent=0 is below 1; use 1 to 50"),
        (["--validation-percent=51"], {}, "--validation-percent=51 is over 50; use 1 to 50"),
        (["--config.data.path=x"], {}, "--config.data.path=x: `stagjax data vocab` reads no experiment"),
        (["--sise=4"], {}, "unknown argument '--sise=4'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line_and_status_2(folder, capsys, arguments, options, message):
    assert vocab(folder, *(argument.format(folder) for argument in arguments), **options) == 2
    err = capsys.readouterr().err
    assert err.startswith("stagjax: " + message.format(folder)) and err.count("\n") == 1
    assert not (folder / "v.model").exists()


def test_a_missing_path_is_asked_for_by_this_commands_flag(folder, capsys):
    assert main(["data", "vocab", "--source=text", "--size=300", f"--output={folder}/v.model"]) == 2
    assert capsys.readouterr().err == (
        "stagjax: --path is not set, but --source='text' reads a directory; add --path=DIR\n"
    )


def test_an_empty_split_is_named_by_this_commands_flag(folder, capsys):
    for path in (folder / "texts").iterdir():
        if split_of(path.name, 5) == "validation":
            path.unlink()
    assert vocab(folder) == 2
    assert "empty corpus: --validation-percent=5 leaves no document for validation" in capsys.readouterr().err


def test_an_existing_output_is_refused_before_anything_is_read(folder, capsys):
    (folder / "v.model").write_text("precious")
    assert vocab(folder) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err
        == f"stagjax: --output={folder}/v.model exists and is never overwritten; remove it or choose another name\n"
    )
    assert (folder / "v.model").read_text() == "precious"


def test_a_vocabulary_that_loses_text_fails_the_run(folder, capsys, monkeypatch):
    monkeypatch.setattr(SentencePieceVocabulary, "decode", lambda self, ids: "something else")
    assert vocab(folder) == 3
    assert f"{folder}/v.model does not reproduce the document '" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["data"], ["data", "vocab"]])
def test_help_shows_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "stagjax data vocab --source=stdlib --size=8192 --output=" in capsys.readouterr().out


def test_help_and_work_load_no_framework(folder):
    code = (
        "import sys; from stagjax.cli import main\n"
        f"main('data vocab --source=text --path={folder}/texts --size=300 --output={folder}/v.model'.split())\n"
        "print(*sorted({'tensorflow', 'seqio', 'jax'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == ""
    code = "import sys, stagjax.cli.data; print(*{'numpy', 'rich', 'stagjax.config'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
