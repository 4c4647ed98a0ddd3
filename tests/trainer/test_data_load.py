"""From a job file to the rows that every rank gets: limits, split, counts, caching."""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal

import datasets
import pytest
from pyarrow import Table, parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_contract.jobfile import JobFile
from trl_trainer import data, stages
from trl_trainer.data.write import num_held_out
from trl_trainer.errors import UserError

CHATML = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}"
    "{% endif %}<{{ m.role }}> {{ m.content }} {{ m.tool_calls or '' }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per word; a chat template that allows a system message only at the start."""
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template=CHATML)


@pytest.fixture
def job(tmp_path):
    """Write rows to train.jsonl (and eval.jsonl) and return a job that reads them."""

    def make(rows, kind="DPOJob", evals=None, evaluation=None, **dataset):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"volume": {"claimName": "data", "path": "train.jsonl"}}
        paths = {"storage": str(tmp_path), "train": str(tmp_path / "train.jsonl")}
        if evals is not None:
            (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
            paths["eval"] = str(tmp_path / "eval.jsonl")
            dataset["eval"] = source
        spec = {
            "model": {"volume": {"claimName": "models", "path": "tiny"}},
            "dataset": {"train": source, **dataset},
            "evaluation": evaluation or {},
        }
        if kind == "GRPOJob":
            spec["grpo"] = {"rewards": [{"name": "length", "length": {"target": 3}}]}
        return JobFile.model_validate(
            {"kind": kind, "namespace": "a", "name": "b", "uid": "u-1", "paths": paths, "spec": spec}
        )

    return make


@pytest.fixture
def load(tmp_path, tokenizer):
    """The rows of a job as TRL gets them before it tokenizes."""
    folder = tmp_path / "u-1/data"

    def load(job):
        stage = replace(stages.of(job), tokens=())
        written = data.write(job, stage, tokenizer, folder)
        return data.load(folder / data.build(job, stage, tokenizer, None, written, folder))

    return load


def pairs(number):
    return [{"prompt": f"What is {i} ?", "chosen": f"It is {i} .", "rejected": "No."} for i in range(number)]


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def test_a_share_is_held_out_and_nothing_is_lost(job, load):
    loaded = load(job(pairs(50)))
    assert (loaded.train.num_rows, loaded.eval.num_rows) == (45, 5)
    assert sorted([*loaded.train["prompt"], *loaded.eval["prompt"]]) == sorted(row["prompt"] for row in pairs(50))
    assert loaded.report.form == "prompt, chosen, rejected (plain text)"
    assert loaded.report.warnings() == []


def test_the_split_depends_on_its_seed_alone(job, load, tmp_path):
    first = load(job(pairs(50))).eval["prompt"]
    assert load(job(pairs(50))).eval["prompt"] == first
    assert load(job(pairs(50), seed=7)).eval["prompt"] != first


@pytest.mark.parametrize(
    ("total", "share", "limit", "held_out"),
    [(100, 0.1, 512, 10), (100, 0, 512, 0), (4, 0.1, 512, 1), (1, 0.5, 512, 0), (100_000, 0.1, 512, 512)],
)
def test_at_least_one_row_and_at_most_the_limit_is_held_out(total, share, limit, held_out):
    assert num_held_out(total, share, limit) == held_out


def test_every_rank_reads_what_rank_zero_wrote(job, load, tmp_path):
    written = job(pairs(20))
    zero = load(written)
    (tmp_path / "train.jsonl").unlink()
    (folder,) = (tmp_path / "u-1/data").glob("rows-*")
    one = data.load(folder)
    assert one.train[:] == zero.train[:]
    assert one.eval[:] == zero.eval[:]
    assert one.report == zero.report
    assert one.train._fingerprint == zero.train._fingerprint, "TRL's own caches are shared between ranks by this"


def test_evaluation_rows_of_their_own_are_limited_and_leave_the_training_rows_alone(job, load):
    loaded = load(job(pairs(20), evals=pairs(9), evaluation={"maxExamples": 6}))
    assert (loaded.train.num_rows, loaded.eval.num_rows) == (20, 6)
    assert loaded.report.warnings() == ["6 of 6 held-out rows are also training rows"]


def test_without_evaluation_every_row_is_trained_on(job, load):
    loaded = load(job(pairs(20), evals=pairs(9), evaluation={"enabled": False}))
    assert loaded.train.num_rows == 20
    assert loaded.eval is None
    assert load(job(pairs(20), evalSplit=0)).eval is None


def test_max_examples_takes_the_first_rows(job, load):
    loaded = load(job(pairs(50), maxExamples=10, evalSplit=0))
    assert loaded.train["prompt"][:] == [row["prompt"] for row in pairs(10)]


def test_text_that_looks_like_a_date_or_a_number_stays_text_and_mixed_columns_stay_as_they_are(job, load):
    rows = [
        {"prompt": "a", "day": "2026-01-31", "answer": 1, "size": 1, "words": ["x"]},
        {"prompt": "b", "day": "2026-02-28", "answer": "two", "size": 2.5, "words": [], "late": True},
        {"prompt": "c", "day": "2026-03-31", "answer": {"n": [3]}, "size": None, "big": 2**70},
    ]
    train = load(job(rows, kind="GRPOJob", evalSplit=0)).train
    assert train["day"][:] == ["2026-01-31", "2026-02-28", "2026-03-31"]
    assert train["answer"][:] == [1, "two", {"n": [3]}]
    assert train["size"][:] == [1.0, 2.5, None]
    assert train["words"][:] == [["x"], [], None]
    assert train["late"][:] == [None, True, None]
    assert train["big"][:] == [None, None, str(2**70)]


def test_conversations_survive_with_their_history_and_tool_calls(job, load):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    rows = [{"messages": chat("a", "b", "c", "d")}, {"messages": [*chat("e"), call]}]
    train = load(job(rows, kind="SFTJob", evalSplit=0)).train
    assert train["messages"][:] == [row["messages"] for row in rows]
    plain = load(job(rows[:1], kind="SFTJob", evalSplit=0)).train
    assert plain.features["messages"] == datasets.List(
        {"role": datasets.Value("string"), "content": datasets.Value("string")}
    )


def test_the_first_bad_row_fails_the_job_with_its_number_and_file(job, load):
    rows = pairs(5)
    rows[2]["chosen"] = rows[2]["rejected"]
    with pytest.raises(UserError, match=r"^train.jsonl, row 3: chosen equals rejected$") as caught:
        load(job(rows))
    assert caught.value.reason == "DataFormatError"


def test_as_many_bad_rows_as_allowed_are_dropped_and_counted(job, load):
    rows = pairs(10)
    rows[2] = rows[7] = {"prompt": "x", "chosen": 1, "rejected": "y"}
    loaded = load(job(rows, maxBadRows=2, evalSplit=0))
    assert loaded.train.num_rows == 8
    assert loaded.report.warnings() == [
        "2 bad rows were dropped; the first: train.jsonl, row 3: chosen is a number;"
        " it must be text or a list of messages"
    ]
    with pytest.raises(UserError, match=r"row 3: chosen is a number.* \(2 bad rows so far, dataset.maxBadRows is 1\)"):
        load(job(rows, maxBadRows=1))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (
            {"prompt": chat("q"), "chosen": chat("a", first="x"), "rejected": chat("b", first="x")},
            "prompt, chosen",
        ),
        ({"prompt": "half \ud800", "chosen": "a", "rejected": "b"}, "half of a surrogate pair"),
    ],
)
def test_rows_of_another_form_or_without_characters_are_bad(job, load, bad, why):
    with pytest.raises(UserError, match=f"row 3: has {why}"):
        load(job([*pairs(2), bad]))


