"""Pictures: the same numbers are the same bytes, and what is in them is what was given."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from avpipe.eval import pictures
from avpipe.eval.comparison import Standing
from avpipe.eval.pictures import check_picture, interval_plot, slice_bars
from avpipe.pipeline.errors import MissingPackageError, UsageError

NONE = Standing(score=None, low=None, high=None, seeds=())
STANDINGS = {
    "base $x$": {
        "CIDEr": Standing(score=0.5, low=0.4, high=0.7, seeds=(0.5,)),
        "METEOR": NONE,
        "Vocab": Standing(score=0.2, low=None, high=None, seeds=(0.2,)),
    },
    # Of a biased score the interval need not hold it.
    "ours": {"CIDEr": Standing(score=0.6, low=0.62, high=0.8, seeds=(0.6,)), "METEOR": NONE, "Vocab": NONE},
}
SLICES = {"all": (0.5, 0.4, 0.6, 240), "silent $x$": (0.3, None, None, 1)}


def intervals(path: Path) -> None:
    interval_plot(STANDINGS, path, percent=True)


def bars(path: Path) -> None:
    slice_bars(SLICES, path, metric="CIDEr", few=30)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is written."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    write = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (figures.append(self), write(self, *args, **kw))[1]
    )
    return figures


@pytest.mark.parametrize("draw", [intervals, bars])
@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
def test_the_same_numbers_are_the_same_bytes(
    draw: Callable[[Path], None], ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / f"one{ending}")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # as if much time had passed
    draw(tmp_path / "folder" / f"two{ending}")
    one, two = (tmp_path / f"one{ending}").read_bytes(), (tmp_path / "folder" / f"two{ending}").read_bytes()
    assert one == two
    if ending == ".svg":
        assert ET.fromstring(one).tag.endswith("svg")
    elif ending == ".png":
        colours = Image.open(tmp_path / "one.png").convert("RGB").getcolors(1_000_000) or []
        wanted = {(0, 0x72, 0xB2), *([(0xD5, 0x5E, 0)] if draw is intervals else [])}
        assert wanted <= {colour for _, colour in colours}
    else:
        assert one.startswith(b"%PDF")


def test_intervals_are_where_they_belong(tmp_path: Path, drawn: list[Any]) -> None:
    intervals(tmp_path / "x.svg")
    panels = [panel for panel in drawn[0].axes if panel.axison]
    assert [panel.get_title() for panel in panels] == ["CIDEr x 100", "Vocab"]  # of METEOR there is nothing
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [r"base \$x\$", "ours"]
    points = [line.get_xydata().tolist() for line in panels[0].lines if line.get_marker() == "o"]
    assert points == [[[50.0, 0.0]], [[60.0, 1.0]]]
    segments = [container[2][0].get_segments()[0].tolist() for container in panels[0].containers]
    assert segments == [
        [[pytest.approx(40), 0], [pytest.approx(70), 0]],
        [[pytest.approx(62), 1], [pytest.approx(80), 1]],
    ]
    assert len([line for line in panels[1].lines if line.get_marker() == "o"]) == 1
    assert drawn[0].get_supxlabel() == "with 95 % intervals, of scores that have one"


@pytest.mark.parametrize(
    ("ends", "said"), [((0.4, 0.7), "with 95 % intervals"), ((None, None), "")], ids=["intervals", "none"]
)
def test_intervals_are_spoken_of_where_there_are_some(
    tmp_path: Path, drawn: list[Any], ends: tuple[float | None, float | None], said: str
) -> None:
    only = Standing(score=0.5, low=ends[0], high=ends[1], seeds=(0.5,))
    interval_plot({"a": {"CIDEr": only}}, tmp_path / "x.svg")
    slice_bars({"all": (0.5, *ends, 9)}, tmp_path / "y.svg", metric="CIDEr", percent=True)
    assert drawn[0].get_supxlabel() == said
    assert drawn[1].axes[0].get_xlabel() == "CIDEr x 100" + (f", {said}" if said else "")


def test_long_names_that_differ_at_either_end_differ(tmp_path: Path, drawn: list[Any]) -> None:
    names = [f"{first}-{'x' * 60}-{last}" for first in "ab" for last in ("lr=1e-3", "lr=1e-4")]
    one = Standing(score=0.5, low=0.4, high=0.6, seeds=(0.5,))
    interval_plot({name: {"CIDEr": one} for name in names}, tmp_path / "x.svg")
    shown = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert len(set(shown)) == 4
    assert all(len(name) == 40 for name in shown)
    assert shown[1].endswith("x-lr=1e-4")


def test_bars_are_as_long_as_the_scores(tmp_path: Path, drawn: list[Any]) -> None:
    bars(tmp_path / "x.svg")
    (panel,) = drawn[0].axes
    assert [patch.get_width() for patch in panel.patches] == [0.5, 0.3]
    assert [patch.get_alpha() for patch in panel.patches] == [1, 0.4]
    labels = ["all, n = 240", r"silent \$x\$, n = 1 (few)"]
    assert [label.get_text() for label in panel.get_yticklabels()] == labels
    assert len(panel.containers) - len(panel.patches) == 1  # the interval


@pytest.mark.parametrize("name", ["x.jpg", "x", "svg"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}: expected a file that ends in \.svg, \.png, \.pdf"):
        intervals(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.svg", tmp_path / "file" / "deeper" / "x.svg"):
        with pytest.raises(UsageError, match=r"expected a folder that can be written to; .*file is none"):
            check_picture(path)
    check_picture(tmp_path / "new" / "deeper" / "x.svg")


@pytest.mark.parametrize("standings", [{}, {"a": {"METEOR": NONE}}])
def test_nothing_to_draw_is_refused(tmp_path: Path, standings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="there is no score to draw"):
        interval_plot(standings, tmp_path / "x.svg")
    with pytest.raises(UsageError, match="there is no score to draw"):
        slice_bars({}, tmp_path / "x.svg", metric="CIDEr")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'avpipe\[plots\]'"):
        check_picture(tmp_path / "x.svg")


def test_a_users_style_changes_nothing_and_is_kept(tmp_path: Path) -> None:
    import matplotlib

    bars(tmp_path / "one.svg")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "none"}):
        bars(tmp_path / "two.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_pyplot_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # whoever imports it fails
    bars(tmp_path / "x.svg")
