"""Our own Java programs: what is committed is what their sources make."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from avpipe.eval.java import PROGRAMS
from avpipe.eval.tools import pycocoevalcap_file

LIBRARIES = {"MeteorLines": ("meteor", "meteor-1.5.jar"), "SpiceLines": ("spice", "spice-1.0.jar")}
"""By program, the jar against which it is compiled, together with those of the folder ``lib`` beside it."""


def classes(program: str, folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"{program}*.class"))}


def test_all_programs_are_known() -> None:
    assert {path.stem for path in PROGRAMS.glob("*.java")} == set(LIBRARIES)
    assert {path.stem.partition("$")[0] for path in PROGRAMS.glob("*.class")} == set(LIBRARIES)


@pytest.mark.parametrize("program", LIBRARIES)
def test_classes_run_on_java_8(program: str) -> None:
    headers = {content[:8] for content in classes(program, PROGRAMS).values()}
    assert headers == {b"\xca\xfe\xba\xbe\x00\x00\x00\x34"}


@pytest.mark.parametrize("program", LIBRARIES)
def test_classes_are_what_their_source_makes(program: str, tmp_path: Path) -> None:
    """Byte for byte, with the javac of Java 17; that of Java 25 numbers lambdas otherwise."""
    home = os.environ.get("JAVA_HOME", "")
    javac = shutil.which("javac") or shutil.which(str(Path(home, "bin", "javac")))
    if javac is None:
        pytest.skip("no javac here: classes cannot be made anew")
    version = subprocess.run([javac, "-version"], check=True, capture_output=True, text=True)
    jar = pycocoevalcap_file(*LIBRARIES[program])
    command = [javac, "--release", "8", "-Xlint:-options", "-g:none", "-cp", f"{jar}:{jar.parent}/lib/*"]
    source = PROGRAMS / f"{program}.java"
    subprocess.run([*command, "-d", str(tmp_path), str(source)], check=True, capture_output=True)
    made = classes(program, tmp_path)
    assert list(made) == list(classes(program, PROGRAMS))
    if made != classes(program, PROGRAMS) and not version.stdout.startswith("javac 17."):
        pytest.skip(f"made by javac 17, not by {version.stdout.strip()}")
    assert made == classes(program, PROGRAMS)