def test_prompts_with_more_tokens_than_allowed_are_dropped_and_counted(job, load):
    rows = [{"prompt": "one two three", "x": 1}, {"prompt": "one two three four", "x": 2}]
    loaded = load(job(rows, kind="GRPOJob", maxPromptLength=3, evalSplit=0))
    assert loaded.train["x"][:] == [1]
    assert loaded.report.warnings() == ["1 rows were dropped: prompt longer than dataset.maxPromptLength"]
    with pytest.raises(UserError, match=r"none of the 2 rows of train.jsonl is left: 2 have a prompt over"):
        load(job(rows, kind="GRPOJob", maxPromptLength=2))


def test_the_length_of_a_conversation_counts_what_the_template_adds(job, load):
    rows = [{"prompt": chat("one two"), "x": 1}]  # <user> one two </s> <assistant>
    assert load(job(rows, kind="GRPOJob", maxPromptLength=5, evalSplit=0)).train.num_rows == 1
    with pytest.raises(UserError, match="1 have a prompt over"):
        load(job(rows, kind="GRPOJob", maxPromptLength=4, evalSplit=0))


def test_a_row_that_the_chat_template_refuses_is_a_bad_row(job, load):
    late = {"role": "system", "content": "Be kind."}
    with pytest.raises(UserError, match=r"row 2: the chat template refuses it: system comes first"):
        load(
            job([{"messages": chat("a", "b")}, {"messages": [*chat("c"), late, *chat("d", first="x")]}], kind="SFTJob")
        )


