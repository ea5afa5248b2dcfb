"""The secret that all processes of a run share and prove to each other; it never crosses the wire."""

import hmac
import os
import pathlib
import re
import secrets
import stat

from stagjax.errors import UserError

VARIABLE = "STAGJAX_SECRET_FILE"
HUB, MEMBER = "hub", "member"  # the two ends of a connection
_DIGITS = re.compile(rb"[0-9a-fA-F]{64}\n?")
_REMEDY = "make one by `openssl rand -hex 32` under umask 077, the same for all processes of a run"


def environment(folder: pathlib.Path) -> dict[str, str]:
    """Write a new secret to a file in `folder` that nobody else can read; return the variable that names it."""
    path = folder / "secret"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    return {VARIABLE: str(path)}


def read() -> bytes | None:
    """Return the secret from the file that the environment names; None where it names none.

    Raises:
      UserError: the file cannot be read, can be read by others, or holds no secret; what it holds is not shown.
    """
    name = os.environ.get(VARIABLE)
    if name is None:
        return None
    try:
        # A pipe is not waited for.
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            held = file.read(1024) if stat.S_ISREG(mode) else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise UserError(f"{VARIABLE}={name} cannot be read ({reason}); unset it, or {_REMEDY}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{VARIABLE}={name} is no regular file; {_REMEDY}")
    if mode & stat.S_IRWXO:
        raise UserError(
            f"{VARIABLE}={name} is open to every user of this machine; `chmod 600` it, and use a new secret"
        )
    if not _DIGITS.fullmatch(held):
        raise UserError(
            f"{VARIABLE}={name} holds {len(held)} bytes that are not 64 hexadecimal digits and a newline; {_REMEDY}"
        )
    return bytes.fromhex(held.decode())


def nonce() -> str:
    """Return a number that is used once: by one end, for one connection."""
    return secrets.token_hex(32)


class Exchange:
    """What both ends of one connection compute from the secret, from a nonce of each, and from who the member is.

    A proof is of one end, one process and one connection: sent back, or on another connection, it proves nothing.
    """

    def __init__(self, secret: bytes, hub_nonce: str, member_nonce: str, process_id: int):
        self._secret, self._said = secret, f"{hub_nonce} {member_nonce} {process_id}"

    def proof(self, end: str) -> str:
        """Return what only an end that knows the secret can say."""
        return self._derived(f"proof of the {end}").hex()

    def proves(self, end: str, proof: str) -> bool:
        """Return whether that end has said its proof."""
        return hmac.compare_digest(self.proof(end).encode(), proof.encode())

    def key(self, end: str) -> bytes:
        """Return the key by which that end's lines are sealed."""
        return self._derived(f"lines of the {end}")

    def _derived(self, purpose: str) -> bytes:
        return hmac.digest(self._secret, f"stagjax 1: {purpose}: {self._said}".encode(), "sha256")
