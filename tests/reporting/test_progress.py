import io

import pytest
import rich.console

from stagjax.reporting import progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain(total=1000, **arguments):
    out, clock = io.StringIO(), Clock()
    return progress.Progress(total, console=rich.console.Console(file=out), clock=clock, **arguments), out, clock


def terminal(total=1000, **arguments):
    out, clock = io.StringIO(), Clock()
    console = rich.console.Console(file=out, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    return progress.Progress(total, console=console, clock=clock, **arguments), out, clock


def test_plain_line_has_step_metrics_speed_and_time_left():
    bar, out, clock = plain(start=90)
    with bar:
        clock.now += 5.0
        bar.update(100, loss=2.3149, note="ok", tokens_per_second=1900.0)
    assert out.getvalue() == "step 100/1000  loss 2.315  note ok  1.9k tokens/s  7m30s left\n"


def test_plain_output_is_flushed_and_has_no_escapes():
    class Flushed(io.StringIO):
        seen = ""

        def flush(self):
            self.seen = self.getvalue()

    out = Flushed()
    with progress.Progress(10, console=rich.console.Console(file=out)) as bar:
        bar.phase("compiling")
        assert out.seen == "compiling\n"
        bar.phase("training")
        bar.update(1, loss=1.0)
        bar.note("[bold]kept as it is " + "x" * 200)
        assert out.seen.splitlines()[1].startswith("step 1/10  loss 1")
        assert out.seen.splitlines()[2] == "[bold]kept as it is " + "x" * 200
    assert "\x1b" not in out.getvalue()


def test_speed_leaves_out_all_phases_but_training():
    bar, out, clock = plain()
    bar.phase("compiling")
    clock.now += 600.0
    bar.phase("training")
    clock.now += 0.5
    bar.update(1)
    clock.now += 2.0
    bar.update(5)
    bar.phase("validating")
    clock.now += 50.0
    bar.phase("saving")
    clock.now += 10.0
    bar.phase("training")
    clock.now += 2.0
    bar.update(9)
    lines = out.getvalue().splitlines()
    assert lines == [
        "compiling",
        "step 1/1000  2 steps/s  8m20s left",
        "step 5/1000  2 steps/s  8m18s left",
        "validating",
        "saving",
        "step 9/1000  2 steps/s  8m16s left",
    ]


def test_time_left_follows_recent_steps():
    bar, out, clock = plain(total=10_000)
    for step in range(1, 200):
        clock.now += 1.0 if step < 100 else 0.1
        bar.update(step)
    assert out.getvalue().splitlines()[-1] == "step 199/10000  10 steps/s  16m20s left"


def test_no_time_left_at_the_end_and_no_speed_without_time():
    bar, out, clock = plain(total=2)
    bar.update(1)
    clock.now += 1.0
    bar.update(2, loss=1.0)
    assert out.getvalue().splitlines() == ["step 1/2", "step 2/2  loss 1  2 steps/s"]


def test_terminal_shows_bar_metrics_and_phase():
    bar, out, clock = terminal(start=90)
    with bar:
        bar.phase("compiling")
        assert "compiling" in out.getvalue()
        clock.now += 60.0
        bar.phase("training")
        clock.now += 0.5
        bar.update(91, loss=2.5)
        clock.now += 5.0
        bar.update(101, loss=2.25, tokens_per_second=1900.0)
        bar.note("[saved] checkpoint 100")
    shown = out.getvalue()
    assert "\x1b" in shown
    assert "[saved] checkpoint 100" in shown
    last = shown[shown.rindex("101/1000") :]
    assert "loss 2.25  1.9k tokens/s  7m30s left" in last


def test_terminal_phase_gives_way_to_what_was_shown():
    bar, out, clock = terminal()
    with bar:
        bar.update(1, loss=7.0)
        bar.phase("validating")
        bar.phase("training")
        bar.note("mark")
    assert "loss 7" in out.getvalue()[out.getvalue().rindex("mark") :]
    assert "validating" not in out.getvalue()[out.getvalue().rindex("mark") :]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (190, "3m10s"), (3600, "1h00m"), (7500, "2h05m"), (352800, "4d02h")],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("speed", "text"), [(2, "2 rows/s"), (999.6, "1.0k rows/s"), (12_345, "12.3k rows/s"), (2.5e6, "2.5M rows/s")]
)
def test_speed_is_scaled(speed, text):
    bar, out, clock = plain(unit="rows")
    bar.update(1, rows_per_second=speed)
    assert out.getvalue() == f"step 1/1000  {text}\n"
