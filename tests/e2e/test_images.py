"""The images of trainer and operator: what is in them, and how soon a change of our code runs in a pod."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from devcluster import containers, images, paths
from devcluster.waiting import wait_for

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("CLUSTER")), reason="reads the image store of the dev cluster, which CLUSTER does not have"
)

RunPython = Callable[[str], str]
PACKAGES = {"trainer": ["trl_contract", "trl_trainer"], "operator": ["trl_contract", "trl_operator"]}
ENTRYPOINT_MODULE = {"trainer": "trl_trainer.supervisor", "operator": "trl_operator"}
each_image = pytest.mark.parametrize("name", images.NAMES)

# torch has a file in the syntax of a newer Python, which nothing imports.
NOT_COMPILED = """
import importlib.util, json, pathlib
def compilable(file):
    try:
        return compile(file.read_bytes(), file, "exec")
    except SyntaxError:
        return None
files = [f for root in ("/opt/venv/lib", "/opt/trl") for f in pathlib.Path(root).rglob("*.py")]
missing = [f for f in files if not pathlib.Path(importlib.util.cache_from_source(f)).exists()]
print(json.dumps([len(files), [str(f) for f in missing if compilable(f)]]))
"""
# pip is not in the images; Debian's ensurepip has it.
PIP_CHECK = """
import glob, runpy, sys
sys.path.append(glob.glob("/usr/share/python-wheels/pip-*.whl")[0])
sys.argv = ["pip", "check"]
runpy.run_module("pip", run_name="__main__")
"""

# A GPU's driver brings libcuda.so.1, and Triton compiles its own module against it when the first kernel runs.
TRITON_DRIVER = """
import os, pathlib, re, subprocess, sys, triton
source = pathlib.Path(triton.__file__).parent / "backends/nvidia/driver.c"
names = sorted(set(re.findall(r"\\b(cu[A-Z][A-Za-z0-9]*)\\b *\\(", source.read_text())))
folder = pathlib.Path("/tmp/stub")
folder.mkdir()
(folder / "stub.c").write_text("".join(f"int {name}(void) {{ return 0; }}\\n" for name in names))
library = folder / "libcuda.so.1"
subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, folder / "stub.c"], check=True)
code = "from triton.backends.nvidia.driver import CudaUtils; CudaUtils()"
subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "LD_LIBRARY_PATH": str(folder)})
print(len(names), *pathlib.Path.home().glob(".triton/cache/*/cuda_utils*.so"))
"""
TORCH_COMPILE = """
import pathlib, tempfile, torch
def function(x):
    return torch.nn.functional.gelu(x) * 2 + x.sum()
x = torch.linspace(-2, 2, 1000)
torch.testing.assert_close(torch.compile(function, fullgraph=True)(x), function(x))
print(len(list(pathlib.Path(tempfile.gettempdir()).glob("torchinductor_*/**/*.so"))))
"""
FOUR_BITS = """
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
weights = torch.linspace(-1, 1, 4096).reshape(64, 64)
print(float((dequantize_4bit(*quantize_4bit(weights, quant_type="nf4")) - weights).abs().max()))
"""


@pytest.fixture(scope="module", autouse=True)
def built(cluster: None) -> None:
    """Both images are in the kubelet's store."""
    for name in images.NAMES:
        images.build(name)


@pytest.fixture(scope="module")
def start_pod(kubectl: Any, built: None) -> Iterator[Callable[[str], RunPython]]:
    """Starts a pod of an image, as restricted as all our pods are, and gives what runs Python code in it."""
    namespace, number = f"e2e-{uuid.uuid4().hex[:8]}", itertools.count()
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}})
    within = f"--namespace={namespace}"
    kubectl.wait("jsonpath={.metadata.name}=default", within, "serviceaccount/default")

    def start(name: str) -> RunPython:
        pod = f"{name}-{next(number)}"
        kubectl.apply(restricted_pod(pod, images.reference(name)), namespace=namespace)
        kubectl.wait("condition=Ready", within, f"pod/{pod}", timeout=60)
        return lambda code: str(kubectl("exec", within, pod, "--", "python", "-c", code))

    yield start
    kubectl("delete", "namespace", "--wait=false", namespace)


