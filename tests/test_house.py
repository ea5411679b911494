"""Rules of the house that no linter knows: which part may import which, and what `avpipe --help` may cost."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "avpipe"

# Who may import whom. `top` is what knows every stage: the command line and the demo.
ALLOWED = {
    "pipeline": {"pipeline"},
    "data_manifests": {"data_manifests", "pipeline"},
    "extract": {"extract", "data_manifests", "pipeline"},
    "train": {"train", "data_manifests", "pipeline"},
    "eval": {"eval", "data_manifests", "pipeline"},
    "top": {"top", "extract", "train", "eval", "data_manifests", "pipeline"},
}


# The package itself holds its version and nothing else.
ROOT = ("avpipe", "avpipe.__version__", "avpipe.__init__")


def part_of(module: str) -> str:
    """The part that a dotted name inside avpipe belongs to: ``avpipe.train.loop`` -> ``train``."""
    second = module.split(".")[1]
    return second if second in ALLOWED else "top"


def imports_of(source: str) -> Iterator[str]:
    """Every avpipe module that a source file imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("relative import: write the full name, so that the direction can be seen")
            # `from avpipe.extract import run` imports avpipe.extract.run
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "avpipe")


def forbidden(path: Path, source: str) -> list[str]:
    """The imports of a file that point the wrong way."""
    module = "avpipe." + path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    part = part_of(module)
    return [
        f"{module} imports {name}"
        for name in imports_of(source)
        if name not in ROOT and part_of(name) not in ALLOWED[part]
    ]


def test_imports_run_one_way() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    assert [line for path in files for line in forbidden(path, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train/loop.py", "from avpipe.eval import score"),
        ("eval/score.py", "def f():\n    import avpipe.train.loop"),
        ("pipeline/shards.py", "from avpipe.data_manifests.manifest import read"),
        ("extract/run.py", "from avpipe import cli"),
    ],
)
def test_imports_run_one_way_fails(path: str, source: str) -> None:
    assert len(forbidden(PACKAGE / path, source)) == 1


HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "open_clip",
    "av",
    "h5py",
    "pydantic",
    "pycocoevalcap",
    "fsspec",
    "s3fs",
    "upath",
)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from avpipe.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'extract' in result.output and 'train' in result.output and 'score' in result.output\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_answers_in_half_the_time_of_importing_torch() -> None:
    # The one promise about time that is a test: it is a ratio of two commands run in turn, with a wide margin.
    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        return time.perf_counter() - start

    ratios = [seconds("-m", "avpipe", "--help") / seconds("-c", "import torch") for _ in range(3)]
    assert statistics.median(ratios) < 0.5
