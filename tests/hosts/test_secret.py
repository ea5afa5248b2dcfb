"""The run's secret: where it is read from, and what it proves."""

import os
import re
import stat

import pytest

from stagjax.errors import UserError
from stagjax.hosts import secret


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "secret"))
    return tmp_path / "secret"


def test_what_a_launcher_writes_is_read(tmp_path, monkeypatch):
    for name, value in secret.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret.read() == bytes.fromhex(path.read_text().strip()) and len(secret.read()) == 32
    with pytest.raises(FileExistsError):
        secret.environment(tmp_path)


def test_no_variable_is_no_secret(monkeypatch):
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    assert secret.read() is None


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_modes_of_files_that_only_some_may_read(file, mode):
    file.write_text("0a" * 32)
    file.chmod(mode)
    assert secret.read() == b"\n" * 32


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o606, 0o601])
def test_a_file_that_everybody_may_read_is_refused(file, mode):
    file.write_text("0a" * 32)
    file.chmod(mode)
    with pytest.raises(UserError, match="STAGJAX_SECRET_FILE=.* is open to every user of this machine; `chmod 600` it"):
        secret.read()


@pytest.mark.parametrize("held", ["", "\n", "0a" * 31, "0a" * 33, "0g" * 32, " " + "0a" * 32, "0a" * 32 + "\n\n"])
def test_what_is_no_secret_is_not_shown(file, held):
    file.write_text(held)
    file.chmod(0o600)
    with pytest.raises(
        UserError, match=f"STAGJAX_SECRET_FILE=.* holds {len(held)} bytes that are not 64 hex"
    ) as raised:
        secret.read()
    assert not held.strip() or held.strip() not in str(raised.value)


def test_what_cannot_be_read(file, monkeypatch):
    with pytest.raises(UserError, match="cannot be read .No such file or directory.; unset it, or make one"):
        secret.read()
    os.mkfifo(file)  # which nobody writes to: it is not waited for
    with pytest.raises(UserError, match="is no regular file"):
        secret.read()
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        secret.read()
    monkeypatch.setenv(secret.VARIABLE, "")
    with pytest.raises(UserError, match="STAGJAX_SECRET_FILE= cannot be read"):
        secret.read()


def test_a_proof_is_of_one_secret_end_connection_and_process():
    said = (b"s" * 32, "1" * 64, "2" * 64, 1)
    proof = secret.Exchange(*said).proof(secret.MEMBER)
    assert re.fullmatch("[0-9a-f]{64}", proof)
    assert secret.Exchange(*said).proves(secret.MEMBER, proof)
    assert not secret.Exchange(*said).proves(secret.HUB, proof)
    others = [(b"t" * 32, *said[1:]), (*said[:1], "3" * 64, *said[2:]), (*said[:2], "3" * 64, 1), (*said[:3], 2)]
    for other in [*others, (said[0], said[2], said[1], 1)]:
        assert not secret.Exchange(*other).proves(secret.MEMBER, proof)
        assert secret.Exchange(*other).key(secret.HUB) != secret.Exchange(*said).key(secret.HUB)
    assert not secret.Exchange(*said).proves(secret.MEMBER, "")
    assert len({secret.Exchange(*said).key(end) for end in (secret.HUB, secret.MEMBER)} | {bytes.fromhex(proof)}) == 3
