"""What each stage makes of one row, and which rows it refuses and why."""

from typing import Any

import pytest

from trl_contract.base import Kind
from trl_trainer.data import rows
from trl_trainer.data.rows import answers, conversational, is_blank
from trl_trainer.data.turns import BadRow
from trl_trainer.stages import STAGES

USER, HI, NO = (
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "assistant", "content": "No."},
)
THANKS = {"role": "user", "content": "Thanks"}
SYSTEM = {"role": "system", "content": "Be kind."}
PAIR = {"prompt": [USER], "chosen": [HI], "rejected": [NO]}


def shape(
    kind: Kind, row: dict[str, Any], columns: dict[str, str] | None = None, format: Any = "auto", **more: Any
) -> dict[str, Any]:
    _, row, _ = rows.read(row, columns, format)
    return rows.shape(STAGES[kind].shape, row, **more)


@pytest.mark.parametrize(
    ("kind", "row", "shaped"),
    [
        ("SFTJob", {"messages": [USER, HI]}, {"messages": [USER, HI]}),
        ("SFTJob", {"prompt": "2+2=", "completion": " 4"}, {"prompt": "2+2=", "completion": " 4"}),
        ("SFTJob", {"prompt": [USER], "completion": [HI], "source": "x"}, {"prompt": [USER], "completion": [HI]}),
        ("SFTJob", {"text": "Once", "prompt": None}, {"text": "Once"}),
        ("DPOJob", {"prompt": "Q", "chosen": "A", "rejected": "B"}, {"prompt": "Q", "chosen": "A", "rejected": "B"}),
        ("DPOJob", PAIR, PAIR),
        (
            "DPOJob",
            PAIR | {"chat_template_kwargs": {"thinking": False, "effort": None}},
            PAIR | {"chat_template_kwargs": {"thinking": False}},
        ),
        ("GRPOJob", {"prompt": [USER], "chat_template_kwargs": {}}, {"prompt": [USER]}),
        ("RewardJob", PAIR | {"margin": 2}, PAIR | {"margin": 2.0}),
        ("RewardJob", {"chosen": "Yes.", "rejected": "No."}, {"chosen": "Yes.", "rejected": "No."}),
        ("GRPOJob", {"prompt": [USER], "answer": 4}, {"prompt": [USER], "answer": 4}),
        ("GRPOJob", {"prompt": "2+2=", "answer": float("nan")}, {"prompt": "2+2="}),
    ],
)
def test_a_good_row_keeps_what_its_stage_reads(kind, row, shaped):
    assert shape(kind, row) == shaped


@pytest.mark.parametrize("kind", ["DPOJob", "RewardJob"])
def test_the_prompt_of_two_whole_conversations_is_their_common_start(kind):
    history = [SYSTEM, USER, HI, THANKS]
    row = {"chosen": [*history, HI], "rejected": [*history, NO]}
    assert shape(kind, row) == {"prompt": history, "chosen": [HI], "rejected": [NO]}


def test_a_prompt_repeated_in_both_conversations_is_not_trained_on_twice():
    assert shape("DPOJob", {"prompt": [USER], "chosen": [USER, HI], "rejected": [USER, NO]}) == PAIR


def test_a_text_prompt_beside_whole_conversations_is_understood():
    assert shape("DPOJob", {"prompt": "Hello?", "chosen": [USER, HI], "rejected": [USER, NO]}) == PAIR


def test_a_text_prompt_beside_single_answers_becomes_the_users_turn():
    assert shape("DPOJob", {"prompt": "Hello?", "chosen": [HI], "rejected": [NO]}) == PAIR


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Is it red? Yes", "Is it red? No", "Is it red?"),
        ("Is it red? Yes it is", "Is it red? Yes", "Is it red? Yes"),
        ("Tell me about cats", "Tell me about cars", "Tell me about"),
        ("Q: x\nyes", "Q: x\nno", "Q: x\n"),
    ],
)
def test_the_prompt_of_two_plain_texts_ends_with_a_whole_word(chosen, rejected, prompt):
    shaped = shape("DPOJob", {"chosen": chosen, "rejected": rejected})
    assert shaped["prompt"] == prompt
    assert (prompt + shaped["chosen"], prompt + shaped["rejected"]) == (chosen, rejected)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}
FOUND = {"role": "tool", "content": "on its way"}


