"""Commands of other programs: run, or only printed."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from stagjax.errors import RunFailed, UserError

_INSTALL = {
    "gcloud": "install the Google Cloud CLI (https://cloud.google.com/sdk) and run: gcloud auth login",
    "kubectl": "install it with: gcloud components install kubectl gke-gcloud-auth-plugin",
    "xpk": "install it with: pip install xpk",
}


class Shell:
    """Runs commands, or prints them ready to be pasted.

    Args:
      dry_run: print, and run nothing: neither an account nor the program is needed.
    """

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run

    def run(
        self, command: Sequence[str], *, text: str | None = None, shown: str | None = None, quiet: bool = False
    ) -> str:
        """Run a command that must succeed and return what it printed.

        Args:
          command: program and arguments.
          text: its standard input.
          shown: what a dry run prints in place of `text`.
          quiet: keep its standard error, too, from the terminal.

        Raises:
          UserError: the program is not installed.
          RunFailed: it failed; its last words are in the message.
        """
        status, out, err = self.attempt(command, text=text, shown=shown)
        if not quiet and err and not status:
            print(err, end="", flush=True)
        if status:
            words = (err or out).strip().splitlines()
            raise RunFailed(f"{shlex.join(command[:6])} ... ended with {status}: {words[-1] if words else 'no words'}")
        return out

    def attempt(
        self, command: Sequence[str], *, text: str | None = None, shown: str | None = None
    ) -> tuple[int, str, str]:
        """Run a command that may fail; return its status, output and errors (0 and nothing in a dry run).

        Raises:
          UserError: the program is not installed.
        """
        if self.dry_run:
            self._print(command, text if shown is None else shown)
            return 0, "", ""
        if shutil.which(command[0]) is None:
            raise UserError(
                f"{command[0]} is not installed; {_INSTALL.get(command[0], 'install it')}, or use --dry-run"
            )
        done = subprocess.run(command, input=text, capture_output=True, text=True, errors="replace")
        return done.returncode, done.stdout, done.stderr

    def _print(self, command: Sequence[str], text: str | None) -> None:
        line = shlex.join(command)
        print(f"{line} <<'EOF'\n{text.rstrip()}\nEOF" if text else line, flush=True)
