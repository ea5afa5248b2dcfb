"""What processes may say to each other: every message with its fields, and what each field may hold.

Who reads a message asks `check` first, and need not look at a field again.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stagjax.hosts.lines import Message
from stagjax.hosts.place import MOST_PROCESSES
from stagjax.printable import one_line


class Rule(NamedTuple):
    """What a field may hold, as a predicate and in words."""

    holds: Callable[[object], bool]
    words: str


def _integer(low: int, high: int) -> Rule:
    # A bool is an int to Python, and none here.
    return Rule(lambda value: type(value) is int and low <= value <= high, f"an integer of {low} to {high}")


def _string(longest: int) -> Rule:
    return Rule(lambda value: isinstance(value, str) and len(value) <= longest, f"a string of at most {longest}")


_TEXT, _HOST = _string(1 << 20), _string(255)
_DIGEST = Rule(lambda value: isinstance(value, str) and _HEX.fullmatch(value) is not None, "64 hexadecimal digits")
_HEX = re.compile("[0-9a-f]{64}")
_DIGEST_OR_NONE = Rule(lambda value: value is None or _DIGEST.holds(value), "64 hexadecimal digits or null")
_TRUE = Rule(lambda value: value is True, "true")
_BOOL = Rule(lambda value: isinstance(value, bool), "true or false")
_ANYTHING = Rule(lambda value: True, "anything")
_LIST = Rule(lambda value: isinstance(value, list), "a list")
_HOSTS = Rule(lambda value: isinstance(value, list) and all(map(_HOST.holds, value)), "a list of names")
_FACTS = Rule(
    # Their names are strings, as all names of JSON are.
    lambda value: isinstance(value, dict) and len(value) <= 10_000 and all(map(_TEXT.holds, value.values())),
    "at most 10000 strings by name",
)
_HUB = Rule(lambda value: value == "hub", '"hub"')
_PROCESS, _STATUS, _SIGNAL = _integer(0, MOST_PROCESSES - 1), _integer(0, 255), _integer(1, 64)
_STEPS, _PID = _integer(0, 2**53), _integer(1, 2**31 - 1)

Table = Mapping[str, Mapping[str, Rule]]

# Of each end at each stage: the messages by their first field.
BEAT: Message = {"beat": True}
_BEAT, _ENDED = {"beat": _TRUE}, {"ended": _STATUS, "text": _TEXT}
OF_STRANGERS: Table = {
    # Whether there is a secret where process 0 thinks otherwise.
    "secret": {"secret": _BOOL, "process_id": _PROCESS},
    "proof": {"proof": _DIGEST, "nonce": _DIGEST, "process_id": _PROCESS},
    "hello": {
        "hello": _PROCESS,
        "num_processes": _integer(1, MOST_PROCESSES),
        "host": _HOST,
        "pid": _PID,
        "facts": _FACTS,
    },
}
OF_THE_DOOR: Table = {
    "stagjax": {"stagjax": _HUB, "nonce": _DIGEST_OR_NONE},
    "proof": {"proof": _DIGEST},
    "unproven": {"unproven": _TRUE},
    "refused": {"refused": _TEXT},
    "welcome": {"welcome": _HOSTS},
    "ended": _ENDED,
    "beat": _BEAT,
}
OF_MEMBERS: Table = {
    "beat": _BEAT,
    "gather": {"gather": _TEXT, "value": _ANYTHING},
    "stop": {"stop": _SIGNAL},
    "begun": {"begun": _STEPS},
    "parted": {"parted": _TRUE},
    "ended": _ENDED,
}
OF_THE_HUB: Table = {
    "beat": _BEAT,
    "gathered": {"gathered": _TEXT, "values": _LIST},
    "freeze": {"freeze": _TRUE},
    "until": {"until": _STEPS, "signal": _SIGNAL},
    "lost": {"lost": _TEXT},
    "ended": _ENDED,
}


def check(message: Message, table: Table) -> str:
    """Return the first field of a message, which says what it is, after all of them have been looked at.

    Raises:
      ValueError: it is none of the table, lacks a field or has another, or a field holds what it may not.
    """
    kind = next((name for name in table if name in message), None)
    if kind is None or table[kind].keys() != message.keys():
        raise ValueError(f"no message of this stage has the fields {one_line(sorted(message), 100)}")
    for name, rule in table[kind].items():
        if not rule.holds(message[name]):
            raise ValueError(f"{name}={one_line(repr(message[name]), 60)} is not {rule.words}")
    return kind