def test_conversations_without_a_chat_template_name_the_remedy(job, tmp_path, tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    with pytest.raises(UserError, match=r"no chat template: set model.chatTemplate") as caught:
        data.write(job([{"messages": chat("a", "b")}], kind="SFTJob"), stages.STAGES["SFTJob"], bare, tmp_path / "data")
    assert caught.value.reason == "InvalidSpec"


def test_duplicates_and_empty_answers_are_kept_and_counted(job, load):
    rows = [*pairs(4), *pairs(2), {"prompt": "x", "chosen": "y", "rejected": " "}]
    loaded = load(job(rows, evalSplit=0))
    assert loaded.train.num_rows == 7
    assert loaded.report.warnings() == [
        "2 of 7 training rows are duplicates",
        "1 of 7 rows have an empty answer",
    ]


def test_an_empty_file_is_refused(job, load):
    with pytest.raises(UserError, match=r"dataset.train: train.jsonl is empty"):
        load(job([]))


@pytest.fixture
def parquet_job(job, tmp_path):
    """A GRPO job whose rows come from a parquet file: types that JSON does not have."""

    def make(rows):
        made = job([{"prompt": "x"}], kind="GRPOJob", evalSplit=0)
        parquet.write_table(Table.from_pylist(rows), tmp_path / "train.parquet")
        paths = made.paths.model_copy(update={"train": str(tmp_path / "train.parquet")})
        return made.model_copy(update={"paths": paths})

    return make


def test_dates_and_decimals_of_parquet_become_text(parquet_job, load):
    rows = [{"prompt": "x", "day": date(2026, 1, 31), "price": Decimal("1.50")}]
    assert load(parquet_job(rows)).train[0] == {"prompt": "x", "day": "2026-01-31", "price": "1.50"}


@pytest.mark.parametrize(
    ("value", "why"),
    [(b"\x89PNG", "extra is bytes"), ([float("nan")], "cannot be written as JSON"), ("x" * 2**23, "longer than 8 MiB")],
)
def test_what_json_cannot_say_is_a_bad_row(parquet_job, load, value, why):
    with pytest.raises(UserError, match=f"train.parquet, row 1: .*{why}"):
        load(parquet_job([{"prompt": "x", "extra": value}]))


def test_a_second_attempt_takes_the_rows_of_the_first_without_reading_the_source(job, load, tmp_path, monkeypatch):
    written = job(pairs(20))
    first = load(written)
    monkeypatch.setattr("trl_trainer.data.sources.open_source", lambda *_: pytest.fail("read the source again"))
    assert load(written).report == first.report


def test_rows_cut_by_a_crash_are_written_again(job, load, tmp_path):
    written = job(pairs(20))
    first = load(written)
    path = tmp_path / "u-1/data/train.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    again = load(written)
    assert path.read_bytes() == whole
    assert again.report == first.report
    assert again.train[:] == first.train[:]


def test_a_source_that_changed_between_attempts_is_read_again_and_said(job, load):
    load(job(pairs(20)))
    second = load(job(pairs(30)))
    assert second.train.num_rows == 27
    assert second.report.warnings() == [
        "the training data differ from those of the attempt before: the runs are not comparable"
    ]
