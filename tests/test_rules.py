"""Rules for single values, and that a number of thousands of digits is refused wherever one is read from a text."""

import pytest

from stagjax.checkpoints import origin
from stagjax.cli import checkpoint_step
from stagjax.errors import UserError
from stagjax.evaluation.questions import parse_tasks
from stagjax.mesh import DecodeMesh
from stagjax.rules import COUNT, SEED, Flag, Maybe, Number, Text
from stagjax.training.profiling import Window

DIGITS = 5000 * "9"  # more than Python makes an int of


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        (COUNT, 0, "x=0 is below 1; use 1 or more"),
        (COUNT, 2**31, "x=2147483648 is over 2147483647; use 1 to 2147483647"),
        (SEED, 2**32, "x=4294967296 is over 4294967295; use 0 to 4294967295"),
        (Number(float, 0, 1, open_low=True, open_high=True), 1, "x=1 is not below 1; use more than 0, up to but not 1"),
        (
            Number(float, 0, 1, open_high=True),
            1 - 2**-25,
            "x=0.9999999701976776 is 1 in float32; use 0 up to but not 1",
        ),
        (Number(float, 0), 10**400, f"x=1{76 * '0'}... is not finite; use 0 or more"),
        (Flag(), 1, "x=1 is int, not bool; use True or False"),
        (Text(("last", "linear")), "lineer", "unknown x 'lineer'; did you mean 'linear'? known: last, linear"),
        (Text(("a", "b")), None, "x=None is NoneType, not str; use 'a' or 'b'"),
        (Text(hint="a path"), " ", "x=' ' names nothing; use a path"),
        (Maybe(COUNT), 0, "x=0 is below 1; use 1 or more, or None"),
    ],
)
def test_what_breaks_a_rule_is_one_line(rule, value, message):
    with pytest.raises(UserError) as refused:
        rule.check("x", value)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: DecodeMesh.parse(f"tensor={DIGITS}"), "the size of 'tensor' is '999"),
        (lambda: Window.parse(f"1:{DIGITS}"), "is not FIRST:LAST"),
        (lambda: parse_tasks([f"cb@{DIGITS}"], None), "is no number of shots"),
        (lambda: checkpoint_step(DIGITS), "is neither best, latest nor a step"),
    ],
)
def test_a_number_of_thousands_of_digits_is_refused(read, message):
    with pytest.raises(UserError, match=message):
        read()


def test_it_is_no_step_either():
    assert origin.parse(f"run:{DIGITS}")[1] is None


def test_a_number_that_python_does_not_print_is_refused_too():
    with pytest.raises(UserError, match="x=a number of thousands of digits is not finite; use 0 or more"):
        Number(float, 0).check("x", 16**9999)
