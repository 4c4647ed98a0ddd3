"""Exit records: reasons by exception, the first cause wins, no secrets, 4 KiB at most."""

import errno
import json
import re
import socket

import httpx2
import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from wandb.errors import AuthenticationError, CommError

from trl_contract.report import (
    EXIT_CODES,
    CheckpointReport,
    EvaluationReport,
    ExitRecord,
    FailureReason,
    Metric,
    Progress,
)
from trl_trainer.errors import Preempted, TrainerError, UserError
from trl_trainer.launch import records


class OutOfMemoryError(RuntimeError):
    """torch.OutOfMemoryError by name: records.py must not import torch."""


def answered(status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://hub/api")
    return HfHubHTTPError(f"{status}", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("DataFormatError", "row 3"), "DataFormatError"),
        (TrainerError("NonFiniteLoss", "nan"), "NonFiniteLoss"),
        (Preempted("stopped"), "Preempted"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "OutOfGPUMemory"),
        (MemoryError(), "OutOfHostMemory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "OutOfHostMemory"),
        (RuntimeError("CUDA error: out of memory"), "OutOfGPUMemory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "OutOfGPUMemory"),
        (RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)"), "OutOfHostMemory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"
         " workers are out of shared memory."), "OutOfHostMemory"),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/nccl-a"), "OutOfHostMemory"),
        (RuntimeError("out of resource: shared memory, Required: 106496, Hardware limit: 101376"), "Unknown"),
        (OSError(errno.ENOSPC, "No space left on device", "/mnt/x"), "StorageFull"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), "StorageFull"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), "StorageFull"),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), "StorageFull"),
        (OSError(errno.EROFS, "Read-only file system", "/mnt/x"), "StorageNotWritable"),
        (RuntimeError("open file failed with error: Read-only file system"), "StorageNotWritable"),
        (PermissionError(errno.EACCES, "Permission denied", "/mnt/x"), "AccessDenied"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.1]:4"), "PeerLost"),
        (RuntimeError("gloo: Read error: Connection reset by peer"), "PeerLost"),
        (RuntimeError("[gloo/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv to complete"),
         "CommunicationTimeout"),
        (RuntimeError("NCCL watchdog: Watchdog caught collective operation timeout"), "CommunicationTimeout"),
        (httpx2.ConnectError("[Errno 111] Connection refused"), "NetworkUnavailable"),
        (httpx2.ReadTimeout("timed out"), "NetworkUnavailable"),
        (LocalEntryNotFoundError("not in the cache, and no connection"), "NetworkUnavailable"),
        (OfflineModeIsEnabled("offline"), "NetworkUnavailable"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), "NetworkUnavailable"),
        (requests.exceptions.ConnectionError("refused"), "NetworkUnavailable"),
        (CommError("context deadline exceeded"), "NetworkUnavailable"),
        (answered(503), "NetworkUnavailable"),
        (answered(400), "Unknown"),
        (AuthenticationError("the key is of nobody"), "Unknown"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Unknown"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "Unknown"),
        (ValueError("request timed out"), "Unknown"),
    ],
)  # fmt: skip
def test_exceptions_have_their_reason(error: BaseException, reason: FailureReason) -> None:
    assert records.classify(error)[0] == reason


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "while training: out of host memory: MemoryError; .*resources.limits.memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nmore"),
         "while training: out of GPU memory: CUDA out of memory. Tried to allocate 20.00 MiB$"),
        (OSError(errno.ENOSPC, "No space left on device", "/dev/shm/nccl-a"), "while training: out of shared memory: .*"
         "; /dev/shm has [0-9.]+ [GM]iB: raise sharedMemory, or lower dataset.workers$"),
        (ValueError("odd"), "ValueError: odd$"),
    ],
)  # fmt: skip
def test_a_record_says_which_memory_was_short_and_what_the_rank_was_at(error: BaseException, says: str) -> None:
    record = records.failure(error, time="2026-11-26T12:00:00Z", attempt=0, rank=0, activity="training")
    assert re.match(says, record.message), record.message
    assert record.activity == "training"


