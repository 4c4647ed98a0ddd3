"""The forms of rows that users have: what each is taken for, what becomes of it, and what of it nobody reads."""

from typing import Any

import pytest

from trl_contract.base import Kind
from trl_trainer.data import rows
from trl_trainer.data.turns import BadRow
from trl_trainer.stages import STAGES

ASKED, SAID, CURT = "Where is it?", "It leaves today.", "No idea."
USER = {"role": "user", "content": ASKED}
HI, NO = {"role": "assistant", "content": SAID}, {"role": "assistant", "content": CURT}
HUMAN, GPT, BAD_GPT = {"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}, {"from": "gpt", "value": CURT}
ALPACA = {"instruction": "Sort them.", "input": "b a", "output": "a b"}
OPENAI = {"input": {"messages": [USER], "tools": [], "parallel_tool_calls": True}, "preferred_output": [HI],
          "non_preferred_output": [NO]}  # fmt: skip
PAIR = {"prompt": [USER], "chosen": [HI], "rejected": [NO]}

FORMS: list[tuple[Kind, dict[str, Any], str, dict[str, Any], list[str]]] = [
    ("SFTJob", {"conversations": [HUMAN, GPT], "id": 1}, "sharegpt", {"messages": [USER, HI]}, ["id"]),
    ("SFTJob", {"conversations": [USER, HI]}, "messages", {"messages": [USER, HI]}, []),
    ("GRPOJob", {"conversations": [HUMAN, GPT], "answer": 4}, "sharegpt", {"prompt": [USER], "answer": 4}, []),
    ("DPOJob", {"conversations": [HUMAN], "chosen": GPT, "rejected": BAD_GPT}, "sharegpt", PAIR, []),
    ("DPOJob", {"conversations": [HUMAN], **PAIR}, "messages", PAIR, ["conversations"]),
    ("DPOJob", {"messages": [USER], "chosen": HI, "rejected": NO}, "messages", PAIR, []),
    ("DPOJob", {"conversations": [HUMAN], "chosen": [GPT], "rejected": [BAD_GPT]}, "sharegpt", PAIR, []),
    ("DPOJob", {"messages": [USER, HI], "chosen": [USER, HI], "rejected": [USER, NO]}, "messages", PAIR, ["messages"]),
    (
        "SFTJob",
        {"messages": [USER, HI], "chosen": SAID, "rejected": CURT},
        "messages",
        {"messages": [USER, HI]},
        ["chosen", "rejected"],
    ),
    (
        "RewardJob",
        {"conversations": [HUMAN], "prompt": ASKED, "chosen": SAID, "rejected": CURT},
        "text",
        {"prompt": ASKED, "chosen": SAID, "rejected": CURT},
        ["conversations"],
    ),
    ("SFTJob", ALPACA, "alpaca", {"prompt": "Sort them.\n\nb a", "completion": "a b"}, []),
    ("SFTJob", ALPACA | {"input": "", "n": 1}, "alpaca", {"prompt": "Sort them.", "completion": "a b"}, ["n"]),
    ("SFTJob", ALPACA | {"text": "Sort them. a b"}, "text", {"text": "Sort them. a b"}, [*ALPACA]),
    ("GRPOJob", ALPACA, "alpaca", {"prompt": "Sort them.\n\nb a", "output": "a b"}, []),
    (
        "RewardJob",
        {"instruction": ASKED, "chosen": SAID, "rejected": CURT},
        "alpaca",
        {"prompt": ASKED, "chosen": SAID, "rejected": CURT},
        [],
    ),
    ("DPOJob", OPENAI, "openai-dpo", PAIR, []),
    (
        "RewardJob",
        OPENAI | {"input": {"messages": [USER], "tools": [{"name": "f"}]}},
        "openai-dpo",
        PAIR | {"tools": [{"name": "f"}]},
        [],
    ),
    ("SFTJob", {"prompt": ASKED, "messages": [HI]}, "messages", {"messages": [USER, HI]}, []),
    ("SFTJob", {"prompt": [USER], "messages": [HI]}, "messages", {"messages": [USER, HI]}, []),
    ("SFTJob", {"prompt": ASKED, "messages": [USER, HI]}, "messages", {"messages": [USER, HI]}, []),
    ("SFTJob", {"prompt": ASKED, "messages": [NO, USER, HI]}, "messages", {"messages": [NO, USER, HI]}, []),
    ("SFTJob", {"prompt": "Else?", "messages": [USER, HI]}, "messages", {"messages": [USER, HI]}, ["prompt"]),
    ("GRPOJob", {"prompt": ASKED, "messages": [USER, HI]}, "messages", {"prompt": ASKED}, ["messages"]),
]


@pytest.mark.parametrize(("kind", "row", "taken_for", "shaped", "unread"), FORMS)
def test_a_row_is_taken_for_what_its_columns_look_like(
    kind: Kind, row: dict[str, Any], taken_for: str, shaped: dict[str, Any], unread: list[str]
) -> None:
    name, read, dropped = rows.read(row, None, "auto")
    found = rows.shape(STAGES[kind].shape, read)
    assert (name, found, [*dropped, *rows.unread(read, found, {})]) == (taken_for, shaped, unread)


def test_a_named_form_wins_over_what_the_columns_look_like() -> None:
    row = ALPACA | {"text": "Sort them. a b"}
    assert rows.read(row, None, "alpaca")[1]["prompt"] == "Sort them.\n\nb a"
    talk = {"messages": [USER, HI], "prompt": ASKED, "completion": SAID}
    _, read, dropped = rows.read(talk, None, "text")
    assert rows.shape(STAGES["SFTJob"].shape, read) == {"prompt": ASKED, "completion": SAID}
    assert dropped == ["messages"]


def test_a_column_that_the_form_overwrites_is_named() -> None:
    _, read, dropped = rows.read({**ALPACA, "prompt": "Sort!", "completion": "a", "n": 1}, {"n": "prompt"}, "alpaca")
    assert (read["prompt"], read["completion"], dropped) == ("Sort them.\n\nb a", "a b", ["n", "completion"])
    _, read, dropped = rows.read({**OPENAI, "asked": "Else?"}, {"prompt": "asked"}, "auto")
    assert (read["prompt"], dropped) == ([USER], ["asked"])


@pytest.mark.parametrize("kind", ["DPOJob", "RewardJob"])
def test_a_pair_of_texts_answers_the_conversation_beside_it(kind: Kind) -> None:
    for talk in ({"messages": [USER]}, {"conversations": [USER]}, {"conversations": [HUMAN]}):
        _, read, dropped = rows.read({**talk, "chosen": SAID, "rejected": CURT}, None, "auto")
        found = rows.shape(STAGES[kind].shape, read)
        assert (found, dropped, rows.unread(read, found, {})) == (PAIR, [], [])


def test_a_conversation_that_is_answered_already_is_no_prompt_of_a_pair_of_texts() -> None:
    _, read, _ = rows.read({"messages": [USER, HI], "chosen": SAID, "rejected": CURT}, None, "auto")
    with pytest.raises(BadRow, match="the prompt ends with an assistant turn"):
        rows.shape(STAGES["DPOJob"].shape, read)


@pytest.mark.parametrize(
    ("format", "row", "why"),
    [
        ("alpaca", {"prompt": ASKED}, "dataset.format is alpaca, and the row has no instruction; dataset.columns can"),
        ("sharegpt", {"messages": [USER, HI]}, "dataset.format is sharegpt, and the row has no conversations"),
        ("openai-dpo", PAIR, "dataset.format is openai-dpo, and the row has no input, preferred_output, non_preferred"),
        ("messages", {"prompt": ASKED, "completion": SAID}, "dataset.format is messages, and none of messages, prompt"),
        ("auto", {**OPENAI, "input": ASKED}, "input must be an object with messages in a row with preferred_output"),
        ("auto", {**ALPACA, "input": ["a"]}, "input must be text in a row of alpaca's form"),
    ],
)
def test_a_row_of_another_form_is_refused(format: Any, row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=why):
        rows.read(row, None, format)


def test_columns_are_renamed_before_and_named_as_in_the_data() -> None:
    columns = {"instruction": "question", "output": "answer"}
    taken_for, read, _ = rows.read({"question": ASKED, "answer": SAID, "n": 1}, columns, "auto")
    shaped = rows.shape(STAGES["SFTJob"].shape, read)
    assert (taken_for, shaped) == ("alpaca", {"prompt": ASKED, "completion": SAID})
    assert rows.unread(read, shaped, columns) == ["n"]


@pytest.mark.parametrize(
    ("kind", "row", "shaped"),
    [
        ("SFTJob", {"prompt": ASKED, "completion": SAID}, {"prompt": [USER], "completion": [HI]}),
        ("SFTJob", {"prompt": [USER], "completion": [HI]}, {"prompt": [USER], "completion": [HI]}),
        ("RewardJob", {"prompt": ASKED, "chosen": SAID, "rejected": CURT, "margin": 1}, {**PAIR, "margin": 1.0}),
        ("DPOJob", {"prompt": ASKED, "chosen": SAID, "rejected": CURT}, PAIR),
        ("GRPOJob", {"prompt": ASKED, "answer": "x"}, {"prompt": [USER], "answer": "x"}),
    ],
)
def test_plain_text_becomes_turns(kind: Kind, row: dict[str, Any], shaped: dict[str, Any]) -> None:
    _, read, _ = rows.read(row, None, "auto")
    assert rows.shape(STAGES[kind].shape, read, as_conversation=True) == shaped
    system = {"role": "system", "content": "Be kind."}
    first = "messages" if "messages" in shaped else "prompt"
    found = rows.shape(STAGES[kind].shape, {**read, "system": "Be kind."}, as_conversation=True)
    assert found[first] == [system, *shaped[first]]


@pytest.mark.parametrize(
    ("kind", "row"), [("SFTJob", {"text": SAID}), ("DPOJob", {"chosen": f"{ASKED} Yes", "rejected": f"{ASKED} No"})]
)
def test_text_without_a_prompt_cannot_become_turns(kind: Kind, row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=r"dataset.asConversation needs a prompt, and the row has"):
        rows.shape(STAGES[kind].shape, rows.read(row, None, "auto")[1], as_conversation=True)
