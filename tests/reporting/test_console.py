import io
import os
import pty

import rich.table

from stagjax.reporting.console import PLAIN_WIDTH, report_console


def test_a_pipe_gets_lines_long_enough_for_names(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = rich.table.Table("variant", *map(str, range(8)))
    table.add_row("separate_2x18_parallel_window_128", *["1.28-1.29"] * 8)
    report_console().print(table)
    assert "separate_2x18_parallel_window_128" in capsys.readouterr().out


def test_columns_and_terminals_are_heeded(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert report_console().width == 70
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert report_console().width == PLAIN_WIDTH
    main, terminal = pty.openpty()
    with os.fdopen(main), os.fdopen(terminal, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert report_console().width == 80  # of a terminal that says no size