def test_the_cause_of_a_wrapped_exception_counts() -> None:
    error = RuntimeError("saving failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/mnt/x")
    assert records.classify(error)[0] == "StorageFull"
    error.__cause__ = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    assert records.classify(error)[0] == "NetworkUnavailable"


def test_only_the_frames_of_one_who_was_waited_for_in_vain_are_left_out() -> None:
    told = TrainerError("NetworkUnavailable", "the hub does not answer: timed out")
    reset = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    found = [records.failure(error, time="2026-11-26T12:00:00Z", attempt=0, rank=0) for error in (told, reset)]
    assert [record.reason for record in found] == ["NetworkUnavailable"] * 2
    assert [bool(record.log) for record in found] == [False, True]


def ended(reason: FailureReason | None, second: int, rank: int = 0) -> ExitRecord:
    outcome = "Succeeded" if reason is None else "Preempted" if reason == "Preempted" else "Failed"
    return ExitRecord(
        outcome=outcome, reason=reason, rank=rank, time=f"2026-01-01T00:00:{second:02d}Z", message=str(reason)
    )


@pytest.mark.parametrize(
    ("found", "terminated", "oom", "reason"),
    [
        # The cause, though an effect of it was written first (clocks of ranks, slow handlers).
        ({0: ended("PeerLost", 1), 1: ended("NonFiniteLoss", 2)}, None, "", "NonFiniteLoss"),
        # Of two causes the first.
        ({0: ended("DataFormatError", 2), 1: ended("StorageFull", 1)}, None, "", "StorageFull"),
        # torchrun ends the other ranks with SIGTERM: no preemption.
        ({0: ended("RewardError", 1), 1: ended("Preempted", 2)}, None, "", "RewardError"),
        ({0: ended("PeerLost", 1), 1: ended("Preempted", 2)}, None, "", "PeerLost"),
        # All ranks agreed to stop because another pod was told to.
        ({0: ended("Preempted", 1), 1: ended("Preempted", 1)}, None, "", "Preempted"),
        # A rank that was killed leaves no record; what the others see is the effect.
        ({0: ended("PeerLost", 1)}, None, "", "Unknown"),
        ({0: ended("PeerLost", 1)}, None, "4 GiB", "OutOfHostMemory"),
        ({}, None, "4 GiB", "OutOfHostMemory"),
        # This pod got SIGTERM, then its ranks fell over each other.
        ({0: ended("PeerLost", 5), 1: ended("StorageFull", 6)}, "2026-01-01T00:00:04Z", "", "Preempted"),
        ({}, "2026-01-01T00:00:04Z", "", "Preempted"),
        # It had failed before.
        ({0: ended("StorageFull", 3), 1: ended("PeerLost", 4)}, "2026-01-01T00:00:05Z", "", "StorageFull"),
        # It was done before.
        ({0: ended(None, 3), 1: ended(None, 3)}, "2026-01-01T00:00:05Z", "", None),
        # One rank of two is not success.
        ({0: ended(None, 3)}, None, "", "Unknown"),
    ],
)
def test_the_first_cause_wins(
    found: dict[int, ExitRecord], terminated: str | None, oom: str, reason: FailureReason | None
) -> None:
    record = records.conclude(found, expected=range(2), attempt=0, terminated=terminated, oom_killed=oom)
    assert record.reason == reason
    assert record.outcome == ("Succeeded" if reason is None else "Preempted" if reason == "Preempted" else "Failed")


def test_rank_zeros_progress_goes_with_another_ranks_failure() -> None:
    progress = Progress(last_update_time="t", step=7)
    found = {0: ended("PeerLost", 2).model_copy(update={"progress": progress}), 1: ended("StorageFull", 1, 1)}
    record = records.conclude(
        found, expected=range(2), attempt=0, terminated=None, oom_killed="", checkpoint="uid/checkpoint-5"
    )
    assert (record.reason, record.rank, record.checkpoint) == ("StorageFull", 1, "uid/checkpoint-5")
    assert record.progress == progress


def test_a_killed_rank_is_dated_before_its_first_effect() -> None:
    record = records.conclude(
        {1: ended("PeerLost", 7, 1)}, expected=range(2), attempt=0, terminated=None, oom_killed=""
    )
    assert (record.rank, record.time) == (0, "2026-01-01T00:00:07Z")


