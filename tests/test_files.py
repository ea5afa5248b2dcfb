"""Files: whole or not at all; a full disk is told from a place where nothing can be written."""

import contextlib
import pathlib
import resource

import pytest

from stagjax.errors import RunFailed, UserError
from stagjax.files import new_directory, read_text, text_lines, write_json, write_result


@contextlib.contextmanager
def full_disk():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there_and_nothing_half_written(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, [1])
    with full_disk(), pytest.raises(RunFailed, match=r"cannot write .*/a\.json: File too large; free some space and"):
        write_json(file, [2])
    assert file.read_text() == "[\n  1\n]\n" and list(tmp_path.iterdir()) == [file]
    with full_disk(), pytest.raises(RunFailed, match=r"cannot write .*/.new.partial/x: File too large; free"):
        with new_directory(tmp_path / "new") as directory:
            write_result(directory / "x", "text")
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_where_nothing_can_be_written_is_bad_input(tmp_path):
    with pytest.raises(UserError, match="cannot write /proc/none/x: No such file or directory; choose another file"):
        write_result(pathlib.Path("/proc/none/x"), "text")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*/file/x: File exists; choose another file"):
        write_result(tmp_path / "file" / "x", "text")


def test_a_text_is_read_without_a_byte_order_mark_and_cut_at_newlines_alone(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffa\u2028b\r\n\n\x0cc\x85d\re\n".encode())
    assert text_lines(read_text(tmp_path / "a")) == ["a\u2028b", "", "\x0cc\x85d\re"]
    assert text_lines("") == [] and text_lines("a") == ["a"] and text_lines("\n\n") == ["", ""]
