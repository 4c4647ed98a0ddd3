"""A rank that ends says why, whatever comes at it meanwhile."""

from pathlib import Path

from trainer_kit import Warm, job_file, preference_pairs, write_jsonl

SIGTERM_WHILE_FAILING = """
import os, signal, traceback
shown = traceback.print_exception
def print_exception(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    shown(*args, **kwargs)
traceback.print_exception = print_exception
"""


def test_a_sigterm_while_a_rank_writes_its_record_does_not_take_it(
    warm: Warm, model_folder: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*preference_pairs(8), {"prompt": "no answers"}])
    job = job_file(tmp_path, model_folder, spec={}, numProcPerNode=1)
    ended = warm.run(job, 1, prelude=[SIGTERM_WHILE_FAILING])
    assert ended.codes == [10], ended.logs
    assert ended.records[0].reason == "DataFormatError"
