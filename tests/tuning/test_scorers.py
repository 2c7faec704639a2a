"""A user's scorer: numbers, exit codes, and one sentence where it fails, answers nonsense or hangs."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import RFError
from tuning.scorers import CommandScorer

PICTURE = np.zeros((4, 4, 3), np.uint8)


def score(body, timeout=20.0, prompt="a red car"):
    return CommandScorer(f"sh -c {shlex.quote(body)} judge {{png}} {{prompt}}", timeout).score([PICTURE], [prompt])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo 0.25", 0.25),
        ("echo; echo ' 1 '", 1.0),
        ("echo 0", 0.0),
        ("true", 1.0),
        ("exit 1", 0.0),
        ("echo 1e-3", 0.001),
    ],
)
def test_a_number_or_an_exit_code_is_a_score(body, expected):
    assert score(body) == [expected]


def test_it_gets_the_picture_and_the_prompt_as_they_are(tmp_path):
    prompt = "a 'red' car; $(rm -rf /) {png} \\ \"two\""
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import sys\nfrom PIL import Image\n"
        "print(float(Image.open(sys.argv[1]).size == (4, 4) and sys.argv[2].replace(sys.argv[1], '') == 'x'))\n"
    )
    scorer = CommandScorer(f"{shlex.quote(sys.executable)} {shlex.quote(str(judge))} {{png}} {{prompt}}", 60)
    assert scorer.score([PICTURE, PICTURE], ["x", prompt]) == [1.0, 0.0]
    assert score('test "$2" = "a \'red\' car; \\$(x)"', prompt="a 'red' car; $(x)") == [1.0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 2", "failed with exit code 2: it said nothing. Let it print a number from 0 to 1"),
        ("echo no such model >&2; exit 1 >&1; ", None),
        ("echo no such model >&2; exit 7", "failed with exit code 7: no such model."),
        ("echo 0.5; exit 1", "failed with exit code 1: 0.5."),
        ("echo good", "printed 'good', expected one number from 0 to 1"),
        ("echo 1.5", "printed '1.5', expected one number"),
        ("echo -0.1", "printed '-0.1'"),
        ("echo nan", "printed 'nan'"),
        ("echo 0.5 0.7", "printed '0.5 0.7'"),
        ("kill -9 $$", "failed with exit code -9"),
        ("printf '\\377'", "printed"),
    ],
)
def test_what_it_does_wrong_is_told_in_one_sentence(body, words):
    if words is None:
        assert score(body) == [0.0]  # it says something on stderr, and finds the picture wrong
        return
    with pytest.raises(RFError) as found:
        score(body)
    assert words in str(found.value)
    assert "The scorer 'sh', asked about a picture of 'a red car'," in str(found.value)


def test_a_scorer_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    mark = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(RFError, match=r"did not answer within 0.5 seconds.*--score-timeout"):
        score(f"sleep 60 & echo $! > {mark}; wait", timeout=0.5)
    assert time.monotonic() - started < 20
    pid = int(Path(mark).read_text())
    for _ in range(100):
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        if not state.strip() or state.startswith("Z"):
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the child of the scorer goes on")


def test_a_child_that_leaves_its_group_holds_nobody_up():
    started = time.monotonic()
    with pytest.raises(RFError, match="did not answer within"):
        score("setsid sleep 15 & wait", timeout=0.5)
    assert time.monotonic() - started < 12


def test_an_interrupt_is_passed_on_also_where_the_scorer_has_just_ended(monkeypatch):
    def interrupted(process, timeout):
        process.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score("echo 1")


@pytest.mark.parametrize("command", ["", "judge", "judge {prompt}", "{png}", "judge '{png}"])
def test_a_command_that_cannot_be_run_on_a_picture_is_refused(command):
    with pytest.raises(RFError, match="score "):
        CommandScorer(command, 1)


def test_a_command_that_is_not_there_is_refused():
    with pytest.raises(RFError, match="The scorer 'no-such-judge' cannot be run"):
        CommandScorer("no-such-judge {png}", 1).score([PICTURE], ["x"])
