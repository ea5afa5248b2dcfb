"""What others wrote cannot forge a line, move the cursor or turn the order of letters."""

import io

import pytest
import rich.console

from stagjax.cli import main
from stagjax.printable import for_terminal, one_line
from stagjax.reporting.console import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Wikipedia (en)", "Wikipedia (en)"),
        ("a\nstep 9: loss 0", "a\\nstep 9: loss 0"),
        ("a\r\tb", "a\\r\\tb"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b31m\x85\x7f\x00", "\\x9b31m\\x85\\x7f\\x00"),  # C1, which some terminals obey like ESC [
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\u202egnp.exe\u2066\ufeff\u061c", "\\u202egnp.exe\\u2066\\ufeff\\u061c"),
        ("\udcff\U000e0041\xad", "\\udcff\\U000e0041\\xad"),
        ("naïve 中文 עברית 👩\u200d🚀 می\u200cخواهم\xa0x", "naïve 中文 עברית 👩\u200d🚀 می\u200cخواهم\xa0x"),
        (b"a\xff\n", "a\\xff\\n"),
        (ValueError("a\nb"), "a\\nb"),
    ],
)
def test_one_line(text, shown):
    assert one_line(text) == shown
    if isinstance(text, str):
        assert for_terminal(text) == "".join(part if part in "\n\t" else one_line(part) for part in text)


def test_a_limit_is_of_what_is_shown():
    assert one_line("\n" * 100, 10) == "\\n\\n\\n\\..." and one_line("ten lette.", 10) == "ten lette."


def test_a_text_for_the_terminal_keeps_its_lines():
    assert for_terminal("def f():\n\treturn\x1b[2J\r\n") == "def f():\n\treturn\\x1b[2J\\r\n"


def test_an_error_with_a_name_of_others_is_one_line(capfd):
    assert main(["info", "--config=no\nstagjax: done\x1b[2J.py:x"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_name_in_a_table_is_no_markup():
    out = io.StringIO()
    rich.console.Console(file=out, force_terminal=True, width=80).print(plain("[red]:smile: \x1b[1m"))
    assert out.getvalue() == "[red]:smile: \\x1b[1m\n"
