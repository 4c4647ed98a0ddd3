"""The functions that TRL gets: finite numbers or an error on every rank, and what the report says."""

import math
import multiprocessing

import pytest
import torch.distributed as dist

from trl_contract.jobfile import JobFile
from trl_contract.resolve import resolve
from trl_trainer import rewards
from trl_trainer.errors import TrainerError, UserError
from trl_trainer.launch import records
from trl_trainer.rewards import geometric_mean


@pytest.fixture
def build(tmp_path):
    """Build the given rewards; `python` is the source of reward functions, for rewards of that type."""
    built = []

    def make(*given, python="", **grpo):
        (tmp_path / "rewards.py").write_text(python)
        spec = {
            "model": {"volume": {"claimName": "models", "path": "tiny"}},
            "dataset": {"train": {"configMap": {"name": "data", "key": "train.jsonl"}}},
            "grpo": {"rewards": list(given), **grpo},
        }
        paths = {"storage": "/s", "rewards": {one["name"]: str(tmp_path / "rewards.py") for one in given}}
        wire = {"kind": "GRPOJob", "namespace": "a", "name": "b", "uid": "u", "paths": paths, "spec": spec}
        built.append(rewards.build(resolve(JobFile.model_validate(wire))))
        return built[-1]

    yield make
    for one in built:
        one.close()


def python(name, **more):
    return {"name": name, "python": {"configMap": {"name": "r", "key": "r.py"}, "function": name, **more}}


def call(function, *completions, **columns):
    """Call as TRL 1.16 does: by keyword, with its own arguments beside the columns."""
    extra = {"completion_ids": [[1]] * len(completions), "trainer_state": None, "log_extra": print, "log_metric": print}
    return function(prompts=["p"] * len(completions), completions=list(completions), **extra, **columns)


def test_names_and_order_are_those_of_the_job(build):
    built = build(
        {"name": "short", "length": {"min": 0, "max": 3}, "weight": 0.5}, {"name": "right", "accuracy": {"column": "a"}}
    )
    assert [function.__name__ for function in built.functions] == ["short", "right"]
    assert call(built.functions[1], "4", "5", a=["4", "4"]) == [1.0, 0.0]


def test_conversational_completions_are_scored_by_what_the_assistant_said(build):
    (function,) = build({"name": "words", "keyword": {"words": ["please"]}}).functions
    talk = [{"role": "assistant", "content": "please"}]
    assert call(function, talk, [{"role": "assistant", "content": None}]) == [1.0, 0.0]


def test_the_report_has_mean_and_deviation_since_the_start(build):
    built = build({"name": "right", "accuracy": {"column": "a"}})
    assert built.report()[0].model_dump() == {"name": "right", "mean": "0", "std": "0", "errors": 0}
    call(built.functions[0], "1", "2", a=["1", "1"])
    call(built.functions[0], "1", "1", a=["1", "1"])
    report = built.report()[0]
    assert (report.mean, report.std, report.errors) == ("0.75", f"{math.sqrt(3 / 16):.6g}", 0)


@pytest.mark.parametrize(
    ("scores", "weights", "value"),
    [
        ([4.0, 1.0], [1, 1], 2.0),
        ([4.0, 1.0], [3, 1], 8**0.5),
        ([0.5, 0.5, 0.5], [0.2, 0.3, 0.9], 0.5),
        ([4.0, 0.0], [1, 1], 0.0),
        ([4.0, -1.0], [1, 1], 0.0),
        ([4.0, None, 1.0], [1, 5, 1], 2.0),
        ([4.0, 0.0], [1, 0], 4.0),
        ([None, 1.0], [1, 0], None),
    ],
)
def test_the_geometric_mean(scores, weights, value):
    assert geometric_mean.mean(scores, weights) == (None if value is None else pytest.approx(value))


