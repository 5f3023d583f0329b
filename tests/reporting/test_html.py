"""The report page: what a reader, a screen reader and a printer rely on."""

import base64
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from fusion_jax.records import run_record
from fusion_jax.reporting import Figure, Section, Table, format_number, write_report

FIGURE = Figure("<svg>light</svg>", "<svg>dark</svg>", "Densities, n = 48 cases.", "Two bumps.")
TABLE = Table(("source", "n", "share", "TV"), [("image", 48, 0.12345, "0.1 [0, 1]"), ("x", 7, 2.0, "–")], "Shares.")


class Page(HTMLParser):
    """Elements of a page, and the text inside each kind of element."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def write(tmp_path):
    def write(*sections: Section, **changes) -> str:
        path = tmp_path / "report.html"
        options: dict[str, Any] = {"title": "A report", "summary": ["A finding."], "record": run_record(), **changes}
        write_report(path, sections=sections, **options)
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
        return path.read_text(encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (12.345, "12.3"),
        (1234.56, "1235"),
        (-0.5, "−0.500"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.00012, "1.20×10⁻⁴"),
        (0.00123, "0.00123"),
        (3.2e9, "3.20×10⁹"),
        (0.99999, "1.00"),
        (123456, "123456"),
        (-3, "−3"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (np.float32(0.25), "0.250"),
        (np.int64(7), "7"),
        (True, "yes"),
    ],
)
def test_numbers_read_as_in_a_table_of_a_paper(value, text):
    assert format_number(value) == text


def test_digits_can_be_chosen():
    assert format_number(0.05234, 2) == "0.052"


def test_everything_is_escaped(write):
    nasty = "<script>alert('x')</script> & \"more\""
    figure = FIGURE._replace(caption=nasty, alt=nasty)
    table = Table((nasty,), [(nasty,)], nasty)
    page = write(Section(nasty, [nasty], [figure, table]), title=nasty, summary=[nasty])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 9


def test_the_page_needs_nothing_but_itself(write):
    page = Page(text := write(Section("One", ["Text."], [FIGURE, TABLE])))
    assert not page.all("script")
    assert not page.all("link")
    sources = [
        value for _, found in page.elements for name, value in found.items() if name in ("src", "srcset", "href")
    ]
    assert sources
    assert all(value and value.startswith(("data:image/svg+xml;base64,", "#")) for value in sources)
    assert not re.search(r"@import|url\(", text)


def test_figures_come_in_light_and_dark_with_a_description(write):
    images = Page(text := write(Section("One", [], [FIGURE]))).all("img")
    decoded = [base64.b64decode(str(image["src"]).split(",")[1]).decode() for image in images]
    assert [(image["class"], svg) for image, svg in zip(images, decoded, strict=True)] == [
        ("light", FIGURE.light),
        ("dark", FIGURE.dark),
    ]
    assert {image["alt"] for image in images} == {FIGURE.alt}
    # Dark only on a dark screen: paper is white.
    assert text.count("@media screen and (prefers-color-scheme: dark)") == 2
    assert "figure img.dark { display: none; }" in text


def test_figures_and_tables_are_numbered_through(write):
    text = write(Section("One", [], [FIGURE, TABLE]), Section("Two", [], [TABLE, FIGURE, FIGURE]))
    assert re.findall(r"<b>(Figure|Table) (\d)\.</b>", text) == [
        ("Figure", "1"),
        ("Table", "1"),
        ("Table", "2"),
        ("Figure", "2"),
        ("Figure", "3"),
    ]


def test_the_contents_lead_to_every_section(write):
    page = Page(write(Section("One", [], []), Section("Two", [], [])))
    targets = [str(link["href"]).removeprefix("#") for link in page.all("a")]
    identifiers = [found["id"] for _, found in page.elements if "id" in found]
    assert targets == ["section-1", "section-2"]
    assert set(targets) < set(identifiers)
    assert len(set(identifiers)) == len(identifiers)


def test_tables_are_readable_to_a_screen_reader(write):
    page = Page(write(Section("One", [], [TABLE])))
    assert page.all("html") == [{"lang": "en"}]
    assert [head["scope"] for head in page.all("th")] == ["col"] * 4 + ["row"] * 2
    [table] = page.all("table")
    [caption] = page.all("figcaption")
    assert table["aria-labelledby"] == caption["id"]


def test_columns_of_numbers_are_aligned_to_the_right(write):
    page = Page(write(Section("One", [], [TABLE])))
    assert [cell.get("class") for cell in page.all("td")] == ["number"] * 6
    assert page.text["td"] == ["48", "0.123", "0.1 [0,\N{NO-BREAK SPACE}1]", "7", "2.00", "–"]
    assert [head.get("class") for head in page.all("th")] == [None, "number", "number", "number", None, None]


def test_a_ragged_table_is_refused(write):
    with pytest.raises(ValueError, match=r"row 1 has 1 cells, the heading 2"):
        write(Section("One", [], [Table(("a", "b"), [("x",)], "Ragged.")]))


def test_the_footer_says_what_made_the_report_and_what_it_is_not(write):
    record = {"time": "2026-01-02T03:04:05+00:00", "revision": "abc-dirty", "versions": {"jax": "0.10.2", "flax": None}}
    page = write(record=record)
    footer = page[page.index("<footer>") :]
    for part in ("not a medical device", "2026-01-02T03:04:05+00:00", "Revision abc-dirty", "jax 0.10.2"):
        assert part in footer
    assert "flax" not in footer
    assert "not a medical device" in write(record={})


def test_a_long_table_scrolls_inside_its_box_and_a_short_one_does_not(write):
    long = Table(("item", "n"), [(f"i{k}", k) for k in range(60)], "Long.")
    page = Page(write(Section("All", [], [TABLE, long])))
    assert [figure["class"] for figure in page.all("figure")] == ["table", "table tall"]


def test_a_number_is_not_torn_from_its_unit_or_its_interval(write):
    page = write(Section("All", ["A power of 80 % and p = 0.03."], [FIGURE._replace(caption="0.5 [0.4, 0.6]")]))
    assert "A power of 80\N{NO-BREAK SPACE}% and p =\N{NO-BREAK SPACE}0.03." in page
    assert "0.5 [0.4,\N{NO-BREAK SPACE}0.6]" in page
