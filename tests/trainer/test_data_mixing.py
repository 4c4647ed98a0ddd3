"""Mixtures: how often each row is trained on, in what order, what is held out, and what is counted of each source."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trl_contract.jobfile import JobFile
from trl_trainer import data, stages
from trl_trainer.data.mixing import mix, per_source
from trl_trainer.data.write import Written, num_held_out
from trl_trainer.errors import UserError


def none(used: int) -> int:
    return 0


def test_a_weight_is_how_often_each_row_is_there() -> None:
    order, held_out = mix([10, 20, 7], [2, 0.25, 1], 3, none)
    assert len(held_out) == 0
    times = Counter(int(place) for place in order)
    assert [times[i] for i in range(10)] == [2] * 10
    assert [sum(times[i] for i in range(10, 30)), max(times[i] for i in range(10, 30))] == [5, 1]
    assert [times[i] for i in range(30, 37)] == [1] * 7
    assert per_source(order, [10, 20, 7]) == [20, 5, 7]
    times = Counter(int(place) for place in mix([10], [1.5], 3, none)[0])
    assert sorted(times.values()) == [1] * 5 + [2] * 5
    assert len(mix([3], [0.01], 3, none)[0]) == 1, "of each source at least one"


def test_rows_are_mixed_by_the_seed() -> None:
    order = mix([50, 50], [1, 1], 3, none)[0].tolist()
    assert order != sorted(order)
    assert 15 < sum(place < 50 for place in order[:50]) < 35, "not one source after the other"
    assert mix([50, 50], [1, 1], 3, none)[0].tolist() == order
    assert mix([50, 50], [1, 1], 4, none)[0].tolist() != order


def test_what_is_held_out_of_a_repeated_source_is_never_trained_on() -> None:
    asked = []
    order, held_out = mix([10, 40], [3, 0.5], 3, lambda used: asked.append(used) or 6)
    assert asked == [30], "of the different rows that are used"
    assert len(set(held_out.tolist())) == 6
    assert not set(order.tolist()) & set(held_out.tolist())
    assert len(order) == sum(3 if i < 10 else 1 for i in {*order.tolist()})


def rows(name: str, number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{name}{i}", "completion": "yes"} for i in range(number)]


def written(folder: Path, mixture: dict[str, dict[str, Any]], content: dict[str, list[Any]], **dataset: Any) -> Written:
    """Write down a mixture of the files of `content`."""
    for name, lines in content.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [{"volume": {"claimName": "data", "path": f"{name}.jsonl"}, **more} for name, more in mixture.items()]
    paths = {str(i): str(folder / f"{name}.jsonl") for i, name in enumerate(mixture)}
    job = JobFile.model_validate({
        "kind": "SFTJob", "namespace": "a", "name": "b", "uid": "u",
        "paths": {"storage": str(folder), "mixture": paths},
        "spec": {"model": {"volume": {"claimName": "m", "path": "m"}}, "dataset": {"mixture": sources, **dataset}},
    })  # fmt: skip
    again = JobFile.model_validate_json(job.model_dump_json(by_alias=True, exclude_none=True))
    return data.write(again, stages.of(again), None, folder / "data")


def prompts(lines: Any) -> list[str]:
    return [json.loads(line)["prompt"] for line in lines]


def test_each_source_is_limited_weighed_and_counted(tmp_path: Path) -> None:
    bad = [{"prompt": "b", "completion": None}]
    content = {"a": rows("a", 30), "b": [*rows("b", 10), *bad]}
    found = written(tmp_path, {"a": {"maxExamples": 20}, "b": {"weight": 2}}, content, maxBadRows=1)
    report = found.report
    assert [(s.name, s.rows, s.bad) for s in report.sources] == [("a.jsonl", 20, 0), ("b.jsonl", 10, 1)]
    assert report.eval == num_held_out(30, 0.1, 512) == sum(source.eval for source in report.sources)
    assert report.train == sum(source.train for source in report.sources)
    first, second = report.sources
    assert (first.train, second.train) == (20 - first.eval, 2 * (10 - second.eval))
    times = Counter(prompts(found.train))
    assert {name[0]: count for name, count in times.items()} == {"a": 1, "b": 2}
    assert not times.keys() & set(prompts(found.eval))
    assert prompts(found.train)[:10] != sorted(prompts(found.train))[:10]
    assert report.first_bad is not None
    assert report.first_bad.startswith("dataset.mixture[1] b.jsonl, row 11: ")
    assert not any("duplicates" in warning for warning in report.warnings()), "they were asked for"


def test_a_source_without_a_usable_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.mixture\[1\]: dataset.mixture\[1\] b.jsonl is empty"):
        written(tmp_path, {"a": {}, "b": {}}, {"a": rows("a", 3), "b": []})


def test_rows_are_written_anew_when_a_source_has_changed(tmp_path: Path) -> None:
    mixture = {"a": {}, "b": {}}
    before = written(tmp_path, mixture, {"a": rows("a", 3), "b": rows("b", 3)}).report
    after = written(tmp_path, mixture, {"b": rows("b", 9)}).report
    assert (before.train + before.eval, after.train + after.eval) == (6, 12)
    assert after.changed
