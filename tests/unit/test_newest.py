"""What is kept of objects that are only told of."""

from dataclasses import dataclass

from trl_operator.store.newest import Newest


@dataclass(frozen=True)
class Note:
    about: str
    namespace: str
    version: int


def obj(uid: str) -> dict[str, dict[str, str]]:
    return {"metadata": {"uid": uid}}


def test_the_newest_state_of_each_object_is_kept_and_found_by_what_it_is_about() -> None:
    known: Newest[Note] = Newest()
    assert known.put("one", Note("a", "team", 3))
    assert not known.put("one", Note("a", "team", 3)), "that is known"
    assert not known.put("one", Note("a", "team", 2)), "something newer is known"
    assert known.put("two", Note("a", "team", 2))
    assert (known.newest("a"), len(known.about("a"))) == (Note("a", "team", 3), 2)
    assert known.put("two", Note("b", "team", 4))
    assert (known.about("a"), known.about("b")) == ([Note("a", "team", 3)], [Note("b", "team", 4)])
    assert (known.get("two"), known.get("three"), known.newest("c")) == (Note("b", "team", 4), None, None)


def test_what_is_gone_is_forgotten_whether_it_is_told_or_missing_in_a_list_and_that_is_said() -> None:
    gone: list[Note] = []
    known: Newest[Note] = Newest(gone.append)
    notes = {"one": Note("a", "team", 3), "two": Note("a", "team", 7), "else": Note("a", "elsewhere", 1)}
    for uid, note in notes.items():
        known.put(uid, note)
    known.sweep(["team"], {"one"}, 6)
    assert gone == [], "one is in it, one is newer, and one is not in that namespace"
    known.sweep([], set(), 6)
    assert gone == [notes["one"], notes["else"]]
    known.drop(obj("three"))
    known.drop(obj("two"))
    assert (gone[2:], known.about("a"), known.get("two")) == ([notes["two"]], [], None)
    assert known.put("two", notes["two"]), "it is as if it had never been"