@pytest.fixture(scope="module")
def run_python(start_pod: Callable[[str], RunPython]) -> dict[str, RunPython]:
    """For each image what runs Python code in a pod of it."""
    return {name: start_pod(name) for name in images.NAMES}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the images are made of."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("operator", "trainer_image", "requirements"):
        shutil.copytree(paths.REPOSITORY / folder, tmp_path / folder, ignore=ignore)
    for file in ("Dockerfile.trainer", "Dockerfile.operator", ".dockerignore", "pyproject.toml"):
        shutil.copy(paths.REPOSITORY / file, tmp_path / file)
    (tmp_path / "hack/devcluster").mkdir(parents=True)
    shutil.copy(paths.REPOSITORY / "hack/devcluster/Dockerfile.base", tmp_path / "hack/devcluster")
    return tmp_path


@pytest.fixture
def image_restored() -> Iterator[None]:
    """Afterwards the trainer image is again what the real checkout builds."""
    yield
    images.build("trainer")


def restricted_pod(name: str, image: str) -> dict[str, Any]:
    """A pod that the restricted Pod Security standard admits and whose user the image alone decides."""
    mounts = [{"name": name, "mountPath": path} for name, path in (("tmp", "/tmp"), ("home", "/home/trainer"))]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 1000},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "Never",
                    "command": ["python", "-c", "import signal; signal.pause()"],
                    "volumeMounts": mounts,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            "volumes": [{"name": mount["name"], "emptyDir": {}} for mount in mounts],
        },
    }


def layers(name: str) -> list[int]:
    """Bytes on disk of each unpacked layer, the base's first."""
    usage = [line.split() for line in containers.ctr("snapshots", "usage", "-b").splitlines()[1:]]
    sizes = {key: int(size) for key, size, _ in usage}
    config = images.config(name)
    assert config is not None
    found, chain = [], ""
    for diff in config["rootfs"]["diff_ids"]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff}'.encode()).hexdigest()}" if chain else diff
        found.append(sizes[chain])
    return found


def test_the_operator_image_has_at_most_250_mb_on_disk() -> None:
    assert sum(layers("operator")) <= 250e6


@each_image
def test_a_user_without_privileges_runs_the_entrypoint(name: str) -> None:
    config = images.config(name)
    assert config is not None
    assert config["config"]["User"] == "1000:1000"
    assert config["config"]["Entrypoint"] == ["python", "-m", ENTRYPOINT_MODULE[name]]


def test_the_trainer_image_switches_nothing_off_for_scripts_in_images_made_from_it() -> None:
    config = images.config("trainer")
    assert config is not None
    assert [line for line in config["config"]["Env"] if "KUBEFLOW" in line] == []


@each_image
def test_labels_say_what_the_image_is(name: str) -> None:
    config = images.config(name)
    assert config is not None
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in config["config"]["Labels"].items()}
    assert labels["title"] == f"trl-{name}"
    assert labels["licenses"] == "Apache-2.0"
    assert f'version = "{labels["version"]}"' in (paths.REPOSITORY / "pyproject.toml").read_text()
    assert labels["description"]


@each_image
def test_a_restricted_pod_imports_our_packages_as_uid_1000(name: str, run_python: dict[str, RunPython]) -> None:
    code = f"import os, {', '.join(PACKAGES[name])}; print(os.getuid(), os.getgid(), trl_contract.__file__)"
    assert run_python[name](code).split() == ["1000", "1000", "/opt/trl/trl_contract/__init__.py"]