def test_the_geometric_mean_is_of_what_the_rewards_said_of_the_same_completions(build):
    given = [{"name": "one", "regex": {"pattern": "."}}, {**python("none"), "onError": "zero"}]
    built = build(*given, python=SOURCE, rewardAggregation="geometric_mean")
    for texts, expected in ((("good", "bad"), [0.5**0.5, 1.0]), (("", "good"), [0.0, 0.5**0.5])):
        *_, said = [call(function, *texts) for function in built.reward_funcs]
        assert said == pytest.approx(expected)
    assert [report.name for report in built.report()] == ["one", "none"], "it is no reward of the job's"


def test_soft_overlong_falls_to_minus_one_at_the_limit(build):
    (function,) = build(
        {"name": "long", "softOverlong": {"cache": 4}}, generation={"maxCompletionLength": 10}
    ).functions
    ids = [[1] * number for number in (0, 6, 7, 9, 10)]
    assert function(prompts=["p"] * 5, completions=["c"] * 5, completion_ids=ids) == [0.0, 0.0, -0.25, -0.75, -1.0]
    assert function.try_out([{"prompt": "p"}]) == []


def test_a_preset_is_a_list_of_rewards_before_the_jobs_own(build):
    own = {"name": "like", "weight": 1, "similarity": {"column": "a"}}
    built = build(own, rewardPreset="customer-service", normalizeWeights=True)
    given = [function.given for function in built.functions]
    assert [one.name for one in given] == ["empathy", "action", "courtesy", "no-slang", "length", "like"]
    weights = [0.25, 0.25, 0.125, 0.125, 0.1, 1]
    assert [one.weight for one in given] == pytest.approx([weight / 1.85 for weight in weights])
    kind = "I'm sorry that it is late, and I understand. First, let me look; then I will help. " + "Word " * 40
    curt = "Whatever, it's late, lol."
    for function, (high, low) in zip(built.functions, [(1, 0), (1, 0), (0.5, 0), (1, 0), (1, 0), (0, 0)], strict=True):
        assert call(function, kind, curt, a=["x", "x"]) == [high, low], function.__name__


SOURCE = """
import math
def short(completions, **_): return [1]
def nan(completions, **_): return [math.nan if c == "bad" else 0.5 for c in completions]
def infinite(completions, **_): return [1e39 if c == "bad" else 0.5 for c in completions]
def none(completions, **_): return [None if c == "bad" else 0.5 for c in completions]
def raises(completions, **_): raise KeyError("here")
def hangs(completions, **_):
    while True: pass
"""


@pytest.mark.parametrize(
    ("name", "why", "errors"),
    [
        ("short", r"returned 1 rewards for 2 completions", 2),
        ("nan", r"returned nan, which is no finite number", 1),
        ("infinite", r"returned 1e\+39, which is no finite number", 1),
        ("raises", r"KeyError: 'here'", 2),
        ("hangs", r"took longer than 1 s", 2),
    ],
)
def test_an_error_fails_the_job_with_the_reason_or_is_zero_and_counted(build, name, why, errors):
    strict, lenient = python(name, timeoutSeconds=1), {**python(name, timeoutSeconds=1), "onError": "zero"}
    built = build(strict, python=SOURCE)
    with pytest.raises(TrainerError, match=rf"^grpo.rewards.{name}: {why}") as caught:
        call(built.functions[0], "good", "bad")
    assert caught.value.reason == "RewardError"
    assert "\n" not in caught.value.message
    if name == "raises":
        assert "in raises" in records.failure(caught.value, time="", attempt=0, rank=0).log, "the log has the traceback"
    built = build(lenient, python=SOURCE)
    expected = [0.0, 0.0] if errors == 2 else [0.5, 0.0]
    assert call(built.functions[0], "good", "bad") == expected
    report = built.report()[0]
    assert report.errors == errors
    assert report.mean == ("0" if errors == 2 else "0.5"), "an error is not averaged in as a zero"


def test_a_reward_that_returns_none_abstains_and_is_no_error(build):
    built = build(python("none"), python=SOURCE)
    assert call(built.functions[0], "good", "bad", "good") == [0.5, None, 0.5]
    report = built.report()[0]
    assert (report.mean, report.std, report.errors) == ("0.5", "0", 0)


