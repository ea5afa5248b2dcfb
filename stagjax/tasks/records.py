"""Records of official benchmark files, read field by field, so that an error names the file, its line and the field."""

import codecs
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stagjax.data.compression import Content
from stagjax.errors import DataError
from stagjax.rules import is_whole

Document = dict[str, Any]
Reader = Callable[[pathlib.Path], Iterator[Document]]


class Record:
    """A JSON object of a file, or a part of one.

    Attributes:
      value: the object.
    """

    def __init__(self, value: Any, place: str, field: str = ""):
        self._place, self._field = place, field
        if not isinstance(value, dict):
            raise self._error("", f"is {_shown(value)}; it has to be an object")
        self.value: dict[str, Any] = value

    def has(self, field: str) -> bool:
        """Return whether there is such a field and it is not null."""
        return self.value.get(field) is not None

    def text(self, field: str, empty: bool = True) -> str:
        """Return a string; raises `DataError` if it is none, or empty where that is not allowed."""
        return self._text(self._get(field), field, empty)

    def texts(self, field: str, at_least: int = 0) -> list[str]:
        """Return a list of strings, of a minimal length."""
        values = self._list(field, at_least)
        return [self._text(value, f"{field}[{n}]") for n, value in enumerate(values)]

    def integers(self, field: str) -> list[int]:
        """Return a list of integers."""
        values = self._list(field)
        for n, value in enumerate(values):
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._error(f"{field}[{n}]", f"is {_shown(value)}; it has to be an integer")
        return values

    def integer(self, field: str, least: int | None = None, most: int | None = None) -> int:
        """Return an integer within bounds (both inclusive); digits in a string count as one."""
        value = self._get(field)
        if isinstance(value, str) and is_whole(value.removeprefix("-")):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(field, f"is {_shown(value)}; it has to be an integer")
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"{least if least is not None else '...'}..{most if most is not None else '...'}"
            raise self._error(field, f"is {value}, outside {bounds}")
        return value

    def label(self, field: str, names: Sequence[str]) -> int:
        """Return the index of a label: given as its name, its index, or as true or false where there are two."""
        value = self._get(field)
        if isinstance(value, bool) and len(names) == 2:
            return int(value)
        if isinstance(value, str) and value in names:
            return names.index(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return value
        raise self._error(field, f"is {_shown(value)}; it has to be one of {', '.join(names)}")

    def record(self, field: str) -> "Record":
        """Return a part that is an object."""
        return Record(self._get(field), self._place, self._path(field))

    def records(self, field: str) -> list["Record"]:
        """Return a list of objects."""
        values = self._list(field)
        return [Record(value, self._place, self._path(f"{field}[{n}]")) for n, value in enumerate(values)]

    def wrong(self, field: str, what: str) -> DataError:
        """Return the error to raise for a field that breaks a rule: `what` is the end of the sentence."""
        return self._error(field, what)

    def _get(self, field: str) -> Any:
        if field not in self.value:
            raise self._error(field, f"is missing; the object has {', '.join(self.value) or 'no fields'}")
        return self.value[field]

    def _list(self, field: str, at_least: int = 0) -> list[Any]:
        values = self._get(field)
        if not isinstance(values, list):
            raise self._error(field, f"is {_shown(values)}; it has to be a list")
        if len(values) < at_least:
            raise self._error(field, f"has {len(values)} entries; it needs at least {at_least}")
        return values

    def _text(self, value: Any, field: str, empty: bool = True) -> str:
        if not isinstance(value, str):
            raise self._error(field, f"is {_shown(value)}; it has to be a string")
        if not empty and not value:
            raise self._error(field, "is empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._error(field, "has half of a surrogate pair, which is not Unicode text") from None
        return value

    def _path(self, field: str) -> str:
        return ".".join(part for part in (self._field, field) if part)

    def _error(self, field: str, what: str) -> DataError:
        path = self._path(field)
        return DataError(f"{self._place}: {f'field {path!r}' if path else 'the record'} {what}")


def json_lines(document: Callable[[Record], Document]) -> Reader:
    """Return a reader of JSON lines, each of which is one document."""
    return json_lines_of(lambda record: (document(record),))


def json_lines_of(documents: Callable[[Record], Iterator[Document] | Sequence[Document]]) -> Reader:
    """Return a reader of JSON lines, each of which holds any number of documents."""

    def read(path: pathlib.Path) -> Iterator[Document]:
        for number, line in lines(path):
            yield from documents(Record(_parsed(line, f"{path}:{number}"), f"{path}:{number}"))

    return read


def json_file(documents: Callable[[Record], Iterator[Document]]) -> Reader:
    """Return a reader of a file that is one JSON object."""

    def read(path: pathlib.Path) -> Iterator[Document]:
        yield from documents(Record(_parsed(read_bytes(path), str(path)), str(path)))

    return read


def lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of lines that are not blank; only newlines end a line, not what Unicode counts as one."""
    for number, line in enumerate(read_bytes(path).split(b"\n"), 1):
        line = line.removeprefix(codecs.BOM_UTF8)  # Of a file that was put behind another.
        if line.strip():
            yield number, line


def read_bytes(path: pathlib.Path) -> bytes:
    """Return what is in a file, decompressed by the end of its name, without a byte order mark.

    Raises:
      DataError: it cannot be read, or not to its end.
    """
    try:
        content = Content(path.name, iter([path.read_bytes()]))
        text = b"".join(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if content.problem and content.num_bytes:
        raise DataError(f"{path}: {content.problem.detail}; download the file again")
    return text.removeprefix(codecs.BOM_UTF8)


def decoded(line: bytes, place: str) -> str:
    """Return UTF-8 text; raises `DataError` where it is none."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start}; download the file again") from None


def _parsed(text: bytes, place: str) -> Any:
    decoded_text = decoded(text, place)
    try:
        return json.loads(decoded_text)
    except json.JSONDecodeError as error:
        place = place if error.lineno == 1 else f"{place}:{error.lineno}"
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno}); download the file again") from None
    except (ValueError, RecursionError) as error:  # The former for an integer of thousands of digits.
        what = "nested too deeply" if isinstance(error, RecursionError) else "a number of thousands of digits"
        raise DataError(f"{place}: not JSON of a benchmark ({what}); download the file again") from None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
