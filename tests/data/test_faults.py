"""Faults: counted by kind, the first cases by name, the same by way of JSON."""

import json

from stagjax.data.faults import Fault, Faults


def faults(*cases):
    result = Faults()
    for kind, where in cases:
        result.add(Fault(kind, where, "detail"))
    return result


def test_all_are_counted_and_the_first_of_each_kind_kept():
    result = faults(*(("invalid JSON", f"a:{line}") for line in range(30)), ("empty document", "a:31"))
    assert result.counts == {"invalid JSON": 30, "empty document": 1}
    assert [fault.where for fault in result.first["invalid JSON"]] == [f"a:{line}" for line in range(20)]
    assert result.lines() == [
        "empty document: 1",
        "  a:31: detail",
        "invalid JSON: 30",
        *(f"  a:{line}: detail" for line in range(3)),
        "  and 27 more",
    ]


def test_merging_is_adding_one_after_the_other_also_by_way_of_json():
    parts = [[("x", f"a:{line}") for line in range(15)], [("x", f"b:{line}") for line in range(9)] + [("y", "b:10")]]
    merged = faults(*parts[0])
    merged.merge(Faults.from_dict(json.loads(json.dumps(faults(*parts[1]).to_dict()))))
    assert merged.to_dict() == faults(*parts[0], *parts[1]).to_dict()
    assert merged.counts == {"x": 24, "y": 1} and len(merged.first["x"]) == 20
