"""The schedule that is drawn, and that pictures are written."""

import pytest

from stagjax.reporting.plots import plot_losses, plot_schedule, schedule
from tests.variants import tiny

PNG = b"\x89PNG\r\n\x1a\n"


def test_stacks_of_a_step_work_at_the_same_time_and_read_what_is_done():
    work = {(w.stack, w.token): w for w in schedule(tiny(num_stacks=3, layers_per_stack=4), 5)}
    assert len(work) == 15
    for token in range(5):
        assert {(work[s, token].start, work[s, token].end) for s in range(3)} == {(4 * token, 4 * token + 4)}
    for s in (1, 2):
        for token in range(1, 5):
            assert work[s - 1, token - 1].end <= work[s, token].start


def test_without_staggering_a_stack_waits_for_the_one_below():
    work = {(w.stack, w.token): w for w in schedule(tiny(lag=0), 3)}
    for token in range(3):
        assert work[1, token].start == work[0, token].end
    assert work[0, 1].start == work[1, 0].end


def test_pictures_are_png_files(tmp_path):
    pytest.importorskip("matplotlib")
    plot_schedule({"baseline": tiny(num_stacks=1), "lag 2": tiny(lag=2), "serial": tiny(lag=0)}, tmp_path / "s.png")
    lines = [{"step": n, "train/bits_per_byte": 3 - n / 10, "validation/bits_per_byte": None} for n in range(5)]
    plot_losses({"one": lines, "none": []}, tmp_path / "l.png")
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in ("s.png", "l.png"))
    assert not list(tmp_path.glob("*.partial"))
