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
    ("SFTJob", {"prompt": "Else?", "messages": [USER, HI]}, "messages", {"messages": [USER, HI]}, ["prompt"]),
    ("GRPOJob", {"prompt": ASKED, "messages": [USER, HI]}, "messages", {"prompt": ASKED}, ["messages"]),
]


@pytest.mark.parametrize(("kind", "row", "taken_for", "shaped", "unread"), FORMS)
def test_a_row_is_taken_for_what_its_columns_look_like(
    kind: Kind, row: dict[str, Any], taken_for: str, shaped: dict[str, Any], unread: list[str]
) -> None:
    name, read = rows.read(row, None, "auto")
    found = rows.shape(STAGES[kind].shape, read)
    assert (name, found, rows.unread(read, found, {})) == (taken_for, shaped, unread)


def test_a_named_form_wins_over_what_the_columns_look_like() -> None:
    row = ALPACA | {"text": "Sort them. a b"}
    assert rows.read(row, None, "alpaca")[1]["prompt"] == "Sort them.\n\nb a"
    talk = {"messages": [USER, HI], "prompt": ASKED, "completion": SAID}
    assert rows.shape(STAGES["SFTJob"].shape, rows.read(talk, None, "text")[1]) == {"prompt": ASKED, "completion": SAID}


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
    taken_for, read = rows.read({"question": ASKED, "answer": SAID, "n": 1}, columns, "auto")
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
    _, read = rows.read(row, None, "auto")
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
