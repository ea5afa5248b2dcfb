"""What a message may hold: the type and the range of every field of every message."""

import math

import pytest

from stagjax.hosts import messages

HEX = "0123456789abcdef" * 4
ENDED = {"ended": 3, "text": "disk full\n\x1b"}
EXAMPLES = {
    "OF_STRANGERS": [
        {"secret": True, "process_id": 0},
        {"proof": HEX, "nonce": HEX, "process_id": 65535},
        {"hello": 1, "num_processes": 65536, "host": "h", "pid": 1, "facts": {"jax": "0.10"}},
    ],
    "OF_THE_DOOR": [
        {"stagjax": "hub", "nonce": HEX},
        {"proof": HEX},
        {"unproven": True},
        {"refused": "why"},
        {"welcome": ["a", "b"]},
        ENDED,
        {"beat": True},
    ],
    "OF_MEMBERS": [
        {"beat": True},
        {"gather": "1 data", "value": {"any": [math.nan]}},
        {"stop": 15},
        {"begun": 2**53},
        {"parted": True},
        ENDED,
    ],
    "OF_THE_HUB": [
        {"beat": True},
        {"gathered": "1 data", "values": [{}, None]},
        {"freeze": True},
        {"until": 0, "signal": 64},
        {"lost": "who"},
        ENDED,
    ],
}
ANY = [True, 1, 1.5, math.nan, math.inf, "x", None, ["x"], {"x": "x"}]
OUTSIDE = {
    **dict.fromkeys(("hello", "process_id"), (-1, 65536, 2**70)),
    "num_processes": (0, -1, 65537),
    "pid": (0, 2**31),
    "ended": (-1, 256),
    **dict.fromkeys(("stop", "signal"), (0, 65)),
    **dict.fromkeys(("begun", "until"), (-1, 2**53 + 1)),
    **dict.fromkeys(("proof", "nonce"), ("", HEX[1:], HEX + "0", HEX[1:] + "G", HEX + "\n")),
    **dict.fromkeys(("freeze", "parted", "beat", "unproven"), (False,)),
    "host": ("h" * 256,),
    "facts": ({"a": 1}, {"a": None}, {"a": {}}, dict.fromkeys(map(str, range(10_001)), "")),
    "welcome": (["a", 1], ["h" * 256]),
    "stagjax": ("member",),
}
CASES = [
    pytest.param(name, message, id=f"{name} {next(iter(message))}") for name in EXAMPLES for message in EXAMPLES[name]
]


def test_every_message_is_tried():
    for name, examples in EXAMPLES.items():
        assert [next(iter(message)) for message in examples] == list(getattr(messages, name))


@pytest.mark.parametrize(("name", "message"), CASES)
def test_types_and_ranges(name, message):
    table = getattr(messages, name)
    assert messages.check(message, table) == next(iter(message))
    for field, good in message.items():
        bad = [value for value in ANY if type(value) is not type(good)] if field != "value" else []
        if field == "nonce" and name == "OF_THE_DOOR":
            bad.remove(None)  # where there is no secret
        for value in [*bad, *OUTSIDE.get(field, ())]:
            with pytest.raises(ValueError, match=f"^{field}=.* is not "):
                messages.check(message | {field: value}, table)
        if len(message) > 1:
            with pytest.raises(ValueError, match="no message of this stage"):
                messages.check({name: value for name, value in message.items() if name != field}, table)
    with pytest.raises(ValueError, match="no message of this stage"):
        messages.check(message | {"more": 1}, table)


def test_a_message_of_another_stage_and_none():
    for message in ({"welcome": ["a"]}, {}, {"\x1b[31m": 1}):
        with pytest.raises(ValueError, match=r"no message of this stage has the fields \[[^\x1b]*\]"):
            messages.check(message, messages.OF_MEMBERS)
