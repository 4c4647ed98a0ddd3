"""The tools are built from their pins, published whole, and built once."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import golang, paths, tools
from devcluster.errors import DevClusterError


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of binaries; Go's own caches stay, so that a build takes a second."""
    monkeypatch.setattr(paths, "BIN", tmp_path)
    tools._path.cache_clear()
    yield tmp_path
    tools._path.cache_clear()


def test_a_tool_is_built_once_and_says_what_is_built_and_how_many_are_left(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools.missing(["pause"]) == ["pause"]
    built = tools.binary("pause")
    assert "tools: building pause (1 of 1, 0 left), 0:00 elapsed" in capsys.readouterr().out
    assert tools.missing(["pause"]) == []
    stamp = built.stat().st_mtime_ns
    assert tools.binary("pause").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out == ""


def test_a_build_that_fails_leaves_no_binary_and_says_why(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.TOOLS, "pause", tools.Tool("pause", "./no-such-package"))
    with pytest.raises(DevClusterError, match=r"building pause .* failed(.|\n)*no-such-package"):
        tools.binary("pause")
    assert tools.missing(["pause"]) == ["pause"]


def test_another_pin_another_go_or_other_flags_make_another_binary(
    empty_cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {tools._path("pause")}

    def now() -> Path:
        tools._path.cache_clear()
        return tools._path("pause")

    changed = tmp_path_factory.mktemp("tools")
    subprocess.run(["cp", "-r", paths.TOOLS / "pause", changed], check=True)
    with monkeypatch.context() as patch:
        patch.setattr(paths, "TOOLS", changed)
        assert now() in seen
        (changed / "pause" / "go.sum").write_text("example.com/x v1.0.0 h1:x\n")
        seen.add(now())
    with monkeypatch.context() as patch:
        patch.setattr(tools, "FLAGS", ("-race",))
        seen.add(now())
    with monkeypatch.context() as patch:
        patch.setattr(golang, "toolchain", lambda: golang.Toolchain("go1.99", Path("go")))
        seen.add(now())
    assert len(seen) == 4


def test_an_old_go_on_the_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go1.21.3\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    golang.toolchain.cache_clear()
    try:
        assert golang.toolchain() == golang.Toolchain(
            "go1.26.6", paths.CACHE / "go" / "toolchain-1.26.6" / "go" / "bin" / "go"
        )
    finally:
        golang.toolchain.cache_clear()


def test_pause_ends_on_sigterm_and_reaps_what_it_inherits() -> None:
    # As PID 1 of a pid namespace; the orphan is handed to it when its parent, the inner shell, ends.
    script = f"""
import os, signal, subprocess, time
pause = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", {str(tools.binary("pause"))!r}])
def children(pid): return open(f"/proc/{{pid}}/task/{{pid}}/children").read().split()
while not children(pause.pid): time.sleep(0.01)
one = children(pause.pid)[0]
subprocess.run(["nsenter", f"--target={{one}}", "--pid", "--mount", "sh", "-c", "sleep 0.2 & exit"], check=True)
deadline = time.monotonic() + 10
while children(one) and time.monotonic() < deadline: time.sleep(0.01)
assert not children(one), "an orphan was not reaped"
os.kill(int(one), signal.SIGTERM)
pause.wait(timeout=10)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
