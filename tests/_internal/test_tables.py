"""Tables and templates."""

import jinja2
import pytest
from markupsafe import Markup

from lit_ddpm._internal.tables import html_table, markdown_table, text_table
from lit_ddpm._internal.templates import render

ROWS = [["name", "bits", "±"], ["a <b>", "1.5", "0.25"], ["longest", "12.75"]]


def test_text_is_aligned():
    assert text_table(ROWS).split("\n") == [
        "name      bits     ±",
        "a <b>      1.5  0.25",
        "longest  12.75",
    ]


def test_columns_have_a_least_width_and_a_side():
    assert text_table(ROWS[:2], widths=(3, 6, 6), left=2).split("\n") == [
        "name   bits         ±",
        "a <b>  1.5       0.25",
    ]
    assert text_table([["t", "x"], ["10", "2"]], widths=(4,), left=0).split("\n") == ["   t  x", "  10  2"]
    assert text_table([["a", ""], ["b", ""]]) == "a\nb"  # no trailing spaces


def test_markdown_aligns_numbers_to_the_right():
    assert markdown_table(ROWS[:2]) == "| name | bits | ± |\n| --- | ---: | ---: |\n| a <b> | 1.5 | 0.25 |"
    assert markdown_table(ROWS[:1], left=3).endswith("\n| --- | --- | --- |")


def test_html_is_escaped_except_for_markup():
    html = html_table([["name", "a <b>"], ["x & y", Markup("<b>1.5</b>")]])
    assert html == (
        "<table><tr><th>name</th><th>a &lt;b&gt;</th></tr><tr><td>x &amp; y</td><td><b>1.5</b></td></tr></table>"
    )


def test_a_template_escapes_html_only_and_needs_all_values(tmp_path):
    for name, table, text in (
        ("page.html.jinja", "html_table", "a &lt;b&gt;: <table><tr><th>&lt;i&gt;</th></tr></table>\n"),
        ("card.md.jinja", "markdown_table", "a <b>: | <i> |\n| --- |\n"),
    ):
        (tmp_path / name).write_text(f"{{{{ name }}}}: {{{{ rows | {table} }}}}\n")
        assert render(tmp_path / name, name="a <b>", rows=[["<i>"]]) == text
        with pytest.raises(jinja2.UndefinedError, match="'rows' is undefined"):
            render(tmp_path / name, name="a")
