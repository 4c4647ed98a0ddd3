"""`make demo` does what the README shows, and makes the model visibly better."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURE = re.compile(r"^(?P<title>\S.*?|  \S.*?)\s+(?P<before>[-+]?[\d.]+)%?\s+(?P<after>[-+]?[\d.]+)%?$")
ROW = re.compile(r"^\s+Running\s+(\d+)/60\s+[\d.]+\s+-?[\d.]+\s")


@pytest.fixture(scope="module")
def transcript(cluster: None) -> str:
    """What `make demo` prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "hack")}
    command = [sys.executable, str(ROOT / "hack/demo.py")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def measures(text: str) -> dict[str, tuple[float, float]]:
    """The comparison's numbers before and after, by the title of their line."""
    found = (MEASURE.match(line) for line in text.splitlines())
    return {m["title"].strip(): (float(m["before"]), float(m["after"])) for m in found if m}


def masked(line: str) -> str:
    """A line without its numbers and its spacing."""
    return re.sub(r"[-+]?\d[\d.]*", "N", " ".join(line.split()))


def test_the_demo_makes_the_model_visibly_better(transcript: str) -> None:
    found = {re.sub(r"\d+", "N", title): values for title, values in measures(transcript).items()}
    before, after = found["held-out pairs preferred (N)"]
    assert after >= 90, transcript
    assert after - before >= 30, transcript
    before, after = found["well-formed, and the agent acts"]
    assert after - before >= 100 / 3, transcript
    before, after = found["chosen replies' loss per token"]
    assert after <= 1.1 * before, transcript


def test_the_demo_shows_a_rising_step(transcript: str) -> None:
    steps = [int(match[1]) for line in transcript.splitlines() if (match := ROW.match(line))]
    assert len(set(steps)) >= 2, transcript
    assert steps == sorted(steps)


def test_the_readme_shows_what_the_demo_prints(transcript: str) -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- demo -->\n```\n(.*?)```\n<!-- /demo -->", readme, re.DOTALL)
    assert shown is not None, "README.md: the demo's transcript stands between <!-- demo --> and <!-- /demo -->"
    printed = {masked(line) for line in transcript.splitlines()}
    lines = [
        line for line in shown[1].splitlines() if re.match(r"\[\d/\d\]|.*BEFORE +AFTER$", line) or MEASURE.match(line)
    ]
    assert len(lines) >= 8, "the README's transcript has the six stages and the comparison"
    assert [line for line in lines if masked(line) not in printed] == []
