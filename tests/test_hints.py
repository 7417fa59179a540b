"""Values against type hints, by a table of both verdicts; hints that cannot be evaluated accept everything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NewType, Optional, Protocol, TypeVar

import pytest

from rgpo.cli.hints import accepts, describe, missing_members, parameters_of, shown
from rgpo.core.gate import Gate
from rgpo.core.gates import Log

if TYPE_CHECKING:
    from nowhere import Unknown

NODE = {"_target_": "builtins.dict"}
Width = NewType("Width", int)
T = TypeVar("T")

TABLE = [  # hint, accepted, refused, in words
    (int, [0, -3, 10**30], [True, 1.0, "1", None, [1], NODE], "a whole number"),
    (float, [0, 1.5, float("inf")], [True, float("nan"), "1", None, NODE], "a number"),
    (bool, [True, False], [0, 1, "true", None], "true or false"),
    (str, ["", "a"], [1, None, ["a"], {"a": 1}, NODE], "text"),
    (Path, ["a"], [1, None], "a path"),
    (None, [None], [0, "", False], "null"),
    (int | None, [1, None], [1.5, "x"], "a whole number or null"),
    (Optional[str], ["x", None], [1], "null or text"),  # noqa: UP045
    (Literal["a", 1], ["a", 1], ["b", True, None], "a or 1"),
    (list[int], [[], [1, 2]], [[1.5], ["a"], 1, "ab", {"a": 1}, None], "a list of whole numbers"),
    (Sequence[str], [["a"]], ["a", [1]], "a list of texts"),
    (tuple[int, ...], [[], [1, 2, 3]], [[1, "a"], 1], "a list of whole numbers"),
    (tuple[int, str], [[1, "a"]], [[1], [1, "a", 2], ["a", 1]], "a list of 2: a whole number, text"),
    (list, [[1, "a"]], [1], "a list"),
    (list[list[int]], [[[1]]], [[1]], "a list of lists of whole numbers"),
    (Mapping[str, float], [{}, {"a": 1}, NODE], [3, [], {"a": "x"}, {1: 1.0}], "a mapping {key: value, ...}"),
    (dict, [{1: 2}], [1], "a mapping {key: value, ...}"),
    (Gate, [NODE], [1, "sigmoid", None, {}, {"a": 1}, []], "a node with a _target_ of type Gate"),
    (Gate | None, [NODE, None], [5, "x"], "a node with a _target_ of type Gate or null"),
    (list[Gate], [[], [NODE]], [[1], NODE], "a list of nodes with a _target_ of type Gate"),
    (Callable[[int], int], [NODE, "my.py:f"], [1, None], "a function, written file.py:function or module:function"),
    (Annotated[int, "nats"], [1], ["a"], "a whole number"),
    (Width, [1], ["a"], "a whole number"),
    (InitVar[int], [1], ["a"], "a whole number"),
    (Any, [1, None, [], NODE], [], "a node with a _target_ of type object"),
    (object, [1, None, [], NODE], [], "a node with a _target_ of type object"),
    (T, [1, None, NODE], [], "a node with a _target_ of type object"),
]


@pytest.mark.parametrize(("hint", "right", "wrong", "words"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_accepts_and_describes(hint: object, right: list, wrong: list, words: str) -> None:
    assert [value for value in right if not accepts(hint, value)] == []
    assert [value for value in wrong if accepts(hint, value)] == []
    assert describe(hint) == words


@dataclass(kw_only=True)
class Base:
    width: int
    unknown: Unknown | None = None
    kind: ClassVar[str] = "x"
    state: float = field(default=0.0, init=False)


@dataclass(kw_only=True)
class Derived(Base):
    name: str = "a"


def plain_function(width: int, *rest: int, name="a", **more: float) -> None: ...


class Positional:
    def __init__(self, width: int, name: Missing) -> None: ...  # noqa: F821


def test_parameters_come_with_evaluated_hints() -> None:
    found = parameters_of(Derived)
    assert found.hints == {"width": int, "unknown": object, "name": str} and found.required == ("width",) and not found.open
    found = parameters_of(plain_function)
    assert found.hints == {"width": int, "name": object} and found.required == ("width",) and found.open
    assert parameters_of(Positional).hints == {"width": int, "name": object}
    assert parameters_of(dict).open


def test_a_field_inherited_from_another_module_is_evaluated_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Base.__init__.__globals__, "Width", Width)
    other = type(sys)("other")
    monkeypatch.setitem(sys.modules, "other", other)
    exec("from __future__ import annotations\nfrom dataclasses import dataclass\nWidth = str\n", vars(other))
    vars(other)["Base"] = Base
    exec("@dataclass(kw_only=True)\nclass Own(Base):\n    label: 'Width' = 'a'\n", vars(other))
    assert parameters_of(vars(other)["Own"]).hints == {"width": int, "unknown": object, "label": str}


class Speaker(Protocol):
    volume: float

    def speak(self) -> str: ...


class Loud:
    volume = 1.0

    @property
    def speak(self) -> str:
        raise AttributeError("only later")


def test_members_that_an_object_lacks() -> None:
    assert missing_members(Speaker, Loud()) == []
    assert missing_members(Speaker, 3) == ["speak", "volume"]
    assert missing_members(Speaker | None, None) == [] and missing_members(Any, 3) == []
    assert missing_members(Gate, Log()) == [] and missing_members(Gate, 3) == ["Gate"]
    assert missing_members(list[int], 3) == [] == missing_members(Callable[[int], int], 3)


def test_values_are_shown_as_they_are_typed() -> None:
    assert shown({"a": [None, True, 1.5, "x"], "b": {}}) == "{a:[null,true,1.5,x],b:{}}"