def test_a_row_without_an_answer_is_an_error_of_that_row(build):
    lenient = {"name": "right", "accuracy": {"column": "a"}, "onError": "zero"}
    built = build(lenient)
    assert call(built.functions[0], "1", "1", a=["1", None]) == [1.0, 0.0]
    assert built.report()[0].errors == 1
    with pytest.raises(TrainerError, match=r"column a is None"):
        call(build({**lenient, "onError": "fail"}).functions[0], "1", "1", a=["1", None])


def test_a_column_that_is_not_there_is_named(build):
    (function,) = build({"name": "right", "accuracy": {"column": "a"}}).functions
    with pytest.raises(TrainerError, match="the data have no column a; they have b"):
        call(function, "1", b=["1"])


@pytest.mark.parametrize(
    ("given", "source", "reason", "why"),
    [
        (
            python("f") | {"onError": "zero"},
            "import nothing_like_this",
            "RewardError",
            "ModuleNotFoundError: No module",
        ),
        (python("f"), "def g(): pass", "RewardError", "has no attribute 'f'"),
        ({"name": "x", "regex": {"pattern": "("}}, "", "InvalidSpec", "is no regular expression"),
        (
            {"name": "x", "http": {"url": "https://example.org", "secretRef": {"name": "s"}}},
            "",
            "AccessDenied",
            "the token of http.secretRef is not in the environment",
        ),
    ],
)
def test_a_reward_that_can_never_work_is_refused_when_it_is_built(build, given, source, reason, why):
    with pytest.raises(UserError, match=why) as caught:
        build(given, python=source)
    assert caught.value.reason == reason


def test_the_http_token_comes_from_the_environment_by_the_rewards_name(build, monkeypatch):
    monkeypatch.setenv("TRL_REWARD_MY_JUDGE_TOKEN", "secret")
    given = {"name": "my-judge", "http": {"url": "https://example.org", "secretRef": {"name": "s"}}}
    assert build(given).functions[0].scorer._headers["Authorization"] == "Bearer secret"


def test_trying_out_calls_every_reward_on_a_few_rows_without_counting(build):
    rows = [{"prompt": [{"role": "user", "content": "?"}], "a": "42"}]
    built = build({"name": "right", "accuracy": {"column": "a", "numeric": True}}, python("ok"), python=(
        "def ok(prompts, completions, a):\n"
        "    assert a == ['42', '42'] and completions[1][0]['content'] == 'Yes, 42.'\n"
        "    return [0, 1]\n"
    ))  # fmt: skip
    assert built.try_out(rows) == []
    assert built.report()[0].mean == "0"
    broken = build({**python("raises"), "onError": "zero"}, python=SOURCE)
    assert "KeyError: 'here'" in broken.try_out(rows)[0]
    with pytest.raises(TrainerError, match="KeyError"):
        build(python("raises"), python=SOURCE).try_out(rows)


def rank_main(rank, store, function, queue):
    """One of two ranks; only rank 1's completion is bad."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        queue.put((rank, call(function, "good", "bad" if rank else "good"), function.report().model_dump()))
    except TrainerError as error:
        queue.put((rank, error.reason, error.message))
    dist.destroy_process_group()


@pytest.mark.parametrize("on_error", ["fail", "zero"])
def test_an_error_on_one_rank_is_known_to_all_of_them(build, tmp_path, on_error):
    (function,) = build({**python("nan"), "onError": on_error}, python=SOURCE).functions
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    # Each rank needs a process of its own, which a fork would share.
    function.scorer.close()
    ranks = [context.Process(target=rank_main, args=(i, tmp_path / "store", function, queue)) for i in range(2)]
    for rank in ranks:
        rank.start()
    try:
        zero, one = sorted(queue.get(timeout=60) for _ in ranks)
    finally:
        for rank in ranks:
            rank.join(30)
            rank.kill()
    if on_error == "fail":
        reason = "RewardError", "grpo.rewards.nan: returned nan, which is no finite number"
        assert (zero, one) == ((0, *reason), (1, *reason))
    else:
        report = {"name": "nan", "mean": "0.5", "std": "0", "errors": 1}
        assert (zero, one) == ((0, [0.5, 0.5], report), (1, [0.5, 0.0], report))
