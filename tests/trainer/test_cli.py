"""`run` and `explain` take the file that one would apply, and refuse what the API server would refuse."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer_kit import Warm, preference_pairs, wait_for

from trl_trainer import local
from trl_trainer.errors import UserError
from trl_trainer.local import Places
from trl_trainer.local.cli import main
from trl_trainer.local.resource import read
from trl_trainer.local.run import user_variables

JOB: dict[str, Any] = {
    "apiVersion": "trl-operator.io/v1alpha1",
    "kind": "DPOJob",
    "metadata": {"name": "polite"},
    "spec": {
        "model": {"volume": {"claimName": "models", "path": "base"}},
        "dataset": {"train": {"configMap": {"name": "rows", "key": "train.jsonl"}}},
        "training": {"maxSteps": 6, "learningRate": 2e-3, "loggingSteps": 1, "gradientAccumulationSteps": 1},
        "peft": {"method": "none"},
        "numNodes": 2,
        "storage": {"size": "1Gi", "accessModes": ["ReadWriteMany"]},
    },
}
GRPO_SPEC: dict[str, Any] = {
    "model": {"hub": {"repo": "some/model"}},
    "dataset": {"train": {"hub": {"repo": "some/rows"}}},
    "grpo": {"rewards": [{"name": "brief", "length": {"target": 5}}]},
    "storage": {"claimName": "out", "subPath": "grpo"},
}


def write(folder: Path, job: dict[str, Any], rows: int = 40) -> Path:
    """Write the job and the ConfigMap that it names into one file."""
    lines = "".join(json.dumps(row) + "\n" for row in preference_pairs(rows))
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"}, "data": {"train.jsonl": lines}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump_all([config_map, job]))
    return path


def changed(**sections: Any) -> dict[str, Any]:
    return {**JOB, "spec": {**JOB["spec"], **sections}}


def volumes(model: Path, folder: Path) -> Path:
    """Return a folder that stands for the claim `models`."""
    claim = folder / "claim"
    claim.mkdir()
    (claim / "base").symlink_to(model)
    return claim


def command(word: str, path: Path, claim: Path, storage: Path) -> list[str]:
    return [word, str(path), "--volume", f"models={claim}", "--storage", str(storage)]


def has_trained(folder: Path) -> bool:
    return any('"loss"' in path.read_text() for path in folder.glob("out/*/metrics.jsonl"))


def test_a_job_is_stopped_by_sigterm_and_the_same_command_ends_it(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, **warm.environment(), "OMP_NUM_THREADS": "1"}
    training = {**JOB["spec"]["training"], "maxSteps": 150, "perDeviceBatchSize": 1, "learningRate": 1e-2}
    path = write(tmp_path, changed(training=training, evaluation={"maxExamples": 4}))
    argv = [sys.executable, "-m", "trl_trainer"]
    argv += command("run", path, volumes(model_folder, tmp_path), tmp_path / "out")

    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: has_trained(tmp_path) or process.poll() is not None, 240)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 143, out + err
    assert "the same command continues from" in out
    assert not list(tmp_path.glob("out/*/final"))

    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (work,) = (path.parent for path in (tmp_path / "out").glob("*/final"))
    assert f"model      {work / 'final'}" in done.stdout
    assert "preference_accuracy" in done.stdout
    assert "  warning    LossCollapse: for 20 steps the loss has been below 0.01" in done.stdout
    assert (work / "final" / "model.safetensors").exists()
    assert "150/150" in done.stderr
    shown = done.stderr.replace("\r", "\n").splitlines()
    first = {line.split()[0]: line for line in reversed(shown) if line.strip()}
    assert re.fullmatch(r"starting \d\d:\d\d *", first["starting"])
    assert re.fullmatch(r"loading \d\d:\d\d *", first["loading"])
    assert not any("step [" in line for line in shown), "a bar that does not know how many steps there are"
    assert {int(name) for name in os.listdir(work / "attempt")} == {0, 1}
    assert len({json.loads(line)["step"] for line in (work / "metrics.jsonl").open() if '"loss"' in line}) == 150


def test_explain_prints_config_plan_and_findings_and_trains_nothing(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, storage = write(tmp_path, changed(profile="balanced")), tmp_path / "out"
    assert main(command("explain", path, volumes(model_folder, tmp_path), storage)) == 0
    out = capsys.readouterr().out
    profile = "# From profile balanced\ntraining.warmupRatio: 0.1\ntraining.maxGradNorm: 1\ndpo.beta: 0.1\n\n"
    assert out.startswith(profile)
    assert "learning_rate: 0.002\n" in out
    assert "beta: 0.1\n" in out
    plan = [line.split() for line in out.splitlines()]
    assert ["processes", "2", "1"] in plan
    assert ["rows", "per", "optimizer", "step", "8", "4"] in plan
    assert ["gradients", "are", "reduced", "every", "step", "step"] in plan
    assert ["activations", "kept", "kept"] in plan
    doing = [line.split()[:5] for line in out.splitlines() if line.startswith("host memory per node: ")]
    assert [words[4] for words in doing] == ["loading", "saving", "exporting"]
    assert "36 rows to train on, 4 held out" in out
    assert "duplicates" in out
    said = re.search(r"the checks took [\d.]+ s: (.*)", out)
    assert said is not None
    assert [part.split(" ")[0] for part in said[1].split(", ")] == [
        "sources", "tokenizer", "rows", "model", "lengths", "memory", "rewards",
    ]  # fmt: skip
    assert not storage.exists()


def test_explain_looks_at_10_000_rows_of_1_kb_in_15_seconds(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = volumes(model_folder, tmp_path)
    with (claim / "rows.jsonl").open("w") as file:
        for i in range(10_000):
            talk = [
                {"role": "user", "content": f"where is order {i} " * 20},
                {"role": "assistant", "content": "ü " * 300},
            ]
            file.write(json.dumps({"messages": talk}) + "\n")
    rows = {"train": {"volume": {"claimName": "models", "path": "rows.jsonl"}}}
    path = write(tmp_path, {**changed(dataset=rows), "kind": "SFTJob"})
    before = os.times()
    assert main(command("explain", path, claim, tmp_path / "out")) == 0
    # Of the processor, with its children: other tests may run beside this one.
    used = sum(now - then for now, then in zip(os.times()[:4], before[:4], strict=True))
    assert used < 15, capsys.readouterr().out


def test_explain_says_how_many_gpus_a_job_needs(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl_trainer.local.explain.GPUS", (0.0001, 24))
    path = write(tmp_path, changed(resources={"limits": {"nvidia.com/gpu": 4}}, storage={"size": "1Gi"}))
    assert main(command("explain", path, volumes(model_folder, tmp_path), tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "several nodes need storage.accessModes with ReadWriteMany, unless" in out
    assert "the smallest number that fits: 1 of 24 GB, or no number up to 128 of 0 GB (the plan is for 80 GB)" in out
    there, _ = out.split("# On this machine instead")
    assert "activation_checkpointing" not in there, "the GPU's memory decides, and the plan says it"


def test_explain_does_not_take_this_machine_for_the_cluster(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl_trainer.launch.host_memory.available", lambda: 1_000_000)
    assert main(command("explain", write(tmp_path, JOB), volumes(model_folder, tmp_path), tmp_path / "out")) == 0
    assert "- this machine has too little for it: the job needs" in capsys.readouterr().out


def test_explain_says_what_the_data_lack(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = changed(dataset={"train": {"inline": [{"prompt": "a", "chosen": "b"}]}})
    assert main(command("explain", write(tmp_path, job), volumes(model_folder, tmp_path), tmp_path / "out")) == 10
    assert "rejected" in capsys.readouterr().err


def test_explain_tries_the_rewards_on_a_few_rows(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inline = [{"prompt": f"where is order {i}"} for i in range(10)]
    reward = {"name": "mine", "python": {"configMap": {"name": "code", "key": "r.py"}, "function": "score"}}
    spec = {
        "model": JOB["spec"]["model"],
        "dataset": {"train": {"inline": inline}},
        "grpo": {"rewards": [reward]},
        "storage": {"size": "1Gi"},
    }
    path, claim = write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": spec}), volumes(model_folder, tmp_path)

    def explain(code: str) -> tuple[int, str]:
        (tmp_path / "code" / "r.py").write_text(f"def score(prompts, completions, **columns):\n    {code}\n")
        argv = [*command("explain", path, claim, tmp_path / "out"), "--config-map", f"code={tmp_path / 'code'}"]
        result = main(argv)
        return result, "".join(capsys.readouterr())

    (tmp_path / "code").mkdir()
    result, text = explain("return [1.0] * len(completions)")
    assert result == 0
    assert "num_generations: 4\n" in text
    assert "9 rows to train on, 1 held out" in text
    result, text = explain("return [missing]")
    assert result == 14
    assert "mine" in text
    assert "missing" in text


def test_explain_tries_the_reward_model_of_a_job_that_was_run_here(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = {"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}, "acknowledgeUnvalidated": True}}
    spec = {
        "model": JOB["spec"]["model"],
        "dataset": {"train": {"inline": [{"prompt": f"where is order {i}"} for i in range(10)]}},
        "grpo": {"rewards": [reward]},
        "storage": {"size": "1Gi"},
    }
    path, claim = write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": spec}), volumes(model_folder, tmp_path)
    assert main(command("explain", path, claim, tmp_path / "out")) == 10
    assert "RewardJob judge has no model in" in capsys.readouterr().err
    final = tmp_path / "out" / "judge-0000000a" / "final"
    final.mkdir(parents=True)
    (final / "resolved.json").write_text('{"kind": "RewardJob"}')
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    model.save_pretrained(final)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(final)
    assert main(command("explain", path, claim, tmp_path / "out")) == 0
    assert "per process: models beside" in capsys.readouterr().out
    (final / "model.safetensors").unlink()
    assert main(command("explain", path, claim, tmp_path / "out")) == 10
    assert "judge" in capsys.readouterr().err


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": (changed(training={"lerningRate": 1}), "spec.training.lerningRate.*did you mean learningRate"),
    "unknown section": (changed(traning={}), "spec.traning: DPOJob has no such field; did you mean training"),
    "field of another kind": (changed(grpo={}), "spec.grpo: DPOJob has no such field; of GRPOJob only"),
    "field of other kinds": (
        changed(peft={"dropout": 0.1}),
        "spec.peft.dropout: DPOJob has no such field; of SFTJob, GRPOJob only$",
    ),
    "field of no kind": (
        changed(training={"dropout": 0.1}),
        "spec.training.dropout: DPOJob has no such field(?!; did you mean dropout)",
    ),
    "text for a number": (
        changed(training={"maxSteps": "6"}),
        r'spec.training.maxSteps: takes a number: write 6, without quotes; got "6"',
    ),
    "number for text": (changed(model={"hub": {"repo": 7}}), 'spec.model.hub.repo: takes text: write "7"; got 7'),
    "out of range": (changed(dpo={"beta": 0}), "spec.dpo.beta: .*greater than 0; got 0"),
    "two sources": (changed(model={}), "spec.model: model: give exactly one of hub, volume, from_job"),
    "two at once": (changed(training={"epochs": 1, "maxSteps": 1}), "give epochs or maxSteps, not both"),
    "missing section": ({**JOB, "spec": {"model": JOB["spec"]["model"]}}, "spec.dataset: is missing"),
    "bad cluster field": (changed(numProcPerNode=0), "spec.numProcPerNode: .*; got 0"),
    "too many inline rows": (
        changed(dataset={"train": {"inline": [{"text": "a" * 440}] * 500}}),
        "^dataset.train.inline has 227000 bytes, at most 131072: put the rows into a ConfigMap or a volume",
    ),
    "too large a spec": (
        changed(dataset={"mixture": [{"inline": [{"text": "a" * 120_000}]}] * 5}),
        "^spec needs .* bytes in the run's ConfigMap, at most 983040: shorten its texts",
    ),
    "api version": ({**JOB, "apiVersion": "v1"}, "apiVersion is 'v1'; it must be trl-operator.io/v1alpha1"),
    "labels": ({**JOB, "metadata": {"name": "polite", "labels": ["a"]}}, r"metadata.labels: \['a'\] must be an object"),
    "name": ({**JOB, "metadata": {"name": "Polite"}}, "metadata.name: at most 40 characters, .*; got 'Polite'"),
    "unknown top field": ({**JOB, "specs": {}}, "unknown field specs"),
    "other kind": ({**JOB, "kind": "PPOJob"}, "needs a job .* it has ConfigMap, PPOJob"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_the_api_server_would_refuse_is_refused(name: str, tmp_path: Path) -> None:
    job, expected = BAD[name]
    with pytest.raises(UserError, match=expected) as caught:
        read(write(tmp_path, job))
    assert caught.value.reason == "InvalidSpec"


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ("metadata: foo", "ConfigMap: metadata is 'foo'; it must be an object"),
        ("metadata: {name: a}\ndata: [x]", r"ConfigMap a: data is \['x'\]; it must be an object of keys and texts"),
        ("metadata: {name: a}\ndata: {x: 1}", "ConfigMap a: data.x is 1; it must be text: quote it"),
        ("metadata: {name: a}\nbinaryData: {x: 1}", "ConfigMap a: binaryData.x is 1; it must be text: quote it"),
        ('metadata: {name: a}\nbinaryData: {x: "!!"}', "ConfigMap a: binaryData.x is not base64: encode it, or put"),
        ("metadata: {name: a}\nbinaryData: {x: é}", "ConfigMap a: binaryData.x is not base64"),
        ("? [a, b]\n: 1", "is not YAML: a key must be text"),
    ],
)
def test_a_file_that_is_wrong_beside_the_job_is_refused(beside: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, JOB)
    path.write_text(f"{path.read_text()}---\nkind: ConfigMap\n{beside}\n")
    with pytest.raises(UserError, match=expected):
        read(path)


def test_a_config_map_is_read_as_the_api_server_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path, JOB)
    beside = 'metadata: {name: a}\ndata: {x: null, 1: "y"}\nbinaryData: {z: "/w==\\n"}'
    path.write_text(f"{path.read_text()}---\nkind: ConfigMap\n{beside}\n")
    assert read(path).config_maps["a"] == {"x": b"", "1": b"y", "z": b"\xff"}


def test_all_errors_of_a_file_are_shown_at_once(tmp_path: Path) -> None:
    limits = {"limits": {"gpu.intel.com/i915": 1}}
    job = changed(training={"lerningRate": 1, "maxSteps": 0}, dpo={"beta": "x"}, resources=limits, storage={})
    job["metadata"] = {"name": "Polite", "lables": {}}
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, {**job, "apiVersion": "v1"}))
    assert sorted(line.split(": ")[0] for line in caught.value.message.splitlines()) == [
        "DPOJob", "metadata.lables", "metadata.name", "spec.dpo.beta", "spec.resources", "spec.storage",
        "spec.training.lerningRate", "spec.training.maxSteps",
    ]  # fmt: skip


def test_a_user_error_exits_10_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, JOB)
    assert main(["run", str(path), "--storage", str(tmp_path / "out")]) == 10
    assert (
        "spec.model.volume: say where claim models is on this machine: --volume models=DIR" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="10"):
        main(["run", str(path), "--volume", "models"])
    assert main(["run", str(tmp_path / "none.yaml")]) == 10


def test_a_hub_that_does_not_answer_is_one_line_in_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"train": {"hub": {"repo": "some/rows"}}}
    path = write(tmp_path, changed(model={"hub": {"repo": "some/model"}}, dataset=rows))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for word, variable, value in (
            ("explain", "HF_HUB_OFFLINE", "1"),
            ("run", "HF_ENDPOINT", "http://127.0.0.1:9"),
            ("explain", "HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"),
        ):
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")
            monkeypatch.setenv(variable, value)
            start = time.monotonic()
            assert main([word, str(path), "--storage", str(tmp_path / "out")]) == 15
            assert time.monotonic() - start < 5
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: NetworkUnavailable: ")
            assert line.endswith(
                "this is not on this machine: model.hub (some/model), dataset.train.hub (some/rows); try again with a"
                " network, or give volumes"
            )
    assert not (tmp_path / "out").exists()


def test_yaml_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    text = yaml.safe_dump(JOB).replace("0.002", "1e-6").replace("polite", "a-2026-01-31")
    (tmp_path / "job.yaml").write_text(text + "---\n")
    resource = read(tmp_path / "job.yaml")
    assert resource.training.training.learning_rate == 1e-6  # type: ignore[attr-defined]
    assert resource.name == "a-2026-01-31"
    (tmp_path / "job.yaml").write_text(text.replace("kind: DPOJob", "kind: SFTJob\nkind: DPOJob"))
    with pytest.raises(UserError, match="key 'kind' is there twice"):
        read(tmp_path / "job.yaml")


def test_a_changed_file_is_another_job_and_the_same_file_is_the_next_attempt(tmp_path: Path) -> None:
    claim = tmp_path / "models"
    (claim / "base").mkdir(parents=True)
    (claim / "base" / "config.json").write_text("{}")
    (claim / "base" / "model.safetensors").write_text("weights")
    (claim / "rows.jsonl").write_text("{}")
    places = Places(tmp_path / "out", {"models": claim})

    def here(job: dict[str, Any], rows: int = 40) -> Any:
        return local.here(read(write(tmp_path, job, rows)), places, gpus=0)

    first = here(JOB)
    (tmp_path / "out" / first.uid / "attempt").mkdir(parents=True)
    (tmp_path / "out" / first.uid / "attempt" / "0").touch()
    assert (here(JOB).uid, here(JOB).attempt) == (first.uid, 1)
    assert here(changed(priorityClassName="high")).uid == first.uid
    rows = {"train": {"volume": {"claimName": "models", "path": "rows.jsonl"}}}
    others = [here(changed(dpo={"beta": 0.2})), here(JOB, rows=41), here(changed(env=[{"name": "A", "value": "1"}]))]
    others.append(here(changed(dataset=rows)))
    mixed = {"mixture": [{"hub": {"repo": "some/rows"}}, {**rows["train"], "weight": 2}]}
    others.append(here(changed(dataset=mixed)))
    assert others[-1].paths.mixture == {"1": str(claim / "rows.jsonl")}
    times = os.stat(claim / "rows.jsonl")
    (claim / "rows.jsonl").write_text("[]")
    os.utime(claim / "rows.jsonl", ns=(times.st_atime_ns, times.st_mtime_ns))
    others += [here(changed(dataset=rows)), here(changed(dataset=mixed))]
    (claim / "base" / "config.json").write_text("[]")
    others.append(here(JOB))
    (claim / "base" / "model.safetensors").write_text("other weights")
    others.append(here(JOB))
    assert len({first.uid, *(other.uid for other in others)}) == 1 + len(others)
    assert {other.attempt for other in others} == {0}


def test_a_changed_value_of_a_secret_is_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"name": "JUDGE_KEY", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "token"}}}
    reward = {"name": "my-judge", "http": {"url": "https://example.org", "secretRef": {"name": "judge"}}}
    spec = {**GRPO_SPEC, "grpo": {"rewards": [reward]}, "env": [secret]}
    resource = read(write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": spec}))

    def uid(name: str, value: str) -> str:
        monkeypatch.setenv(name, value)
        return local.here(resource, Places(tmp_path / "out"), gpus=0).uid

    for name in ("JUDGE_KEY", "TRL_REWARD_MY_JUDGE_TOKEN"):
        first = uid(name, "1")
        assert (uid(name, "2") == first, uid(name, "1") == first) == (False, True), name


def test_a_changed_reward_is_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = {"name": "mine", "python": {"configMap": {"name": "code", "key": "r.py"}, "function": "score"}}
    path = write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": {**GRPO_SPEC, "grpo": {"rewards": [reward]}}})
    (tmp_path / "code").mkdir()

    def uid(code: str) -> str:
        (tmp_path / "code" / "r.py").write_text(code)
        return local.here(read(path), Places(tmp_path / "out", {}, {"code": tmp_path / "code"}), gpus=0).uid

    first = uid("score = 1")
    assert (uid("score = 2") == first, uid("score = 1") == first) == (False, True)
    monkeypatch.setattr("trl_trainer.local.sources.version", lambda name: "0")
    assert uid("score = 1") != first, "another version of the libraries"


def test_a_gpu_machine_uses_all_its_gpus_and_a_cpu_machine_what_the_file_says(tmp_path: Path) -> None:
    job = changed(model={"hub": {"repo": "some/model"}}, numProcPerNode=2, resources={"limits": {"nvidia.com/gpu": 2}})
    resource = read(write(tmp_path, job))
    places = Places(tmp_path)
    on_cpu, on_gpus = local.here(resource, places, gpus=0), local.here(resource, places, gpus=4)
    assert (on_cpu.num_nodes, on_cpu.num_proc_per_node, on_cpu.has_gpus) == (1, 2, False)
    assert (on_gpus.num_nodes, on_gpus.num_proc_per_node, on_gpus.has_gpus) == (1, 4, True)
    written = local.as_written(on_cpu, resource)
    assert (written.num_nodes, written.num_proc_per_node, written.has_gpus) == (2, 2, True)


def test_places_come_from_claims_config_maps_and_the_file(tmp_path: Path) -> None:
    rewards = [
        {"name": "mine", "python": {"configMap": {"name": "rewards", "key": "mine.py"}, "function": "f"}},
        {"name": "judge", "rewardModel": {"source": {"volume": {"claimName": "models", "path": "judge"}}}},
    ]
    spec = {**GRPO_SPEC, "grpo": {"rewards": rewards}, "dataset": {"train": {"inline": [{"prompt": "ü"}]}}}
    path = write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": spec})
    for folder in ("models/judge", "maps", "out/grpo"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "maps" / "mine.py").touch()
    claims = {"models": tmp_path / "models", "out": tmp_path / "out"}
    job = local.here(read(path), Places(None, claims, {"rewards": tmp_path / "maps"}), gpus=0)
    assert job.paths.storage == str(tmp_path / "out" / "grpo")
    assert job.paths.rewards == {"mine": str(tmp_path / "maps" / "mine.py"), "judge": str(tmp_path / "models/judge")}
    assert job.paths.train is not None
    assert Path(job.paths.train).read_text() == '{"prompt": "ü"}\n'
    with pytest.raises(
        UserError, match=r"rewards\[0\].*ConfigMap rewards is not in the file.*--config-map rewards=DIR"
    ):
        local.here(read(path), Places(None, claims), gpus=0)
    with pytest.raises(UserError) as caught:
        local.here(read(path), Places(tmp_path), gpus=0)
    assert [line.split(": ")[0] for line in caught.value.message.splitlines()] == [
        "spec.grpo.rewards[0].python.configMap",
        "spec.grpo.rewards[1].rewardModel.source.volume",
    ]


def test_a_reward_model_from_a_job_is_the_newest_that_was_made_here(tmp_path: Path) -> None:
    rewards = [{"name": "judge", "rewardModel": {"fromJob": {"name": "judge"}}}]
    path = write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": {**GRPO_SPEC, "grpo": {"rewards": rewards}}})
    places = Places(tmp_path / "out")
    with pytest.raises(UserError, match=r"rewardModel.fromJob: RewardJob judge has no model in .*run its file first"):
        local.here(read(path), places, gpus=0)
    for number, name in enumerate(("judge-0000000b", "judge-0000000a", "judge-other-0000000c")):
        (tmp_path / "out" / name / "final").mkdir(parents=True)
        (tmp_path / "out" / name / "final" / "resolved.json").write_text('{"kind": "RewardJob"}')
        os.utime(tmp_path / "out" / name / "final", (number, number))
    (tmp_path / "out" / "judge-0000000d").mkdir()
    (tmp_path / "out" / "judge-0000000e" / "final").mkdir(parents=True)
    (tmp_path / "out" / "judge-0000000e" / "final" / "resolved.json").write_text('{"kind": "SFTJob"}')
    metrics = tmp_path / "out" / "judge-0000000a" / "metrics.jsonl"
    for lines in ("", '{"eval_accuracy": 0.9}\n{"eval_accuracy": 0.59}\n'):
        metrics.write_text(lines)
        with pytest.raises(UserError, match=r"rewardModel.minAccuracy: .*judge-0000000a/final has accuracy"):
            local.here(read(path), places, gpus=0)
    metrics.write_text('{"eval_accuracy": 0.5}\n{"loss": 1.0}\n{"eval_accuracy": 0.6}\n')
    job = local.here(read(path), places, gpus=0)
    assert job.paths.rewards == {"judge": str(tmp_path / "out" / "judge-0000000a" / "final")}
    scratch, _ = local.imagined(read(path), places, 0, tmp_path / "scratch")
    assert scratch.paths.rewards == job.paths.rewards
    assert scratch.paths.storage == str(tmp_path / "scratch")


def test_variables_of_the_file_reach_the_run_and_those_of_secrets_must_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"name": "JUDGE_TOKEN", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "token"}}}
    resource = read(write(tmp_path, changed(env=[{"name": "MY_LOG", "value": "$HOME"}, secret])))
    with pytest.raises(UserError, match=r"spec.env: from Secrets, not set here: JUDGE_TOKEN; export first"):
        user_variables(resource)
    monkeypatch.setenv("JUDGE_TOKEN", "x")
    assert user_variables(resource) == {"MY_LOG": "$HOME"}


def test_groups_must_fit_the_processes_of_this_machine(tmp_path: Path) -> None:
    training = {"perDeviceBatchSize": 3, "gradientAccumulationSteps": 1}
    spec = {**GRPO_SPEC, "training": training, "resources": {"limits": {"nvidia.com/gpu": 4}}}
    resource = read(write(tmp_path, {**JOB, "kind": "GRPOJob", "spec": spec}))
    with pytest.raises(UserError, match=r"numProcPerNode = 3, x training.gradientAccumulationSteps = 3, must be"):
        local.here(resource, Places(tmp_path), gpus=0)
    assert local.here(resource, Places(tmp_path), gpus=4).num_proc_per_node == 4


def test_qlora_needs_a_gpu_here_too(tmp_path: Path) -> None:
    spec = {"peft": {"method": "qlora"}, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    resource = read(write(tmp_path, changed(**spec)))
    with pytest.raises(UserError, match=r"spec.peft.method: qlora needs a GPU"):
        local.here(resource, Places(tmp_path), gpus=0)