@pytest.mark.parametrize("asked", [[USER, HI, THANKS], [USER, CALL, FOUND]])
def test_grpo_takes_the_whole_of_messages_that_end_with_what_the_model_answers(asked):
    assert shape("GRPOJob", {"messages": asked}) == {"prompt": asked}
    assert shape("GRPOJob", {"messages": [*asked, NO]}) == {"prompt": asked}


def test_grpo_takes_the_history_up_to_the_last_assistant_turn_of_messages():
    assert shape("GRPOJob", {"messages": [SYSTEM, USER, HI, THANKS, NO], "id": "7"}) == {
        "prompt": [SYSTEM, USER, HI, THANKS],
        "id": "7",
    }


def test_what_a_row_tells_the_chat_template_wins_over_what_the_job_does():
    given = {"template_kwargs": {"thinking": False, "effort": 1}}
    row = PAIR | {"chat_template_kwargs": {"effort": 2, "thinking": None}}
    assert shape("DPOJob", row, **given)["chat_template_kwargs"] == {"thinking": False, "effort": 2}
    assert shape("GRPOJob", {"prompt": [USER]}, **given)["chat_template_kwargs"] == given["template_kwargs"]
    assert "chat_template_kwargs" not in shape("GRPOJob", {"prompt": "2+2="}, **given)


def test_grpo_drops_columns_that_trl_would_take_for_its_own():
    row = {"prompt": [USER], "completion": "x", "chosen": "y", "images": [1], "answer": "z"}
    row |= {"prompts": ["a"], "completions": ["b"]}
    assert shape("GRPOJob", row) == {"prompt": [USER], "answer": "z"}


