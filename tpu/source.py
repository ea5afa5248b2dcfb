"""The clone that workers get: all that git does not ignore, as it is now."""

import os
import pathlib
import subprocess
import tarfile


def pack(clone: pathlib.Path, archive: pathlib.Path) -> str:
    """Write an archive of a clone and return in words how much it holds.

    Without git, that is all but what begins with a dot.
    """
    names = _unignored(clone)
    names = names or [path.name for path in clone.iterdir() if not path.name.startswith(".")]
    names = [name for name in names if (clone / name).exists()]
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.add(clone / name, arcname=name)
    return f"{len(names)} files, {archive.stat().st_size / 1e6:.1f} MB"


def _unignored(clone: pathlib.Path) -> list[str]:
    """Return the files that git does not ignore; none where there is no git, or no clone of it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=clone, capture_output=True)
    except FileNotFoundError:
        return []
    return sorted({os.fsdecode(name) for name in listed.stdout.split(b"\0") if name}) if not listed.returncode else []
