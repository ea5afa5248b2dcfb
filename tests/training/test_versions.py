"""Versions of a run: recorded when it begins, and told when it goes on with others."""

import importlib.metadata
import json

import pytest

from stagjax.errors import UserError
from stagjax.training import versions


def test_versions_are_recorded_once_and_told_when_they_change(tmp_path, monkeypatch):
    assert versions.record(tmp_path, 0) is None
    first = json.loads((tmp_path / "versions.json").read_text())
    assert first["history"][0]["from_step"] == 0
    assert first["history"][0]["versions"]["jax"] == importlib.metadata.version("jax")
    assert {"jax", "jaxlib", "flax", "optax"} <= set(first["history"][0]["versions"])
    assert versions.record(tmp_path, 7) is None
    assert json.loads((tmp_path / "versions.json").read_text()) == first

    now = versions.installed()
    monkeypatch.setattr(versions, "installed", lambda: {**now, "jax": "9.9", "libtpu": "1.2"})
    said = versions.record(tmp_path, 8)
    assert said.startswith("going on with other versions, which may round differently: ")
    assert f"jax {now['jax']} -> 9.9" in said and "-> 1.2" in said and "optax" not in said and "\n" not in said
    assert [entry["from_step"] for entry in json.loads((tmp_path / "versions.json").read_text())["history"]] == [0, 8]
    assert versions.record(tmp_path, 9) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"history": 1}', '{"history": [{"from_step": 0}]}', "\0", None])
def test_a_damaged_record_is_one_line(tmp_path, text):
    file = tmp_path / "versions.json"
    file.mkdir() if text is None else file.write_text(text)
    with pytest.raises(UserError, match="versions.json (is damaged|cannot be read).*; remove it: it is written anew"):
        versions.record(tmp_path, 0)
