"""What a process is told of its place."""

import pytest

from stagjax.errors import UserError
from stagjax.hosts.place import Place, told


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    for name in ("STAGJAX_COORDINATOR", "STAGJAX_NUM_PROCESSES", "STAGJAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)


def test_flags_and_environment_say_the_same(monkeypatch):
    assert told() is None
    assert told("host:80", 4, 0) == Place(0, 4, "host:80")
    monkeypatch.setenv("STAGJAX_COORDINATOR", "host:80")
    monkeypatch.setenv("STAGJAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("STAGJAX_PROCESS_ID", "0")
    assert told() == Place(0, 4, "host:80")
    assert told(process_id=3) == Place(3, 4, "host:80")


def test_addresses():
    assert Place(0, 1, "host:80").address == ("host", 80)
    assert Place(0, 1, "[::1]:80").address == ("::1", 80)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:80", None, 0), "--coordinator, --process-id without --num-processes"),
        (("host:80", 2, 2), "--process-id=2 is not among --num-processes=2"),
        (("host:80", 2, -1), "--process-id=-1 is no number"),
        (("host:80", 99999999999, 0), "--num-processes=99999999999 is no number of up to nine digits"),
        (("host:80", 0, 0), "--num-processes=0 is outside 1..65536"),
        (("host", 2, 0), "--coordinator=host is not HOST:PORT"),
        (("host:port", 2, 0), "is not HOST:PORT"),
        ((":80", 2, 0), "is not HOST:PORT"),
        (("host:80000", 2, 0), "is not HOST:PORT"),
    ],
)
def test_what_has_no_meaning(arguments, message):
    with pytest.raises(UserError, match=message):
        told(*arguments)


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("STAGJAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="--num-processes=two is no number"):
        told("host:80", None, 0)