@each_image
def test_the_entrypoint_module_and_what_it_imports_are_there(name: str, run_python: dict[str, RunPython]) -> None:
    module = {"trainer": "trl_trainer.supervisor", "operator": "trl_operator.__main__"}[name]
    assert run_python[name](f"import {module} as module; print(module.__name__)").strip() == module


@each_image
def test_all_python_code_is_compiled(name: str, run_python: dict[str, RunPython]) -> None:
    count, missing = json.loads(run_python[name](NOT_COMPILED))
    assert count > 100
    assert missing == []


@each_image
def test_pip_finds_no_conflict_between_the_packages(name: str, run_python: dict[str, RunPython]) -> None:
    assert "No broken requirements found." in run_python[name](PIP_CHECK)


def test_the_operator_image_has_no_training_package(run_python: dict[str, RunPython]) -> None:
    code = "import importlib.util as u; print([m for m in ('torch', 'trl', 'trl_trainer', 'numpy') if u.find_spec(m)])"
    assert run_python["operator"](code).strip() == "[]"


def test_the_kubernetes_client_works_without_its_source(run_python: dict[str, RunPython]) -> None:
    code = "import kopf; from kubernetes.aio import client; print(client.V1Pod().to_dict()['kind'], client.__file__)"
    kind, file = run_python["operator"](code).split()
    assert (kind, Path(file).name) == ("None", "__init__.pyc")


def test_a_module_in_the_working_directory_shadows_nothing_in_the_operator(run_python: dict[str, RunPython]) -> None:
    code = """
import os, subprocess, sys
os.chdir("/tmp")
open("json.py", "w").write("raise SystemExit('shadowed')")
subprocess.run([sys.executable, "-m", "json.tool", "--help"], check=True, stdout=subprocess.DEVNULL)
print("safe")
"""
    assert run_python["operator"](code).strip() == "safe"


def test_the_trainer_can_write_its_caches_under_a_read_only_root(run_python: dict[str, RunPython]) -> None:
    code = """
import os, pathlib, tempfile
from huggingface_hub import constants
for folder in (constants.HF_HOME, os.environ["HOME"], os.getcwd(), tempfile.gettempdir()):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(folder) / "probe").write_text("")
try:
    pathlib.Path("/opt/trl/probe").write_text("")
except OSError as error:
    print(error.strerror)
"""
    assert run_python["trainer"](code).strip() == "Read-only file system"


def test_triton_compiles_its_driver_in_a_restricted_pod(run_python: dict[str, RunPython]) -> None:
    count, module = run_python["trainer"](TRITON_DRIVER).split()
    assert int(count) > 20, "driver.c calls more of CUDA than that"
    assert module.startswith("/home/trainer/.triton/cache/")


def test_torch_compile_works_in_a_restricted_pod(run_python: dict[str, RunPython]) -> None:
    assert int(run_python["trainer"](TORCH_COMPILE)) > 0, "a kernel was compiled"


def test_bitsandbytes_is_there_and_works(run_python: dict[str, RunPython]) -> None:
    assert 0 < float(run_python["trainer"](FOUR_BITS)) < 0.2


def test_a_change_of_our_code_runs_in_a_pod_within_15_seconds(
    checkout: Path, start_pod: Callable[[str], RunPython], image_restored: None
) -> None:
    changed = checkout / "trainer_image/trl_trainer/changed.py"
    changed.write_text("ANSWER = 'the code before'\n")
    # The first build also reads what BuildKit has forgotten since the dependencies were built.
    images.build("trainer", checkout)
    before = images.config("trainer")
    changed.write_text("ANSWER = 'the changed code'\n")
    start = time.monotonic()
    images.build("trainer", checkout)
    said = start_pod("trainer")("import trl_trainer.changed as c; print(c.ANSWER)")
    seconds = time.monotonic() - start
    assert said.strip() == "the changed code"
    assert seconds < 15
    after = images.config("trainer")
    assert before is not None
    assert after is not None
    shared = [
        old for old, new in zip(before["rootfs"]["diff_ids"], after["rootfs"]["diff_ids"], strict=True) if old == new
    ]
    assert len(shared) >= 3, "base, compilers and dependencies are the layers that were there"
    assert sum(layers("trainer")[3:]) < 5e6