def test_columns_are_renamed_and_a_mapped_name_wins_over_one_that_is_there():
    row = {"question": "Q", "good": "A", "bad": "B", "prompt": "other", "score": 1}
    shaped = shape("DPOJob", row, {"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert shaped == {"prompt": "Q", "chosen": "A", "rejected": "B"}
    assert rows.read(row, {"prompt": "question"}, "auto")[2] == ["prompt"]
    assert rows.read({"prompt": "A", "text": "B"}, {"prompt": "text", "text": "prompt"}, "auto")[2] == []


def test_the_system_prompt_goes_before_conversations_that_have_none():
    assert shape("DPOJob", PAIR, system_prompt="Be kind.")["prompt"] == [SYSTEM, USER]
    own = {"role": "system", "content": "Be brief."}
    assert shape("SFTJob", {"messages": [own, USER, HI]}, system_prompt="Be kind.") == {"messages": [own, USER, HI]}


def test_a_system_column_becomes_the_system_turn_of_a_conversation_without_one():
    assert shape("DPOJob", {**PAIR, "system": "Be kind."}) == {**PAIR, "prompt": [SYSTEM, USER]}
    assert rows.unread({**PAIR, "system": "Be kind."}, PAIR, {}) == []
    own = {**PAIR, "prompt": [{**SYSTEM, "content": "Be brief."}, USER]}
    assert shape("DPOJob", {**own, "system": "Be kind."}, system_prompt="Be quick.") == own
    assert rows.unread({**PAIR, "system": ["Be kind."]}, PAIR, {}) == ["system"]
    plain = {"prompt": "Q", "completion": "A"}
    assert shape("SFTJob", {**plain, "system": "Be kind."}) == plain
    assert rows.unread({**plain, "system": "Be kind."}, plain, {}) == ["system"]


def test_the_older_calls_of_openai_are_calls_of_tools():
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [USER, called, {"role": "function", "name": "f", "content": "4"}, HI]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert shape("SFTJob", {"messages": messages})["messages"] == [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "4"},
        HI,
    ]
    with pytest.raises(BadRow, match=r"messages\[1\].function_call is text; it must be an object"):
        shape("SFTJob", {"messages": [USER, {**HI, "function_call": "f"}]})


def test_tools_and_tool_calls_are_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    row = {"messages": [USER, call | {"name": None}], "tools": [{"name": "f"}]}
    assert shape("SFTJob", row) == {"messages": [USER, call], "tools": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        ("SFTJob", {"question": "Q"}, "needs messages, or prompt and completion, or text, but has question;"),
        ("SFTJob", {"messages": [USER]}, "no assistant turn"),
        ("SFTJob", {"messages": "Hello"}, "messages is text; it must be a list of messages"),
        ("SFTJob", {"messages": []}, "an empty list"),
        ("SFTJob", {"messages": [USER, "Hi!"]}, r"messages\[1\] is text; a message is an object"),
        ("SFTJob", {"messages": [{"from": "humn", "value": "a"}]}, r"from is 'humn'; it must be one of system, human"),
        ("SFTJob", {"messages": [{"content": "Hi"}]}, r"messages\[0\] has no role"),
        (
            "SFTJob",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"content\[0\] is a part of type image; only parts of type text are read",
        ),
        ("SFTJob", {"messages": [{"role": "user", "content": None}, HI]}, r"messages\[0\].content is null"),
        ("SFTJob", {"prompt": "Q", "completion": [HI]}, "both be text or both be lists"),
        ("SFTJob", {"prompt": [USER], "completion": [THANKS]}, "completion must go on with an assistant turn"),
        ("SFTJob", {"text": 3}, "text is a number"),
        ("DPOJob", {"chosen": "A"}, r"needs chosen and rejected \(and prompt\), but has chosen"),
        ("DPOJob", {"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen equals rejected"),
        ("DPOJob", {"prompt": "Q", "chosen": "A", "rejected": [NO]}, "both be text or both be lists"),
        ("DPOJob", {"prompt": 1, "chosen": "A", "rejected": "B"}, "prompt is a number"),
        ("DPOJob", {"prompt": " ", "chosen": "A", "rejected": "B"}, "the prompt is empty"),
        ("DPOJob", {"chosen": "Yes", "rejected": "No"}, "the prompt is empty"),
        ("DPOJob", {"chosen": [HI], "rejected": [NO]}, "must start with the same messages"),
        ("DPOJob", {"prompt": "Bye?", "chosen": [USER, HI], "rejected": [USER, NO]}, "prompt is text that is not"),
        ("DPOJob", {"prompt": [USER, HI], "chosen": [NO], "rejected": [HI]}, "ends with an assistant turn"),
        ("DPOJob", {"prompt": [USER], "chosen": [THANKS], "rejected": [NO]}, "chosen must go on with an assistant"),
        ("DPOJob", {"chosen": [USER, HI], "rejected": [USER]}, "rejected must go on with an assistant turn"),
        ("RewardJob", {"chosen": "A", "rejected": "B", "margin": "1"}, "margin is text; it must be a number"),
        ("GRPOJob", {"question": "Q"}, "needs prompt, or messages, but has question"),
        ("GRPOJob", {"prompt": [USER, HI]}, "ends with an assistant turn"),
        ("SFTJob", {"prompt": "Q", "completion": "A", "label": 0}, "label says whether the answer is good"),
        ("SFTJob", {"prompt": "Q", "completion": "A", "label": "True"}, "label says whether the answer is good"),
        ("SFTJob", {"messages": [USER, HI], "label": False}, "label says whether the answer is good"),
        ("GRPOJob", {"messages": [HI]}, "the prompt is empty"),
        ("GRPOJob", {"prompt": [USER], "tools": [{"name": "f"}]}, "tools of a prompt never reach the chat template"),
    ],
)
def test_a_bad_row_is_refused_with_the_reason(kind, row, why):
    with pytest.raises(BadRow, match=why):
        shape(kind, row)


def test_a_mapping_to_a_column_that_is_not_there_names_the_field():
    with pytest.raises(BadRow, match=r"dataset.columns.chosen is 'good', but the row has prompt, best"):
        shape("DPOJob", {"prompt": "Q", "best": "A"}, {"chosen": "good"})


def test_a_message_does_not_repeat_a_thousand_columns():
    with pytest.raises(BadRow) as caught:
        shape("DPOJob", {f"column {i}" + "x" * 1000: i for i in range(1000)})
    assert len(str(caught.value)) < 700


def test_a_system_prompt_for_plain_text_is_refused():
    with pytest.raises(BadRow, match=r"dataset.systemPrompt needs conversations"):
        shape("SFTJob", {"text": "Once"}, system_prompt="Be kind.")


def test_blank_answers_are_found_in_text_and_in_conversations():
    assert is_blank(" \n")
    assert is_blank([{"role": "assistant", "content": ""}])
    assert not is_blank([{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}])
    assert answers({"messages": [USER, HI, THANKS]}) == [[HI]]
    assert answers(PAIR) == [[HI], [NO]]
    empty = {"role": "assistant", "content": ""}
    assert answers({"messages": [USER, empty, THANKS, HI]}) == [[empty], [HI]]
    assert answers({"prompt": [USER], "completion": [HI, THANKS, {**empty, "weight": 0}]}) == [[HI]]
    assert conversational(PAIR)
    assert not conversational({"text": "Once"})