@pytest.mark.parametrize(
    ("reason", "code"),
    [("InvalidSpec", 10), ("StorageFull", 10), ("OutOfGPUMemory", 11), ("NonFiniteLoss", 12), ("CheckpointCorrupt", 13),
     ("RewardError", 14), ("RewardUnavailable", 14), ("NetworkUnavailable", 15), ("OutOfHostMemory", 137),
     ("CommunicationTimeout", 137), ("PeerLost", 137), ("Preempted", 143), ("Unknown", 1), (None, 0)],
)  # fmt: skip
def test_exit_codes_are_classes(reason: FailureReason | None, code: int) -> None:
    assert records.exit_code(ended(reason, 1)) == code
    assert reason in EXIT_CODES or code in (0, 10)


def test_secrets_are_masked_and_other_text_is_kept() -> None:
    environment = {
        "HF_TOKEN": "hunter2hunter2", "WANDB_API_KEY": "0123456789abcdef", "MY_PASSWORD": "swordfish", "HOME": "/home",
        "KUBEFLOW_TRAINER_SERVER_TOKEN": "/var/run/secrets/trl/token", "REWARD_URL": "https://score.example/k3y",
        "EMPTY": "", "TEAM_LOGIN": "opensesame", "TRL_SECRET_VARIABLES": "REWARD_URL EMPTY TEAM_*",
        "TEAM_OFFLINE": "1", "TEAM_HOME": "/usr/bin",
    }  # fmt: skip
    text = "1 of 10 in /usr/bin: https://score.example/k3y opensesame "
    text += "hunter2hunter2 0123456789abcdef swordfish hf_abcdefghijklmnop Bearer abc.def-123 https://u:pw@host /home"
    masked = records.mask(text, environment)
    for secret in ("hunter2", "0123456789", "swordfish", "hf_abc", "abc.def", "u:pw", "k3y", "sesame"):
        assert secret not in masked
    assert "/home" in masked
    assert "1 of 10 in /usr/bin: " in masked
    assert "https://***@host" in masked


def test_tracebacks_in_records_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "topsecret123")
    record = records.failure(RuntimeError("401 for topsecret123"), time=records.now(), attempt=2, rank=1)
    assert "topsecret123" not in record.model_dump_json()
    assert (record.attempt, record.rank, record.reason) == (2, 1, "Unknown")


def test_the_largest_record_fits_into_a_termination_message() -> None:
    metric = [Metric(name="m" * 64, value="1" * 64) for _ in range(64)]
    checkpoints = [CheckpointReport(step=i, path="é" * 400, time="t" * 40, metrics=metric[:8]) for i in range(5)]
    progress = Progress(
        last_update_time="t", metrics=metric, checkpoints=checkpoints, warnings=["é" * 300] * 8,
        evaluation=EvaluationReport(before=metric[:24], after=metric[:24]),
    )  # fmt: skip
    record = ExitRecord(
        outcome="Failed", reason="Unknown", time="t", message="é" * 1024, log="é" * 2048, progress=progress
    )
    text = records.to_message(record)
    assert len(text.encode()) <= records.MAX_BYTES
    assert json.loads(text)["reason"] == "Unknown"


def test_what_matters_most_is_cut_last() -> None:
    metric = [Metric(name=f"metric-{i}", value="1.23456") for i in range(24)]
    progress = Progress(
        last_update_time="t", step=7, warnings=["w" * 300] * 8, evaluation=EvaluationReport(before=metric, after=metric)
    )
    kept = json.loads(records.to_message(ExitRecord(outcome="Succeeded", time="t", progress=progress)))
    assert kept["progress"]["step"] == 7
    assert len(kept["progress"]["evaluation"]["after"]) == 24
    assert len(kept["progress"].get("warnings", [])) < 8


def test_the_first_record_of_a_rank_stays(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    records.write(folder, 0, ended("NonFiniteLoss", 1))
    records.write(folder, 0, ended("PeerLost", 2))
    assert records.read(folder)[0].reason == "NonFiniteLoss"
