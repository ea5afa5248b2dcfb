"""Text of others made harmless to look at: names from data, names of files, what peers and models say.

A newline in a name forges a line of a log, ESC recolours or retitles the terminal, and a bidi override shows a name
that is another one. For a Rich table or console, `stagjax.reporting.console.plain` also keeps markup uninterpreted.
"""

import re
import unicodedata

# Joiners shape letters and emoji and cannot do more; format characters besides reorder or hide what is beside them.
_KEPT_JOINERS = "\u200c\u200d"
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What can be of those categories: a search for it costs little where, as nearly always, there is nothing.
_CANDIDATES = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u05ff]")


def one_line(text: object, limit: int | None = None) -> str:
    r"""Return a text as one line without control characters, which are written as in Python: \n, \x1b, \u202e.

    Args:
      text: anything; an object is shown as `str` shows it, bytes as UTF-8.
      limit: characters after which the rest is replaced by "...".
    """
    shown = _CANDIDATES.sub(_escaped, _text(text))
    return shown if limit is None or len(shown) <= limit else shown[: max(0, limit - 3)] + "..."


def for_terminal(text: str) -> str:
    """Return a text as `one_line` does, except that newlines and tabs stay."""
    return _CANDIDATES.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped(found), text)


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character in _KEPT_JOINERS or unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode()
