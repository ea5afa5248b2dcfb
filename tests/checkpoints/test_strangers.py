"""Exports of somebody else, with a valid seal: every fact is checked before anything is computed."""

import json
import math
import os
import shutil

import jax.numpy as jnp
import pytest
import safetensors.numpy

import stagjax
from stagjax.checkpoints import exported
from stagjax.checkpoints.inspection import inspect
from stagjax.checkpoints.saving import Checkpoints
from stagjax.errors import RunFailed, UserError
from stagjax.exporting import export_model, import_model
from stagjax.fingerprint import digest
from stagjax.training.initial import find_origin
from tests.runs import tiny_run, write_corpus, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and an export of it in several files, with its state."""
    folder = tmp_path_factory.mktemp("strangers")
    config = tiny_run("baseline_3", write_corpus(folder))
    workdir = write_run(config, folder / "run", (2.0,))
    export_model(workdir, folder / "export", with_state=True, shard_bytes=50_000)
    assert (folder / "export" / "model.safetensors.index.json").exists()
    return config, workdir, folder / "export"


def edit(name, change):
    """Return what changes a JSON file of an export, and seals it again."""

    def apply(directory):
        file = directory / name
        tree = json.loads(file.read_text())
        changed = change(tree)
        file.write_text(json.dumps(tree if changed is None else changed))
        seal(directory)

    return apply


def seal(directory):
    facts = json.loads((directory / "export.json").read_text())
    if isinstance(facts, dict):
        facts.pop("digest", None)
        if isinstance(facts.get("files"), dict):
            present = [name for name in facts["files"] if (directory / name).is_file()]
            facts["files"] |= {name: exported._sha256(directory / name) for name in present}
        (directory / "export.json").write_text(json.dumps(facts | {"digest": digest(facts)}))


def fact(name, value):
    return edit("export.json", lambda facts: facts.update({name: value}))


def model(**fields):
    return edit("config.json", lambda config: config["model"].update(fields))


def entry(name, key, value):
    return edit("export.json", lambda facts: facts[name].update({key: value}))


def shard(change):
    """Return what writes a file of tensors anew."""

    def apply(directory):
        file = min(directory.glob("model-*.safetensors"))
        safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)
        seal(directory)

    return apply


def linked(pattern, target):
    def apply(directory):
        name = min(directory.glob(pattern)).name
        if target:
            (directory / name).rename(directory.parent / "moved")
            (directory / name).symlink_to(target)
        else:
            (directory / name).unlink()
            os.mkfifo(directory / name)

    return apply


FACTS = ("format", "step", "metrics", "skipped_batches", "arrays", "fingerprint", "files")
STRANGE = (
    {
        f"no {name}": edit("export.json", lambda facts, name=name: {k: v for k, v in facts.items() if k != name})
        for name in FACTS
    }
    | {f"{name} as a list": fact(name, [1]) for name in FACTS}
    | {f"{name} as a text": fact(name, "x\n\x1b[31m") for name in FACTS}
    | {
        "format 99": fact("format", 99),
        "format true": fact("format", True),
        "step true": fact("step", True),
        "step -1": fact("step", -1),
        "loss NaN": fact("metrics", {"validation_loss": math.nan}),
        "loss a text": fact("metrics", {"validation_loss": "1"}),
        "skipped backwards": fact("skipped_batches", [[2, 1]]),
        "no such type": entry("arrays", "params/embedding", "float31[259,32]"),
        "another shape": entry("arrays", "params/embedding", "float32[259,33]"),
        "a negative shape": entry("arrays", "params/embedding", "float32[-259,32]"),
        "integers": entry("arrays", "params/embedding", "int32[259,32]"),
        "one more array": entry("arrays", "params/more", "float32[1]"),
        "a checksum of 33 bits": entry("fingerprint", "params/embedding", 2**32),
        "another checksum": entry("fingerprint", "params/embedding", 1),
        "a file elsewhere": entry("files", "../x", "0"),
        "a file by its whole path": entry("files", "/etc/hostname", "0"),
        "three heads": model(num_heads=3, num_kv_heads=1),
        "two stacks": model(num_stacks=2),
        "many stacks": model(num_stacks=10**9),
        "many layers": model(layers_per_stack=10**12),
        "wide": model(model_dim=2**62),
        "fewer ids": model(vocab_size=258),
        "a head width of 0": model(head_dim=0),
        "no sections": edit("config.json", lambda config: {}),
        "a list for a config": edit("config.json", lambda config: []),
        "a section that is a list": edit("config.json", lambda config: config.update(model=[])),
        "an unknown field": model(**{"x\n\x1b[31m": 1}),
        "no vocabulary's hash": edit("manifest.json", lambda manifest: manifest.pop("vocabulary_fingerprint") and None),
        "a number for it": edit("manifest.json", lambda manifest: manifest.update(vocabulary_fingerprint=1)),
        "a manifest that is a list": edit("manifest.json", lambda manifest: []),
        "ids that are described otherwise": edit("vocabulary.json", lambda described: described.update(size=7)),
        "a vocabulary of this machine": edit("config.json", lambda c: c["data"].update(vocabulary="/etc/hostname")),
        "weights elsewhere": edit("model.safetensors.index.json", lambda index: index.update(weight_map={"a": "../x"})),
        "weights by a whole path": edit(
            "model.safetensors.index.json", lambda i: i.update(weight_map={"a": "/etc/passwd"})
        ),
        "weights that are none": edit("model.safetensors.index.json", lambda index: index.update(weight_map=[1])),
        "no weights": edit("model.safetensors.index.json", lambda index: index.update(weight_map={})),
        "an index that is a list": edit("model.safetensors.index.json", lambda index: []),
        "tensors of another type": shard(lambda tensors: {k: v.astype(jnp.float16) for k, v in tensors.items()}),
        "tensors of another shape": shard(lambda tensors: {k: v.reshape(-1) for k, v in tensors.items()}),
        "one tensor more": shard(lambda tensors: tensors | {"more": next(iter(tensors.values()))}),
        "a link out of the directory": linked("model-*.safetensors", "../moved"),
        "a link to the machine": linked("config.json", "/etc/hostname"),
        "a pipe": linked("manifest.json", None),
        "a pipe of weights": linked("model-*.safetensors", None),
    }
)


@pytest.mark.parametrize("strange", STRANGE)
def test_what_does_not_fit_is_refused_in_one_line(made, tmp_path, strange):
    config, _, export = made
    shutil.copytree(export, tmp_path / "export")
    STRANGE[strange](tmp_path / "export")
    for read in (stagjax.load, lambda path: import_model(path, tmp_path / "new")):
        with pytest.raises((UserError, RunFailed)) as raised:
            read(tmp_path / "export")
        assert str(tmp_path / "export") in str(raised.value) and str(raised.value).isprintable()
    assert not (tmp_path / "new").exists()
    # What needs no arrays either refuses it too or tells the truth.
    for look in (inspect, lambda path: find_origin(tmp_path / "run", config.model, str(path))):
        try:
            look(tmp_path / "export")
        except (UserError, RunFailed) as error:
            assert str(error).isprintable()
        else:
            assert strange in ("another checksum", "ids that are described otherwise", "a vocabulary of this machine")


def test_an_export_as_it_is_or_with_links_within_is_taken(made, tmp_path):
    _, _, export = made
    shutil.copytree(export, tmp_path / "export")
    seal(tmp_path / "export")
    (tmp_path / "export" / "config.json").rename(tmp_path / "export" / "own")
    (tmp_path / "export" / "config.json").symlink_to("own")
    (tmp_path / "link").symlink_to("export")
    assert stagjax.load(tmp_path / "link").step == 2
    assert import_model(tmp_path / "link", tmp_path / "new")["step"] == 2


@pytest.mark.parametrize(
    "strange", ["three heads", "fewer ids", "a section that is a list", "step true", "a pair of facts"]
)
def test_checkpoints_of_somebody_else_are_held_to_the_same(made, tmp_path, strange):
    shutil.copytree(made[1], tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "2" / "metadata" / "metadata"
    metadata = json.loads(file.read_text())
    metadata.pop("digest")
    if strange == "three heads":
        metadata["config"]["model"] |= {"num_heads": 3, "num_kv_heads": 1}
    elif strange == "fewer ids":
        metadata["config"]["model"]["vocab_size"] = 258
    elif strange == "a section that is a list":
        metadata["config"]["model"] = []
    elif strange == "step true":
        metadata["step"] = True
    else:
        del metadata["metrics"], metadata["arrays"]
    file.write_text(json.dumps(metadata | {"digest": digest(metadata)}))
    with pytest.raises((UserError, RunFailed), match="checkpoints?[ /]2 "):
        stagjax.load(tmp_path / "run")
    assert Checkpoints(tmp_path / "run", 1, read_only=True).present() == [2]
