"""Where documents come from: the standard library, directories of text, directories of JSON lines."""

import functools
import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence

from stagjax.config import DataConfig
from stagjax.data.compression import COMPRESSED
from stagjax.data.faults import Fault
from stagjax.data.shards import Document, ShardReader
from stagjax.errors import UserError, unknown
from stagjax.printable import one_line

SPLITS = ("train", "validation")
TEXT_SUFFIXES = (".txt", ".md", ".py")
JSONL_SUFFIXES = (".jsonl", *(f".jsonl{suffix}" for suffix in COMPRESSED))
# Installed packages and tests: they differ between machines, and the latter is not code that one would want to learn.
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_TOPICS = "pydoc_data/topics"
_SHOWN, _LONGEST = 5, 60  # Files that were not read: how many are named, and with how many characters.


class Source:
    """Files below a directory, read as documents in the order of their names.

    Attributes:
      files: (name, path) of every file, sorted by name; the name is the path relative to the root.
      skipped: "name: reason" for whatever could not be read, complete once `documents` has been walked to its end.
      unread: names of the files and directories that it does not read; those that begin with a dot are no part of it.
    """

    def __init__(self, root: str | os.PathLike[str], suffixes: tuple[str, ...], excluded: Collection[str] = ()):
        self._unlisted: list[str] = []
        self.skipped: list[str] = []
        self.unread: list[str] = []
        self.suffixes = suffixes
        self.files = self._list(str(root), suffixes, excluded)

    def documents(self) -> Iterator[Document]:
        """Yield all documents, and note in `skipped` what could not be read."""
        self.skipped = list(self._unlisted)
        for name, path in self.files:
            try:
                yield from self._read(name, path)
            except OSError as error:
                self.skipped.append(f"{name}: {error.strerror or error}")

    def split_of(self, document: Document, validation_percent: int) -> str:
        """Return the split of a document: "train", "validation", or one that training has no use for."""
        return split_of(document.name, validation_percent)

    def _read(self, name: str, path: pathlib.Path) -> Iterator[Document]:
        try:
            # Decoded as it stands, but for a byte order mark: a text mode would turn "\r\n" into "\n", and a declared
            # encoding other than UTF-8 would make the number of bytes differ from the file's.
            yield Document(name, path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            self.skipped.append(f"{name}: not UTF-8 at byte {error.start}")

    def _list(self, root: str, suffixes: tuple[str, ...], excluded: Collection[str]) -> list[tuple[str, pathlib.Path]]:
        files = []
        for directory, subdirectories, names in os.walk(root, onerror=self._not_listed):
            subdirectories[:] = [name for name in subdirectories if name not in excluded and not is_hidden(name)]
            links = [name for name in subdirectories if os.path.islink(os.path.join(directory, name))]
            for name in (*names, *links):
                path = pathlib.Path(directory, name)
                label = _printable(path.relative_to(root).as_posix())
                if name.endswith(suffixes) and name not in links:
                    if not is_hidden(name):
                        files.append((label, path))
                elif not is_hidden(name):
                    self.unread.append(label)
        return sorted(files)

    def _not_listed(self, error: OSError) -> None:
        self._unlisted.append(f"{_printable(os.fspath(error.filename))}: {error.strerror}")


class StdlibSource(Source):
    """The standard library of the running Python and the topics of its `help()`: 12 MB of text on any machine."""

    def __init__(self):
        super().__init__(sysconfig.get_path("stdlib"), (".py",), NOT_STDLIB)
        self.unread = []  # Compiled files and libraries are nobody's text.
        # This file is the topics once more, as string literals: with both, training would see the validation texts.
        self.files = [(name, path) for name, path in self.files if name != f"{_TOPICS}.py"]

    def documents(self) -> Iterator[Document]:
        """Yield the modules, then the topics."""
        yield from super().documents()
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            self.skipped.append(f"{_TOPICS}: {error}")
        else:
            yield from (Document(f"{_TOPICS}/{topic}", topics[topic]) for topic in sorted(topics))


class JsonlSource(Source):
    """Files of JSON lines, {"text": ...} each, plain or compressed; documents are named "file#line".

    In The Pile's layout files decide the split, as they do where it is prepared (`layout.list_shards`).

    Raises:
      UserError: two files differ in nothing but how they are compressed.
    """

    def __init__(self, root: str | os.PathLike[str], suffixes: tuple[str, ...] = JSONL_SUFFIXES):
        super().__init__(root, suffixes)
        refuse_twins("data.path", str(root), [name for name, _ in self.files])
        if "train" in self._splits:  # What lies beside train/ under other names is no part of the corpus as published.
            self.unread += [name for name, _ in self.files if pile_split(name) is None]

    def split_of(self, document: Document, validation_percent: int) -> str:
        """Return the split of a document: that of its file, if files have one and one of them is for validation."""
        split = pile_split(document.name) if "train" in self._splits else None
        if "train" not in self._splits or (split == "train" and "validation" not in self._splits):
            return split_of(document.name, validation_percent)
        return split or "other"

    @functools.cached_property
    def _splits(self) -> set[str | None]:
        return {pile_split(name) for name, _ in self.files}

    def _read(self, name: str, path: pathlib.Path) -> Iterator[Document]:
        with path.open("rb") as file:
            yield from ShardReader(name, file, self._note).documents()

    def _note(self, fault: Fault) -> None:
        self.skipped.append(f"{fault.where}: {fault.detail}")


def open_source(config: DataConfig) -> Source:
    """Return the source that `data.source` and `data.path` name.

    Raises:
      UserError: no path, no such directory, no file in it, or an unknown source.
    """
    if config.source == "stdlib":
        if config.path is not None:
            raise UserError(
                f"data.path={config.path!r} is set, but data.source='stdlib' reads the standard library of Python; "
                "leave it unset, or use data.source='text' or 'jsonl'"
            )
        return StdlibSource()
    kinds = {"text": (Source, TEXT_SUFFIXES), "jsonl": (JsonlSource, JSONL_SUFFIXES)}
    if config.source not in kinds:
        raise unknown("data.source", config.source, ("stdlib", *kinds))
    if config.path is None:
        raise UserError(
            f"data.path is not set, but data.source={config.source!r} reads a directory; add --config.data.path=DIR"
        )
    if not os.path.isdir(config.path):
        found = "is not a directory" if os.path.exists(config.path) else "does not exist"
        raise UserError(f"data.path={config.path!r} {found}; data.source={config.source!r} reads a directory")
    kind, suffixes = kinds[config.source]
    source = kind(config.path, suffixes)
    if not source.files:
        raise UserError(
            f"empty corpus: data.path={config.path!r} has no file that ends in {', '.join(suffixes)}, "
            f"which is what data.source={config.source!r} reads; correct one of the two"
        )
    return source


def is_hidden(name: str) -> bool:
    """Return whether a file is none of the user's: other systems leave "._a.jsonl" and ".DS_Store" beside them."""
    return name.startswith(".")


def refuse_twins(field: str, path: str, names: Iterable[str]) -> None:
    """Raise `UserError` where two shards are one but for their compression: the same texts, in both splits perhaps."""
    known: dict[str, str] = {}
    for name in sorted(names):
        stem = next(name.removesuffix(suffix) for suffix in reversed(JSONL_SUFFIXES) if name.endswith(suffix))
        if stem in known:
            raise UserError(
                f"{field}={path} has both {known[stem]} and {name}, which would be read as different texts; remove or "
                "rename one of them"
            )
        known[stem] = name


def unread_lines(unread: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Return a line that tells a person what lies in a directory and was not read; none where there is nothing."""
    if not unread:
        return []
    names = [one_line(name, _LONGEST) for name in sorted(unread)]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return [f"not read: {', '.join(names[:_SHOWN])}{more}; what is read ends in {', '.join(suffixes)}"]


def pile_split(name: str) -> str | None:
    """Return the split of a file in The Pile's layout, by its name below the root; None for files of no split."""
    if name.startswith("train/"):
        return "train"
    return {"val": "validation", "validation": "validation", "test": "test"}.get(name.partition(".")[0])


def split_of(name: str, validation_percent: int) -> str:
    """Return "validation" for about `validation_percent` of all names, "train" for the others.

    It depends on the name alone, so documents that come or go move no other, and a larger share only adds to a smaller.
    """
    return "validation" if _draw(name) * 100 < validation_percent << 64 else "train"


def is_drawn(name: str, share: float) -> bool:
    """Return whether a document is among a `share` of all that its name alone decides; other ones than `split_of`'s."""
    return _draw(f"drawn {name}") < share * 2**64


def _draw(name: str) -> int:
    """Return an integer below 2**64 by the hash of a name."""
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:8], "big")


def _printable(name: str) -> str:
    # A file name need not be UTF-8, but it is hashed and printed.
    return os.fsencode(name).decode(errors="backslashreplace")
