"""Every built-in reward against values computed by hand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_contract import rewards as given
from trl_trainer.errors import UserError
from trl_trainer.rewards import builtin


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a b c d", 1.0),
        ("a b c", 0.75),
        ("a b c d e f", 0.5),
        ("a\nb", 0.5),
        ("", 0.0),
        ("a b c d e f g h", 0.0),
        ("a " * 50, 0.0),
    ],
)
def test_length_falls_linearly_on_both_sides_of_the_target(text, value):
    assert builtin.length(given.LengthReward(target=4))(text) == value


@pytest.mark.parametrize(("words", "value"), [(1, 0.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 0.0)])
def test_length_is_one_inside_the_range_and_at_its_ends(words, value):
    assert builtin.length(given.LengthReward(min=2, max=4))("word " * words) == value


@pytest.mark.parametrize(
    ("words", "mode", "text", "value"),
    [
        (["please", "thank you"], "any", "Thank  you!", 1.0),
        (["please", "thank you"], "any", "pleased to thank your", 0.0),
        (["please", "thank you"], "all", "PLEASE, and thank\nyou", 1.0),
        (["please", "thank you"], "all", "please", 0.0),
        (["sorry", "cannot"], "none", "It is done.", 1.0),
        (["sorry", "cannot"], "none", "I'm Sorry.", 0.0),
        (["c++"], "any", "I write c++.", 1.0),
        (["über"], "any", "ÜBER alles", 1.0),
    ],
)
def test_keyword(words, mode, text, value):
    assert builtin.keyword(given.KeywordReward(words=words, mode=mode))(text) == value


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [(r"\d{3}", "call 911", 1.0), (r"^\d+$", "call 911", 0.0), (r"a.b", "a\nb", 0.0), (r"(?s)a.b", "a\nb", 1.0)],
)
def test_regex_is_found_anywhere(pattern, text, value):
    assert builtin.regex(given.RegexReward(pattern=pattern))(text) == value


def test_a_pattern_that_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(builtin, "MATCH_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"took longer than 0.2 s"):
        builtin.regex(given.RegexReward(pattern=r"(a+)+$"))("a" * 40 + "b")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("template", "text", "value"),
    [
        ("<think>...</think>...<answer>...</answer>", " <think>hm</think>\n<answer>4</answer>\n", 1.0),
        ("<think>...</think>...<answer>...</answer>", "<think></think><answer></answer>", 1.0),
        ("<think>...</think>...<answer>...</answer>", "<think>hm</think><answer>4", 0.0),
        ("<think>...</think>...<answer>...</answer>", "Well: <think>hm</think><answer>4</answer>", 0.0),
        ("<think>...</think>...<answer>...</answer>", "<answer>4</answer><think>hm</think>", 0.0),
        ("<b>...</b>", "<b>a</b><b>c</b>", 1.0),
        ("ab...ba", "aba", 0.0),
        ("yes", "yes", 1.0),
        ("yes", "yes!", 0.0),
        ("...", "", 1.0),
        ("a.b...", "a.b", 1.0),
        ("a.b...", "axb", 0.0),
    ],
)
def test_format_is_the_form_of_the_whole_completion(template, text, value):
    assert builtin.format_(given.FormatReward(template=template))(text) == value


def test_format_takes_linear_time():
    score = builtin.format_(given.FormatReward(template="...".join("a" * 50)))
    start = time.monotonic()
    assert score("a" * 200_000 + "b") == 0.0
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "x", "age": 3}', 1.0),
        (' {"name": "x"}\n', 1.0),
        ('{"name": 4}', 0.0),
        ('{"age": 3}', 0.0),
        ('```json\n{"name": "x"}\n```', 0.0),
        ('{"name": "x"', 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
        ('{"name": "x", "age": ' + "9" * 5000 + "}", 0.0),
        ('{"name": "x", "age": NaN}', 0.0),
    ],
)
def test_json_schema(text, value):
    schema = '{"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}'
    assert builtin.json_schema(given.JsonSchemaReward(schema=schema))(text) == value


def test_json_that_is_nested_too_deeply_for_a_recursive_schema_scores_0():
    schema = json.dumps({"items": {"$ref": "#"}})
    score = builtin.json_schema(given.JsonSchemaReward(schema=schema))
    assert score("[[1], []]") == 1.0
    assert score("[" * 400 + "]" * 400) == 0.0


def test_a_schema_never_goes_to_the_network():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        schema = json.dumps({"$ref": f"http://127.0.0.1:{server.server_port}/schema"})
        with pytest.raises(
            UserError, match=r"\$ref 'http://127.0.0.1:\d+/schema' leads nowhere: .* inside of the schema"
        ):
            builtin.json_schema(given.JsonSchemaReward(schema=schema))
        server.shutdown()
        thread.join()
    assert asked == []


@pytest.mark.parametrize(("text", "value"), [("no", 0.0), ("Yes.", 1 / 3), ("yes, yes", 2 / 3), ("yes ok yes ok", 1.0)])
def test_enough_occurrences_make_one_and_fewer_their_share(text, value):
    assert builtin.keyword(given.KeywordReward(words=["yes", "ok"], enough=3))(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("the cat sat", "The cat sat!", 1.0),
        ("the cat", "the dog", 0.5),  # P = R = 1/2
        ("the the the", "the cat", 0.4),  # shared 1 of 3 and of 2: 2/5
        ("a b c", "a b c d e", 0.75),  # P = 1, R = 3/5: 6/8
        ("x", "y", 0.0),
        ("", "y", 0.0),
        ("", "...", 1.0),
        ("it is 42", 42, 0.5),  # P = 1/3, R = 1: 2/4
    ],
)
def test_similarity_is_the_f1_of_shared_words(text, reference, value):
    assert builtin.similarity(given.SimilarityReward(column="ref"))(text, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "answer", "value"), [(" Paris\n", "Paris", 1.0), ("paris", "Paris", 0.0), ("4", 4, 1.0)]
)
def test_accuracy(text, answer, value):
    assert builtin.accuracy(given.AccuracyReward(column="answer"))(text, answer) == value


@pytest.mark.parametrize(("answer", "why"), [(None, "is None"), (True, "is True"), (["7"], "is \\['7'\\]")])
def test_a_row_without_a_usable_answer_is_an_error_and_not_a_zero(answer, why):
    with pytest.raises(ValueError, match=f"column answer {why}"):
        builtin.accuracy(given.AccuracyReward(column="answer"))("7", answer)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (
            lambda: builtin.regex(given.RegexReward(pattern="(")),
            r"regex.pattern '\(' is no regular expression",
        ),
        (lambda: builtin.json_schema(given.JsonSchemaReward(schema="{]")), "jsonSchema.schema is no JSON schema"),
        (lambda: builtin.json_schema(given.JsonSchemaReward(schema='{"type": 3}')), "jsonSchema.schema is no JSON"),
        (
            lambda: builtin.json_schema(
                given.JsonSchemaReward(
                    schema='{"items": {"$ref": "#/definitions/a"}, "definitions": {"a": {"$ref": "#b"}}}'
                )
            ),
            r"jsonSchema.schema: \$ref '#b' leads nowhere",
        ),
    ],
)
def test_a_reward_that_can_never_work_is_refused(build, why):
    with pytest.raises(UserError, match=why) as caught:
        build()
    assert caught.value.reason == "InvalidSpec"
