"""The model against the float64 reference's vectors, and the command that compares them."""

import json

import numpy as np
import pytest

from tests import conformance

FILES = sorted(conformance.FOLDER.glob("*.npz"))


def test_the_reference_vectors_are_there():
    assert len(FILES) >= 18


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_logits_and_stack_outputs_equal_the_reference(path):
    found = conformance.differences(path)
    assert "logits" in found
    assert max(found.values()) <= conformance.BOUND


def test_the_command_fails_above_the_bound(tmp_path, capsys):
    original = conformance.FOLDER / "separate_2.npz"
    with np.load(original) as archive:
        arrays = dict(archive)
    arrays["logits"] = arrays["logits"] + 2e-5 * np.abs(arrays["logits"]).max()
    np.savez(tmp_path / "moved.npz", **arrays)
    assert conformance.main([str(tmp_path / "moved.npz"), str(original)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL moved.npz" in printed
    assert "1 passed, 1 failed" in printed


def test_a_file_that_cannot_be_compared_fails(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("not an archive")
    assert conformance.main([str(tmp_path / "text.npz"), str(tmp_path / "absent.npz")]) == 1
    assert capsys.readouterr().out.count("FAIL") == 2


def test_a_feature_that_is_ignored_would_show(tmp_path):
    with np.load(conformance.FOLDER / "window_4.npz") as archive:
        arrays = dict(archive)
    config = json.loads(str(arrays["config"]))
    arrays["config"] = np.asarray(json.dumps(config | {"window": None}))
    np.savez(tmp_path / "unlimited.npz", **arrays)
    assert max(conformance.differences(tmp_path / "unlimited.npz").values()) > 100 * conformance.BOUND
