"""The manifest: it changes with anything that changes the rows, and says what."""

import dataclasses
import json

import numpy as np
import pytest

from stagjax.data.manifest import ContentHash, Manifest, differences, rows_hash
from stagjax.data.packing import Rows, pack
from stagjax.errors import UserError

MANIFEST = Manifest("stdlib", "bytes", "f0", 256, 5, 2, 20, "c0", "r0", 1, 10, "c1", "r1")


def content(*documents):
    digest = ContentHash()
    for name, text in documents:
        digest.add(name, text)
    return digest


def test_json_and_back():
    assert Manifest.from_dict(json.loads(json.dumps(MANIFEST.to_dict()))) == MANIFEST


@pytest.mark.parametrize("change", [lambda fields: fields.pop("source"), lambda fields: fields.update(extra=1)])
def test_other_fields_are_refused(change):
    fields = MANIFEST.to_dict()
    change(fields)
    with pytest.raises(UserError, match="written by another version of stagjax: it differs in (source|extra);"):
        Manifest.from_dict(fields)


def test_differences_name_every_field_but_the_vocabularys_name():
    assert differences(MANIFEST, MANIFEST) == []
    assert differences(MANIFEST, dataclasses.replace(MANIFEST, vocabulary_name="moved.model")) == []
    for field in dataclasses.fields(Manifest):
        if field.name != "vocabulary_name":
            old, new = getattr(MANIFEST, field.name), "another"
            changed = dataclasses.replace(MANIFEST, **{field.name: new})
            assert differences(MANIFEST, changed) == [f"{field.name}: {old} -> {new}"]


def test_content_hash_sees_names_texts_order_and_boundaries():
    digests = [
        content(("a", "x"), ("b", "y")),
        content(("b", "y"), ("a", "x")),
        content(("a", "xb"), ("", "y")),
        content(("ax", ""), ("b", "y")),
        content(("a", "x")),
        content(),
    ]
    assert len({digest.hexdigest() for digest in digests}) == len(digests)
    assert content(("a", "x")).hexdigest() == content(("a", "x")).hexdigest()
    assert (content(("ä", "é"), ("b", "x")).num_documents, content(("ä", "é"), ("b", "x")).num_bytes) == (2, 3)


def test_rows_hash_sees_every_array_and_the_shape():
    rows = pack([[5, 6, 7, 2], [8, 9, 2, 2]], 4)
    changed = [
        dataclasses.replace(rows, targets_RT=rows.targets_RT + 1),
        dataclasses.replace(rows, segment_ids_RT=rows.segment_ids_RT + 1),
        dataclasses.replace(rows, first_inputs_R=rows.first_inputs_R + 1),
        Rows(rows.targets_RT.reshape(4, 2), rows.segment_ids_RT.reshape(4, 2), rows.first_inputs_R),
        rows.select(np.array([1, 0])),
    ]
    assert len({rows_hash(other) for other in [rows, *changed]}) == 6


def test_rows_hash_is_pinned():
    # A resumed run compares it with what another machine wrote.
    assert (
        rows_hash(pack([[5, 6, 7, 2], [8, 2]], 4)) == "7a8445961fa7b0ec4c8480b59ca3298a9c61e84a22670985af63b6471a937e80"
    )
