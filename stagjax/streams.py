"""Standard output and standard error that no command fails on: closed, full, unread, or unable to show a character.

A run of days must not end because `head` has gone or the disk of its log is full, and a thread that redraws a bar
cannot even say so. So what cannot be written is dropped where it is written, the command goes on, and its exit status
tells in the end: a reader that has gone wanted no more, which is no failure; anything else is.
"""

import errno
import io
import os
import select
import sys
from typing import TextIO


class _Raw(io.FileIO):
    """A descriptor to which writing never fails; `failure` is the first error that was no reader's going."""

    failure: OSError | None = None

    def write(self, data) -> int:
        """Write what can be written; the rest counts as written."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # somebody has made it non-blocking
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                self.failure = self.failure or error
        return size


def make_lasting() -> None:
    """Let the standard streams of this process drop what they cannot write, and write escapes of what they cannot show.

    A closed one becomes /dev/null, so that no file is opened in its place, into which libraries would print. What
    stands in for a stream, as in a test, stays as it is.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _text(descriptor) if descriptor else open(0, encoding="utf-8", closefd=False))
        elif descriptor and type(_raw(stream)) is io.FileIO and stream.fileno() == descriptor:
            setattr(sys, name, _text(descriptor, stream))


def checked(status: int, program: str) -> int:
    """Return the status of a command that has ended; if what it printed was lost, say so and return 3 in place of 0."""
    sys.stdout.flush()
    failure = getattr(_raw(sys.stdout), "failure", None)
    if failure is None:
        return status
    print(f"{program}: standard output could not be written: {failure.strerror}; all else is done", file=sys.stderr)
    return status or 3


def _text(descriptor: int, like: io.TextIOWrapper | None = None) -> TextIO:
    raw = _Raw(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        raw if like and like.write_through else io.BufferedWriter(raw),
        encoding=like.encoding if like else "utf-8",
        errors="backslashreplace",
        line_buffering=bool(like and like.line_buffering),
        write_through=bool(like and like.write_through),
    )


def _raw(stream: object) -> object:
    """Return what a stream writes its bytes to, if it has such a thing; that of an unbuffered one is its buffer."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)
