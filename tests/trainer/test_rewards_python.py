"""Reward functions of the user, in a process of their own."""

import multiprocessing
import os
import re
import time
from pathlib import Path

import pytest

from trl_trainer.errors import TrainerError
from trl_trainer.rewards import python
from trl_trainer.rewards.python import PythonScorer
from trl_trainer.rewards.score import Batch


@pytest.fixture
def scorer(tmp_path):
    """Make a scorer from the source of a module with a function f; they are closed at the end."""
    made = []

    def make(source, seconds=20, file="reward"):
        (tmp_path / file).write_text(source)
        made.append(PythonScorer(str(tmp_path / file), "f", seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def batch(*completions, **columns):
    return Batch(["p"] * len(completions), list(completions), columns)


def test_it_gets_prompts_completions_and_columns_and_may_print(scorer):
    score = scorer(
        "def f(prompts, completions, answer, **columns):\n"
        "    print('hello', flush=True)\n"
        "    return [len(p + c) + a for p, c, a in zip(prompts, completions, answer)]\n"
    )
    assert score(batch("ab", "c" * 300_000, answer=[1, 0.5])) == [4.0, 300_001.5]
    assert score(batch("", answer=[0])) == [1.0], "the same process answers again"


def test_conversations_arrive_as_lists_of_messages(scorer):
    score = scorer("def f(prompts, completions, **_): return [len(c[0]['content']) for c in completions]")
    assert score(batch([{"role": "assistant", "content": "four"}])) == [4.0]


def test_arrays_and_coroutines_are_understood(scorer):
    score = scorer("import numpy as np\nasync def f(completions, **_): return np.ones(len(completions)) / 4")
    assert score(batch("a", "b")) == [0.25, 0.25]


def test_the_import_may_take_longer_than_a_call(scorer):
    assert scorer("import time\ntime.sleep(2)\ndef f(completions, **_): return [1]", seconds=1)(batch("a")) == [1.0]


def test_none_has_a_reason(scorer):
    assert scorer("def f(completions, **_): return [None, 1]")(batch("a", "b")) == [None, 1.0]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise ZeroDivisionError('by hand')", r"line 3, in f\n.*\nZeroDivisionError: by hand"),
        ("return 3", "'int' object is not iterable"),
        ("return ['x']", "TypeError: it returned 'x', which is no number"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(7)", "its process died with exit code 7"),
        ("import ctypes; ctypes.string_at(0)", "its process died with exit code -11"),
        ("bytearray(20 * 2**30)", "MemoryError"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_call_is_served(scorer, body, why):
    score = scorer(f"def f(completions, **_):\n    if completions[0] == 'bad':\n        {body}\n    return [1]")
    with pytest.raises(TrainerError, match=why):
        score(batch("bad"))
    assert score(batch("good")) == [1.0]


def test_the_traceback_is_the_users_alone(scorer, tmp_path):
    score = scorer(
        "import json\ndef f(completions, **_):\n    return g(completions)\ndef g(texts):\n    json.loads(texts[0])"
    )
    with pytest.raises(TrainerError) as caught:
        score(batch("no JSON"))
    frames = re.findall(r'File "(.*)", line \d+, in (\w+)', caught.value.log)
    assert frames[:2] == [(str(tmp_path / "reward"), "f"), (str(tmp_path / "reward"), "g")]
    assert not any("trl_trainer" in file for file, _ in frames)
    assert caught.value.log.endswith("JSONDecodeError: Expecting value: line 1 column 1 (char 0)")


def test_a_call_that_hangs_is_ended_with_all_it_started_and_replaced(scorer, tmp_path):
    score = scorer(
        "import os, subprocess\n"
        "def f(completions, **_):\n"
        "    if completions[0] == 'hang':\n"
        f"        pid = subprocess.Popen(['sleep', '600']).pid; open('{tmp_path}/pid', 'w').write(str(pid))\n"
        "        while True: pass\n"
        "    return [1]\n",
        seconds=2,
    )
    start = time.monotonic()
    with pytest.raises(TrainerError, match=r"^took longer than 2 s$"):
        score(batch("hang"))
    assert time.monotonic() - start < 10
    grandchild = int((tmp_path / "pid").read_text())
    assert gone(grandchild)
    assert score(batch("good")) == [1.0]


def test_an_import_that_hangs_is_ended(scorer, monkeypatch):
    monkeypatch.setattr(python, "IMPORT_SECONDS", 1)
    with pytest.raises(TrainerError, match="took longer than 1 s"):
        scorer("import time\ntime.sleep(600)\n")(batch("x" * 1_000_000))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def g(): pass", "has no attribute 'f'"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(scorer, source, why):
    with pytest.raises(TrainerError, match=why):
        scorer(source).wait_until_ready()


def test_the_environment_is_clean_and_the_limits_are_set(scorer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    score = scorer(
        "import os, resource\n"
        "def f(completions, **_):\n"
        "    return [len(os.environ), 'HF_TOKEN' in os.environ, resource.getrlimit(resource.RLIMIT_AS)[1] / 2**30,\n"
        "            int(open('/proc/self/oom_score_adj').read())]\n"
    )
    assert score(batch("a", "b", "c", "d")) == [4.0, 0.0, 8.0, 1000.0]


def test_the_process_dies_with_the_trainer(tmp_path):
    (tmp_path / "f.py").write_text(
        f"import os\nopen('{tmp_path}/pid', 'w').write(str(os.getpid()))\n"
        "def f(**_):\n    while True: pass\n"
    )  # fmt: skip
    trainer = multiprocessing.get_context("fork").Process(
        target=lambda: PythonScorer(str(tmp_path / "f.py"), "f", 60)(batch("c"))
    )
    trainer.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer.kill()
    trainer.join()
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid, seconds=20):
    """Return whether the process ends (or is a zombie of an init that does not reap) before the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    os.kill(pid, 9)
    return False
