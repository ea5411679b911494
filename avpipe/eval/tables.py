"""One table, four ways: for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table as RichTable

Format = Literal["markdown", "latex", "csv"]

NONE = "none"
"""What stands for a score that could not be computed."""

_WIDE = 20
"""Letters that a column of words and a title have in a narrow terminal before they are folded."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
# What Markdown would read as more than a letter; an underscore is one inside a word.
_MARKDOWN = re.compile(r"([\\`*~]|<(?=[\w/!])|(?<!\w)_|_(?!\w)|(?<=\])\()")
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: what stands in it, in plain letters; a line break is one in the terminal, and elsewhere a space.
        bold: what stands out: the best, or what the others are parts of.
    """

    text: str
    bold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells in rows below a header.

    Attributes:
        header: titles of the columns.
        rows: of each column a cell.
        words: how many columns on the left hold words; the others hold numbers, and end at the same place.
        notes: lines to stand below; CSV, which programs read, leaves them out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: int = 1
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        widths = sorted({len(row) for row in self.rows} - {len(self.header)})
        if widths:
            raise ValueError(f"rows: expected {len(self.header)} cells as the header has, got rows of {widths}")

    def render(self, form: Format) -> str:
        """The text of a form."""
        return {"markdown": self.markdown, "latex": self.latex, "csv": self.csv}[form]()

    def markdown(self) -> str:
        """With the best in bold, and notes below."""
        lines = [
            [_markdown(Cell(title)) for title in self.header],
            ["---" if self._is_word(index) else "---:" for index in range(len(self.header))],
            *([_markdown(cell) for cell in row] for row in self._cells()),
        ]
        notes = "".join(f"\n{_escaped(' '.join(note.split()))}\n" for note in self.notes)
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + notes

    def latex(self) -> str:
        r"""A ``tabular`` for ``\usepackage{booktabs}``, with the best in bold, and notes as comments."""
        columns = "".join("l" if self._is_word(index) else "r" for index in range(len(self.header)))
        lines = [[Cell(title) for title in self.header], *self._cells()]
        head, *body = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
        text = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        notes = [f"% {' '.join(note.split())}" for note in (r"needs \usepackage{booktabs}", *self.notes)]
        return "\n".join([*notes, *text, r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """The cells as they are, without bold and notes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows([" ".join(cell.text.split()) for cell in row] for row in self._cells())
        return text.getvalue()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RichTable]:
        """For the terminal, when it is printed by rich; notes belong below it.

        Columns that do not fit beside one another stand in several tables, each with the words on the left. A long word
        is folded; no number is, unless it alone is wider than the terminal.
        """
        from rich.table import Table as RichTable
        from rich.text import Text

        cells = self._cells()
        for columns, widths in self._parts(options.max_width):
            grid = RichTable()
            for index, width in zip(columns, widths, strict=True):
                justify: Literal["left", "right"] = "left" if self._is_word(index) else "right"
                grid.add_column(Text(self.header[index]), justify=justify, width=width, overflow="fold")
            for row in cells:
                grid.add_row(*(Text(row[index].text, style=_style(row[index])) for index in columns))
            yield grid

    def _parts(self, room: int) -> list[tuple[list[int], list[int]]]:
        """Which columns stand beside one another in a terminal of a width, and how wide each is."""
        from rich.cells import cell_len

        def widest(texts: Iterable[str]) -> int:
            return max((cell_len(line) for text in texts for line in text.splitlines()), default=0)

        widths = [widest(cell.text for cell in column) for column in zip(*self._cells(), strict=True)]
        widths = widths or [0] * len(self.header)
        heads = [widest([title]) for title in self.header]
        words = [max(width, head) for width, head in zip(widths, heads, strict=True)][: self.words]
        numbers = [max(width, min(head, _WIDE)) for width, head in zip(widths, heads, strict=True)][self.words :]
        frame = 3  # of each column: a line and two blanks; and one line more
        least = sum(min(width, _WIDE) + frame for width in words) + 1
        parts: list[list[int]] = [[]]
        for index, width in enumerate(numbers):
            taken = sum(numbers[other] + frame for other in parts[-1])
            if parts[-1] and least + taken + width + frame > room:
                parts.append([])
            parts[-1].append(index)
        found = []
        for part in parts:
            own = [*words, *(numbers[index] for index in part)]
            while sum(own) + frame * len(own) + 1 > room and max(own) > 1:
                wide = [index for index in range(self.words) if own[index] > _WIDE] or range(len(own))
                own[max(wide, key=lambda index: own[index])] -= 1
            found.append(([*range(self.words), *(self.words + index for index in part)], own))
        return found

    def _cells(self) -> list[list[Cell]]:
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def _is_word(self, index: int) -> bool:
        return index < self.words


def number(value: float | None, *, percent: bool = False, signed: bool = False) -> str:
    """A score for people: ``"0.5998"``, or times 100 ``"59.98"``; ``"none"`` if there is none."""
    if value is None:
        return NONE
    sign = "+" if signed else ""
    # z: what is rounded to zero has no minus.
    return f"{100 * value:{sign}z.2f}" if percent else f"{value:{sign}z.4f}"


def interval(low: float | None, high: float | None, *, percent: bool = False, signed: bool = False) -> str:
    """``"[0.5821, 0.6170]"``, or nothing if there is none."""
    if low is None or high is None:
        return ""
    return f"[{number(low, percent=percent, signed=signed)}, {number(high, percent=percent, signed=signed)}]"


def _style(cell: Cell) -> str:
    """A score that is not there must not be overlooked."""
    if cell.text == NONE:
        return "bold red"
    return "bold" if cell.bold else ""


def _markdown(cell: Cell) -> str:
    text = _escaped(" ".join(cell.text.split())).replace("|", "\\|")
    return f"**{text}**" if cell.bold and text else text


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def _latex(cell: Cell) -> str:
    """Escaped. A bracket or a star after a line's end would be read as an option of it; a hyphen is no minus sign."""
    text = "".join(_LATEX.get(character, character) for character in " ".join(cell.text.split()))
    text = _NEGATIVE.sub("$-$", text)
    text = f"{{{text[0]}}}{text[1:]}" if text.startswith(("[", "*")) else text
    return rf"\textbf{{{text}}}" if cell.bold and text else text