def test_a_plain_build_gives_the_same_image_in_one_go(start_pod: Callable[[str], RunPython]) -> None:
    # As `docker build -f Dockerfile.operator .` does it, but for BASE_IMAGE, which would be pulled.
    options = {"build-arg:BASE_IMAGE": images.reference("base")}
    file = paths.REPOSITORY / "Dockerfile.operator"
    with images.buildkitd():
        images.build_step(images.Step("plain", "plain", file, paths.REPOSITORY, options), "20 s")
    try:
        plain, ours = images.config("plain"), images.config("operator")
        assert plain is not None
        assert ours is not None
        assert plain["config"]["Labels"]["org.opencontainers.image.version"] == "dev"
        for config in (plain, ours):
            del config["config"]["Labels"]
        assert plain["config"] == ours["config"]
        assert plain["rootfs"]["diff_ids"][0] == ours["rootfs"]["diff_ids"][0]
        assert len(plain["rootfs"]["diff_ids"]) == len(ours["rootfs"]["diff_ids"])
        assert "python" in start_pod("plain")("import sys, kopf, trl_operator; print(sys.executable)")
    finally:
        containers.ctr("images", "rm", images.reference("plain"))
        images.remove_unnamed()


def test_what_has_not_changed_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def started() -> None:
        pytest.fail("BuildKit was started")

    monkeypatch.setattr(images, "buildkitd", started)
    images.build("trainer")


def test_a_debootstrap_whose_starter_is_killed_does_not_go_on(tmp_path: Path, pids: Callable[[str], list[int]]) -> None:
    code = f"import pathlib; from devcluster import images; images._rootfs(pathlib.Path({str(tmp_path / 'base')!r}))"
    environment = {**os.environ, "PYTHONPATH": str(paths.REPOSITORY / "hack")}
    starter = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    work = str(tmp_path / "base.new")  # every process of debootstrap is told of it
    wait_for("debootstrap makes folders", lambda: Path(work, "rootfs/var").exists(), 60)
    orphans = pids(work)
    assert orphans
    try:
        # Else it might end by itself, as nobody reads what it prints.
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        starter.kill()
        starter.wait()
        wait_for("debootstrap ends", lambda: not pids(work), 10)
    finally:
        for pid in pids(work):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_builds_leave_no_second_copy_of_the_dependencies() -> None:
    usage = [line.split() for line in containers.ctr("snapshots", "usage", "-b").splitlines()[1:]]
    big = [key for key, size, _ in usage if int(size) > 3e9]
    assert len(big) == 1, "the trainer's dependencies, unpacked once"
    names = [line.split() for line in containers.ctr("images", "ls").splitlines()[1:]]
    named = {words[2] for words in names if not words[0].startswith("sha256:")}
    assert [words[0] for words in names if words[2] not in named] == []


def test_only_a_change_of_what_they_are_made_of_makes_new_dependencies(checkout: Path) -> None:
    def inputs() -> list[str]:
        return [step.inputs for step in images.plan("trainer", checkout)]

    def edit(file: str, text: str) -> None:
        (checkout / file).write_text((checkout / file).read_text() + text)

    first = inputs()
    edit("trainer_image/trl_trainer/__init__.py", "\n# edited\n")
    edit("Dockerfile.trainer", "\nENV EDITED=1\n")
    second = inputs()
    edit("requirements/trainer.txt", "\n")
    third = inputs()
    edit("hack/devcluster/Dockerfile.base", "\nENV EDITED=1\n")
    fourth = inputs()
    assert [old == new for old, new in zip(first, second, strict=True)] == [True, True, False]
    assert [old == new for old, new in zip(second, third, strict=True)] == [True, False, False]
    assert [old == new for old, new in zip(third, fourth, strict=True)] == [False, False, False]
