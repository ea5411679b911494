"""The numbers that others have published, to every digit that they printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from avpipe.eval import score
from avpipe.eval.coco import read_references, read_results
from avpipe.eval.tools import Tools

SCORING = Path(__file__).parents[3] / "shared" / "scoring"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SCORING.is_dir(), reason="third-party captions are not beside the project"),
]


@pytest.mark.slow
def test_coco_fakecap(tools: Tools) -> None:
    """coco-caption's own example: 1,000 captions of COCO val2014."""
    folder = SCORING / "coco_fakecap"
    report = score(
        read_results(folder / "captions_val2014_fakecap_results.json"),
        read_references(folder / "captions_val2014_fakecap_subset.derived.json"),
        tools=tools,
    )
    assert {name: f"{value:.3f}" for name, value in report.scores.items()} == {
        "Bleu_1": "0.579",
        "Bleu_2": "0.404",
        "Bleu_3": "0.279",
        "Bleu_4": "0.191",
        "METEOR": "0.195",
        "ROUGE_L": "0.396",
        "CIDEr": "0.600",
    }
    assert [f"{value:.7f}" for value in report.scores.values()] == [
        "0.5793996",
        "0.4043913",
        "0.2785364",
        "0.1908290",
        "0.1952547",
        "0.3962527",
        "0.5997905",
    ]


def test_nlgeval(tools: Tools) -> None:
    """nlg-eval's own example: two captions with two references each."""
    folder = SCORING / "nlgeval"
    captions, *references = (
        (folder / name).read_text(encoding="utf-8").splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt")
    )
    pairs = {number: list(pair) for number, pair in enumerate(zip(*references, strict=True))}
    report = score(dict(enumerate(captions)), pairs, tools=tools)
    assert {name: round(value or 0, 6) for name, value in report.scores.items()} == {
        "Bleu_1": 0.55,
        "Bleu_2": 0.428174,
        "Bleu_3": 0.284043,
        "Bleu_4": 0.201143,
        "METEOR": 0.295797,
        "ROUGE_L": 0.522104,
        "CIDEr": 1.242192,
    }
