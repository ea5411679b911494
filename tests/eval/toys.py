"""A toy corpus in our own words, and a look at whether a process is gone."""

from __future__ import annotations

import stat
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from avpipe.eval import corenlp
from avpipe.eval.evaluation import Evaluation, TokenisedReferences
from avpipe.eval.java import Java
from avpipe.eval.metric import MetricResult
from avpipe.eval.metrics import meteor
from avpipe.eval.tools import Tools, pycocoevalcap_file

# Ids out of sorted order, numbers of references that differ, and what captions hold in the wild.
TOY_REFERENCES = {
    "video7010": ["a red square slides to the left", "the square, which is red, moves left", "a square moves"],
    "G0mjFqytJt4_000152_000162": ["a siren wails twice and a dog barks", "two sirens are heard, then barking"],
    "12": ["someone's phone rings; he doesn't answer", 'a man says "no" and lets the phone ring'],
    "7": ["une voix dit « café » près d'une fenêtre", "a voice says café"],
    "a-b": ["it costs $5.50 (about 1/2 of before)", "the price is halved to $ 5.50 -- really"],
    "Z9": ["a cat 😀 sleeps on a green sofa", "the cat is sleeping"],
    "m0": ["large waves break on the shore", "big waves are breaking on the beach"],
}
TOY_CANDIDATES = {
    "video7010": "a red square slides to the left",
    "G0mjFqytJt4_000152_000162": "a siren wails and two dogs bark",
    "12": "a man doesn't answer the phone",
    "7": "une voix dit « café »",
    "a-b": "the price is $5.50 (one half)",
    "Z9": "a violin plays",
    "m0": "huge waves are crashing on the beach",
}


def evaluation_of(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, str],
    tools: Tools | None = None,
    idf: Mapping[str, Sequence[str]] | None = None,
) -> Evaluation:
    """Of captions that are words already."""
    whole = TokenisedReferences(references, references)
    corpus = TokenisedReferences(idf, idf) if idf else None
    return Evaluation(candidates, candidates, whole, tools or Tools(), idf=corpus)


def stand_in(evaluation: Evaluation, name: str, result: MetricResult) -> None:
    """Have a metric say this, where others ask for what it says."""
    evaluation._results.get(name, lambda: result)


def link_meteor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has METEOR run from another folder; returns where its paraphrase table belongs."""
    (folder / "data").mkdir(parents=True)
    (folder / "meteor-1.5.jar").symlink_to(pycocoevalcap_file("meteor", "meteor-1.5.jar"))
    monkeypatch.setattr(meteor, "pycocoevalcap_file", lambda _, *parts: folder.joinpath(*parts))
    return folder / "data" / "paraphrase-en.gz"


FakeJava = Callable[[str], Java]


def write_java(folder: Path, text: str) -> Java:
    """Writes an executable and calls it Java 17: a shell script, or Python where it begins with "import"."""
    path = folder / f"java{len(list(folder.glob('java*')))}"
    text = textwrap.dedent(text).strip()
    shebang = f"#!{sys.executable}" if text.startswith("import") else "#!/bin/sh"
    path.write_text(f"{shebang}\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Java(path=path, version="17.0.1", source="test")


# Speaks as METEOR's jar does: of each caption, half of the words are in a reference, side by side.
METEOR_PRETENDER = """
while read line; do
    echo 4.0 4.0 0.0 0.0 2.0 2.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 2.0 2.0
done
"""
METEOR_PRETENDED = 0.5 * (1 - 0.6 * 0.5**0.2)

# Speaks as SpiceLines does. To it every word is a tuple, and all of them count alike.
SPICE_PRETENDER = """
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    if isinstance(question, str):
        print(json.dumps([[word] for word in question.split()]), flush=True)
        continue
    ours, theirs = ({tuple(one) for one in side} for side in question)
    f = 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 0
    print(json.dumps({"All": {"f": f}, "Size": {"f": None}}), flush=True)
"""


def pretended_spice(folder: Path, text: str = SPICE_PRETENDER, **others: Any) -> Tools:
    """Tools with which SPICE runs without its jars."""
    jars = folder / "CoreNLP with späces"
    jars.mkdir(exist_ok=True)
    for name in corenlp.JARS:
        (jars / name).touch()
    return Tools(write_java(folder, text), spice=jars, **others)


def is_gone(pid: int, seconds: float = 10.0) -> bool:
    """No such process, or nobody has collected its remains yet."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False
