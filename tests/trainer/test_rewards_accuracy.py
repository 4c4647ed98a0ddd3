"""The accuracy reward's numbers and formulas, by math-verify in a process of its own."""

import pytest

from trl_contract.rewards import AccuracyReward
from trl_trainer.errors import TrainerError
from trl_trainer.rewards import builtin, mathematics
from trl_trainer.rewards.mathematics import MathScorer
from trl_trainer.rewards.score import Batch

FORMS = {
    form: AccuracyReward(column="answer", numeric="numeric" in form, latex="latex" in form)
    for form in ("numeric", "latex", "numeric and latex")
}


@pytest.fixture(scope="module")
def score():
    """Score one text in one of the three forms, in one process each."""
    scorers = {form: MathScorer(given) for form, given in FORMS.items()}
    yield lambda form, text, answer: scorers[form](Batch(["p"], [text], {"answer": [answer]}))[0]
    for scorer in scorers.values():
        scorer.close()


@pytest.mark.parametrize(
    ("form", "text", "answer", "value"),
    [
        ("numeric", "So it is 72.", "#### 72", 1.0),
        ("numeric", "3 + 4 = 7 apples, 7.0 in all", 7, 1.0),
        ("numeric", "1,234.50 dollars", "1234.5", 1.0),
        ("numeric", "The answer is 12. I checked it 3 times.", 12, 1.0),
        ("numeric", "minus: -3", "-3", 1.0),
        ("numeric", "it is 1e3", 1000, 1.0),
        ("numeric", "it is 1", "1e3", 0.0),
        ("numeric", "3.5e-2", 0.035, 1.0),
        ("numeric", "a half, 0.5", "1/2", 1.0),
        ("numeric", "50%", "0.5", 1.0),
        ("numeric", "7 of 8", "7", 0.0),
        ("numeric", "no idea", "7", 0.0),
        ("numeric", "0.1", 0.1, 1.0),
        ("numeric", "", 7, 0.0),
        ("numeric", "<think>First I get 7</think><answer>8</answer>", 7, 0.0),
        ("numeric", "<think>First I get 7</think><answer>8</answer>", 8, 1.0),
        ("numeric", "<answer>8</answer> I checked it 3 times", 8, 1.0),
        ("numeric", r"3+4=7, so \boxed{8}", 7, 0.0),
        ("numeric", r"\boxed{8}, as of 2026", 8, 1.0),
        ("numeric", r"<answer>\boxed{\text{8}}</answer>", 8, 1.0),
        ("numeric", r"\boxed{\frac{1}{2}}", 0.5, 1.0),
        ("numeric", r"\boxed{50\%}", 50, 1.0),
        ("numeric", "Half of 7. The answer is (8)", 7, 0.0),
        ("numeric", "Half of 7. The answer is (8)", 8, 1.0),
        ("numeric", "The answer is -(7)", -7, 1.0),
        ("numeric", "-(3+4)", -7, 1.0),
        ("numeric", "2*(3+4)", 14, 1.0),
        ("numeric", "(7)/(2)", 3.5, 1.0),
        ("numeric", "it is 5, not ((7)", 7, 1.0),
        ("latex", r"so \boxed{\frac{1}{2}}", r"\frac12", 1.0),
        ("latex", r"so \boxed{0.5}", r"$\frac{1}{2}$", 1.0),
        ("latex", r"The answer is $2\sqrt{2}$.", r"\sqrt{8}", 1.0),
        ("latex", r"\boxed{\{3, 1\}}", r"\{1, 3\}", 1.0),
        ("latex", r"\boxed{x^2 + 2x + 1}", r"(x+1)^2", 1.0),
        ("latex", r"\boxed{42\text{ km}}", 42, 1.0),
        ("latex", r"first $x = 42$, then $x = 1$", 1, 0.0),
        ("latex", "42", 42, 0.0),
        ("latex", r"\boxed{41}", 42, 0.0),
        ("numeric and latex", "it is 42", 42, 1.0),
        ("numeric and latex", r"\boxed{42}, as of 2026", 42, 1.0),
        ("numeric and latex", "<think>First I get 7</think><answer>8</answer>", 7, 0.0),
        ("numeric and latex", "<think>First I get 7</think><answer>$x$</answer>", "x", 1.0),
        ("numeric and latex", "<think>First I get 7</think><answer>8</answer>", 8, 1.0),
        ("numeric and latex", "The answer is $(0, 1)$", "$(0, 1)$", 1.0),
    ],
)
def test_a_completion_is_right_if_it_says_what_the_answer_says(score, form, text, answer, value):
    assert score(form, text, answer) == value


@pytest.mark.parametrize("form", ["numeric", "numeric and latex"])
@pytest.mark.parametrize(
    "written", ["<answer>7</answer>", r"\boxed{7}", "(7)", "[7]", "{7}", '"7"', "'7'", "`7`", r"\(7\)", r"\[7\]", "$7$"]
)
def test_what_touches_a_number_is_no_part_of_it(score, form, written):
    assert score(form, f"It is not 5 but {written}", 7) == 1
    assert score(form, f"It is not 5 but {written}", 5) == 0
    assert score(form, "it is 7", written) == 1


@pytest.mark.parametrize(
    ("form", "answer", "why"),
    [
        ("numeric", "seven", "has no number: 'seven'"),
        ("latex", "", "has no formula: ''"),
        ("numeric", None, "is None"),
        ("latex", True, "is True"),
    ],
)
def test_a_row_without_a_usable_answer_is_an_error_and_not_a_zero(score, form, answer, why):
    assert score(form, "7", answer).startswith(f"column answer {why}")
    with pytest.raises(ValueError, match=f"column answer {why}"):
        builtin.answer(FORMS[form], answer)


def test_a_number_that_takes_for_ever_is_wrong_and_the_next_one_is_served(monkeypatch):
    monkeypatch.setattr(mathematics, "SECONDS", 1)
    scorer = MathScorer(FORMS["numeric"])
    try:
        assert scorer(Batch(["p"] * 2, ["9^9^9", "7"], {"answer": [7, 7]})) == [0.0, 1.0]
    finally:
        scorer.close()


def test_a_process_that_cannot_start_makes_nothing_wrong(tmp_path, monkeypatch):
    (tmp_path / "formulas.py").write_text("import nothing_like_this")
    monkeypatch.setattr(mathematics, "FORMULAS", tmp_path / "formulas.py")
    with pytest.raises(TrainerError, match="nothing_like_this"):
        MathScorer(FORMS["numeric"])(Batch(["p"], ["7"], {"answer": [7]}))
