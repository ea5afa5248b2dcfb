"""What leaves this machine fails, here and in processes that a test starts, whether or not the error is hidden."""

import asyncio
import os
import socket
import subprocess
import sys

import pytest

ELSEWHERE = "storage.googleapis.com"


def taken(left_loopback):
    """Return what was noted, and take it away, so that this test passes."""
    text = left_loopback.read_text()
    left_loopback.write_text("")
    return text


async def by_asyncio():
    await asyncio.open_connection(ELSEWHERE, 443)


REACHES = {
    "name": lambda: socket.getaddrinfo(ELSEWHERE, 443),
    "old": lambda: socket.gethostbyname(ELSEWHERE),
    "metadata": lambda: socket.create_connection(("169.254.169.254", 80), timeout=0.1),
    "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("198.18.0.1", 9)),
    "asyncio": lambda: asyncio.run(by_asyncio()),
}


@pytest.mark.parametrize("reach", REACHES)
def test_what_leaves_is_refused_and_noted(left_loopback, reach):
    with pytest.raises(OSError, match="is not on this machine; tests stay on loopback"):
        REACHES[reach]()
    assert "test_loopback.py" in taken(left_loopback)


def test_what_gcsfs_and_google_auth_ask_with_is_seen(left_loopback, monkeypatch):
    aiohttp = pytest.importorskip("aiohttp")
    from google.auth.compute_engine import _metadata
    from google.auth.transport.requests import Request

    async def ask():
        async with aiohttp.ClientSession() as session:
            await session.get(f"https://{ELSEWHERE}/storage/v1/b/a-bucket")

    with pytest.raises(OSError):
        asyncio.run(ask())
    assert ELSEWHERE in taken(left_loopback)
    monkeypatch.delenv("GCE_METADATA_ROOT")
    monkeypatch.delenv("NO_GCE_CHECK")
    assert not _metadata.ping(Request(), timeout=1, retry_count=1)
    assert "169.254.169.254" in taken(left_loopback)


def test_processes_are_watched_and_cannot_hide_it(left_loopback):
    code = f"import socket, contextlib\nwith contextlib.suppress(OSError):\n    socket.getaddrinfo({ELSEWHERE!r}, 443)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ELSEWHERE in taken(left_loopback)


def test_loopback_and_names_that_do_not_exist_are_nobodys_business(left_loopback):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, port)).close()
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("no-such-host.invalid", 80)
    assert left_loopback.read_text() == ""


def test_a_test_that_hides_it_fails(tmp_path):
    (tmp_path / "test_reaching.py").write_text(
        "import contextlib, socket\n"
        "from tests.loopback import left_loopback\n"
        "def test_reaches():\n"
        f"    with contextlib.suppress(OSError):\n        socket.getaddrinfo({ELSEWHERE!r}, 443)\n"
    )
    alone = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={tmp_path}", str(tmp_path))
    own = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "pytest", *alone], capture_output=True, text=True, env=own)
    assert done.returncode == 1 and f"socket.getaddrinfo '{ELSEWHERE}'" in done.stdout, done.stdout + done.stderr
