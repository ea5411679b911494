"""The documents say what is so: their links resolve, their commands parse, their lists are the registries'."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import avpipe
from avpipe.cli import app
from avpipe.data_manifests.cards import BEGIN, END, filled_in, markdown
from avpipe.data_manifests.datasets import REGISTRY as DATASETS
from avpipe.eval.metrics import REGISTRY as METRICS
from avpipe.extract.encoders import REGISTRY as ENCODERS
from avpipe.pipeline.registry import Registry
from avpipe.pipeline.store import FORMATS
from avpipe.train.decoders import REGISTRY as DECODERS
from avpipe.train.fusions import REGISTRY as FUSIONS
from avpipe.train.objectives import REGISTRY as OBJECTIVES

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

# -- links -------------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """A document without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """What the headings of a document are called in links, as GitHub makes them."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """The links of a document that lead nowhere in the project."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file
        content = there.read_text(encoding="utf-8") if there.is_file() else "" if file else text
        if not there.exists() or (anchor and anchor not in anchors(content)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


def test_broken_links_are_found() -> None:
    text = "# A heading\n[a](README.md) [b](nowhere.md) [c](#a-heading) [d](#another) [e](https://x.org) `[f](code.md)`"
    assert broken_links(ROOT / "x.md", text) == ["nowhere.md", "#another"]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:avpipe|tests|benchmarks|docs)/[\w./-]+)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == EXAMPLES.get(name, [])


EXAMPLES = {
    "docs/adding-parts.md": [
        "avpipe/data_manifests/datasets/birds.py",
        "avpipe/data_manifests/datasets/sidecar.py",
        "avpipe/eval/metrics/word_f1.py",
        "avpipe/extract/encoders/mean_colour.py",
        "avpipe/pipeline/store/raw.py",
        "avpipe/train/decoders/gru.py",
        "avpipe/train/fusions/mean_pool.py",
        "avpipe/train/objectives/z_loss.py",
    ]
}
"""Files that a reader is told to make."""


def missing_tests(text: str) -> list[str]:
    """Tests that a document names and that are not there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    return [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).exists() or f"\ndef {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_are_named_exist(name: str) -> None:
    assert not missing_tests((ROOT / name).read_text(encoding="utf-8"))


def test_tests_that_do_not_exist_are_found() -> None:
    named = "`tests/test_docs.py::missing_tests` `tests/test_docs.py::test_tests_that_are_named_exist` `tests/x.py::y`"
    assert missing_tests(named) == ["tests/x.py::y"]


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[str]:
    """Every command line that a document shows: in shell blocks, and between back quotes."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        lines = (line.partition("#")[0].strip() for line in block.splitlines())
        yield from (line for line in lines if line.startswith("avpipe "))
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`(avpipe\s[^`]+)`", outside):
        yield " ".join(span.split())


def complaint(line: str) -> str:
    """What the command line says to a line, without running it; "" if it is understood."""
    root: Any = typer.main.get_command(app)
    _, name, *words = shlex.split(line)
    if name.startswith("-"):
        known = {"--help", "-h"}.union(*(option.opts for option in root.params))
        return "" if name in known else f"no such option: {name}"
    if name not in root.commands:
        return f"no such command: {name}"
    command = root.commands[name]
    if hasattr(command, "commands"):  # a group
        if not words or words[0] not in command.commands:
            return f"no such command: {name} {words[0]}" if words else ""
        name, *words = words
        command = command.commands[name]
    words = words if has_arguments(command, words) else [*words, "--help"]
    try:
        command.make_context(name, words)
    except typer.Exit:
        return ""
    except typer.BadParameter.__mro__[1] as error:  # a usage error, wherever typer's click lies
        return str(error.format_message())
    return ""


def has_arguments(command: Any, words: list[str]) -> bool:
    """Whether a line is more than the mention of a command whose argument is left out (`avpipe prepare`)."""
    needed = [
        parameter for parameter in command.params if parameter.param_type_name == "argument" and parameter.required
    ]
    return bool(words) or not needed


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_understood(name: str) -> None:
    lines = list(commands((ROOT / name).read_text(encoding="utf-8")))
    assert [(line, said) for line in lines if (said := complaint(line))] == []


def test_commands_are_found() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = list(commands(text))
    assert "avpipe train --fusion qformer" in found
    assert "avpipe extract --dry-run" in found
    assert len(found) > 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("avpipe extracts", "no such command: extracts"),
        ("avpipe train --fusions qformer", "--fusions"),
        ("avpipe score --missing never", "'never' is not one of"),
        ("avpipe features diff a b --min 1", "--min"),
        ("avpipe features differ a b", "no such command: features differ"),
        ("avpipe prepare --media videos", "DATASET"),
        ("avpipe --versions", "no such option: --versions"),
    ],
)
def test_commands_that_are_not_understood_are_found(line: str, said: str) -> None:
    assert said in complaint(line)


# -- lists of parts ----------------------------------------------------------------------------------------------------

PARTS: dict[str, Registry] = {
    "encoders": ENCODERS,
    "datasets": DATASETS,
    "fusions": FUSIONS,
    "decoders": DECODERS,
    "objectives": OBJECTIVES,
    "metrics": METRICS,
    "store formats": FORMATS,
}


def listed(text: str, kind: str) -> list[str]:
    """The parts of one kind that the README's table says are there today, in one row or several (``fusions: new``)."""
    rows = re.findall(rf"^\| {kind}(?:: \w+)? \| (.*) \|$", text, flags=re.MULTILINE)
    return sorted(re.findall(r"`(\w+)`", " ".join(rows)))


@pytest.mark.parametrize("kind", PARTS)
def test_readme_lists_the_parts_there_are(kind: str) -> None:
    assert listed((ROOT / "README.md").read_text(encoding="utf-8"), kind) == PARTS[kind].names()


def test_the_table_of_datasets_is_that_of_their_cards() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == filled_in(text), "say: make docs"


def test_an_old_table_of_datasets_is_found() -> None:
    old = f"before\n{BEGIN}| old |\n{END}after\n"
    assert filled_in(old) == f"before\n{BEGIN}{markdown()}{END}after\n"
    with pytest.raises(ValueError, match="expected the marks <!-- datasets"):
        filled_in("no table")


def test_listed_parts_are_read() -> None:
    assert listed("| kind | there |\n| fusions | `qformer`; `concat` (plain) |\n", "fusions") == ["concat", "qformer"]
    assert listed("| fusions: a | `one` |\n| fusions: b | `two` |\n| others | `x` |\n", "fusions") == ["one", "two"]


@pytest.mark.parametrize("program", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_every_benchmark_is_described(program: Path) -> None:
    assert f"`benchmarks/{program.name}" in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


# -- versions ----------------------------------------------------------------------------------------------------------


def test_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", text, flags=re.MULTILINE)
    assert released[0] == avpipe.__version__


def test_licence_is_the_one_that_is_declared() -> None:
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    first, second = (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n")[:2]
    assert (first.strip(), second.strip()) == ("Apache License", "Version 2.0, January 2004")


# -- nothing private ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|Users|work|mnt)/\S*", text) == []
