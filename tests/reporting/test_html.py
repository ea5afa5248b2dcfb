"""Parts of pages: everything is escaped, tables keep their shape."""

import html.parser

from stagjax.reporting.grid import MISSING, Column, Grid
from stagjax.reporting.html import bullets, definitions, element, folded, page, picture, table

HOSTILE = "<script>alert('&')</script>\" onload=\"x"
VOID = {"meta", "link", "img"}


class Document(html.parser.HTMLParser):
    """Reads a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append([int(dict(attributes).get("colspan", 1)), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1][1] += data

    @property
    def text(self):
        return " ".join(self.texts)


def test_everything_is_escaped(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    grid = Grid(HOSTILE, [Column(HOSTILE, [HOSTILE], HOSTILE, left=True)], HOSTILE)
    parts = [
        element("p", HOSTILE),
        bullets([HOSTILE]),
        definitions([(HOSTILE, HOSTILE)]),
        table(grid),
        picture(tmp_path / "a.png", HOSTILE, HOSTILE),
        folded(HOSTILE, HOSTILE),
    ]
    document = Document(page(HOSTILE, parts))
    assert not [tag for tag, attributes in document.tags if tag == "script" or "onload" in attributes]
    # Title, p, li, dt and dd, five in the table, the picture's caption, two in what is folded.
    assert document.text.count(HOSTILE) == 13
    assert [attributes["alt"] for tag, attributes in document.tags if tag == "img"] == [HOSTILE]


def test_a_table_has_a_head_for_each_group_and_no_empty_columns():
    columns = [
        Column("name", ["a", "b", "sum"], left=True),
        Column("measured\nms", ["1", "2", "3"], "measured"),
        Column("\nnever", [MISSING] * 3, "measured"),
        Column("\nspread", ["4", MISSING, MISSING], "measured"),
        Column("ms", ["5", "6", "7"], "estimated"),
    ]
    text = table(Grid("title", columns, feet=1))
    assert text.count('class="foot"') == 1
    assert Document(text).tables == [
        [
            [[1, ""], [2, "measured"], [1, "estimated"]],
            [[1, "name"], [1, "measured ms"], [1, "spread"], [1, "ms"]],
            [[1, "a"], [1, "1"], [1, "4"], [1, "5"]],
            [[1, "b"], [1, "2"], [1, "-"], [1, "6"]],
            [[1, "sum"], [1, "3"], [1, "-"], [1, "7"]],
        ]
    ]
