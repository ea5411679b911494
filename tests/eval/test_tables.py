"""One table in four forms."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from avpipe.eval.tables import Cell, Table, interval, number

TABLE = Table(
    header=["system", "CIDEr", "Bleu_4"],
    rows=[
        ["a|b_c & 50 %", Cell("0.5000\n[0.4, 0.6]", bold=True), "-0.1"],
        ["[1] x_", "none", Cell("", bold=True)],
    ],
    notes=["p < 0.05 * of <b>two</b>", "100 %\nof it"],
)


def test_markdown() -> None:
    assert TABLE.markdown() == (
        "| system | CIDEr | Bleu_4 |\n"
        "| --- | ---: | ---: |\n"
        "| a\\|b_c & 50 % | **0.5000 [0.4, 0.6]** | -0.1 |\n"
        "| [1] x\\_ | none |  |\n"
        "\n"
        "p < 0.05 \\* of \\<b>two\\</b>\n"
        "\n"
        "100 % of it\n"
    )


def test_latex() -> None:
    assert TABLE.latex() == (
        "% needs \\usepackage{booktabs}\n"
        "% p < 0.05 * of <b>two</b>\n"
        "% 100 % of it\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "system & CIDEr & Bleu\\_4 \\\\\n"
        "\\midrule\n"
        "a\\textbar{}b\\_c \\& 50 \\% & \\textbf{0.5000 [0.4, 0.6]} & $-$0.1 \\\\\n"
        "{[}1] x\\_ & none &  \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\\{~^}", r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}\}"),
        ("#1 $x$", r"\#1 \$x\$"),
        ("a-1 2020-01 [-0.5, +0.5] - x", "a-1 2020-01 [$-$0.5, +0.5] - x"),
        ("0.4 ± 0.1", r"0.4 $\pm$ 0.1"),
        ("*best", "{*}best"),  # TeX reads a star after a line's end as part of it
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert f"\n{escaped} \\\\\n\\midrule" in Table(header=[text], rows=[]).latex()


def test_csv_is_the_cells_alone() -> None:
    assert list(csv.reader(io.StringIO(TABLE.csv()))) == [
        ["system", "CIDEr", "Bleu_4"],
        ["a|b_c & 50 %", "0.5000 [0.4, 0.6]", "-0.1"],
        ["[1] x_", "none", ""],
    ]
    assert TABLE.render("csv") == TABLE.csv()


def test_terminal_takes_no_cell_for_markup() -> None:
    console = Console(width=60, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Table(header=["[bold]x"], rows=[[Cell("[red]y", bold=True)], ["none"]]))
    text = console.export_text(clear=False)
    assert "[bold]x" in text
    assert "[red]y" in text
    styled = console.export_text(styles=True)
    assert "\x1b[1m[red]y " in styled
    assert "\x1b[1;31mnone " in styled


def wide(columns: int) -> Table:
    """A number column of 16 letters each, as scores with intervals are."""
    names = [f"{'metric' * 3}{index}" for index in range(columns)]
    return Table(
        header=["kind", *names],
        rows=[[f"{'label ' * 9}end", *(f"{index}.5000\n[0.4000, 0.6000]" for index in range(columns))], ["z", *names]],
    )


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("columns", [1, 4, 9])
def test_nothing_is_lost_in_a_narrow_terminal(width: int, columns: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(wide(columns), soft_wrap=False)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    parts = text.count("┏")
    assert (parts > 1) == (columns * 22 + 28 > width and columns > 1)
    assert text.count("[0.4000, 0.6000]") == columns  # no number is folded
    assert all(f"{index}.5000" in text for index in range(columns))
    assert text.count("label") == 9 * parts  # words stand before each part
    assert text.count("kind") == parts


def test_a_terminal_that_is_narrower_than_a_number_folds_it() -> None:
    console = Console(width=16, record=True, file=io.StringIO())
    console.print(wide(1), soft_wrap=False)
    lines = [line.split("│") for line in console.export_text().splitlines() if line.startswith("│")]
    letters = "".join(line[2].strip() for line in lines)
    assert "0.5000[0.4000,0.6000]" in letters.replace(" ", "")


def test_a_table_without_rows_has_its_titles() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Table(header=["metric", "score"], rows=[]))
    assert "metric" in console.export_text(clear=False)
    assert "score" in console.export_text()


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 cells as the header has, got rows of \[1, 3\]"):
        Table(header=["a", "b"], rows=[["1"], ["1", "2"], ["1", "2", "3"]])


def test_numbers() -> None:
    assert [number(0.59979), number(0.59979, percent=True), number(None)] == ["0.5998", "59.98", "none"]
    assert [number(0.01, signed=True), number(-0.01, signed=True, percent=True)] == ["+0.0100", "-1.00"]
    assert interval(0.1, 0.2) == "[0.1000, 0.2000]"
    assert interval(-0.1, 0.2, percent=True, signed=True) == "[-10.00, +20.00]"
    assert interval(None, None) == ""


def test_what_is_rounded_to_zero_has_no_minus() -> None:
    assert [number(-1e-9), number(-1e-9, percent=True), number(-0.0)] == ["0.0000", "0.00", "0.0000"]
    assert number(-1e-9, signed=True) == "+0.0000"
    assert number(-0.0001) == "-0.0001"
