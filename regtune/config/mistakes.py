"""Mistakes in a file in words: where each is, what was expected and found, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from regtune.escaping import printable

MAX_SHOWN = 60
"""Letters of a key or value that a message repeats."""

Where = tuple[str | int, ...]
"""A place in the file: ``("parameters", "dropout", "max")``."""
Problem = tuple[Where, str]
"""A mistake: where it is, and what was expected there."""

SYNONYMS = {
    "bn": "batchnorm",
    "layers": "hidden",
    "units": "hidden",
    "lr": "learning_rate",
    "wd": "weight_decay",
}
"""Spellings of other tools. They are not read, only recognized in a "did you mean"."""

UNSUPPORTED = {
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "gradient_clip"), "gradient clipping"),
    **dict.fromkeys(
        ("decay", "lr_decay", "lr_schedule", "learning_rate_schedule"), "a learning-rate schedule"
    ),
    **dict.fromkeys(("reduce_lr_on_plateau", "warmup", "warmup_epochs"), "a learning-rate schedule"),
    "label_smoothing": "label smoothing",
}
"""What other tools have and regtune does not, refused by name."""

_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a group of keys",
}
"""What pydantic says in words of Python."""


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    """Text of at most `most` letters, for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def describe(value: Any) -> str:
    """A value for a message: ``"abc"``, ``3``, ``true``, ``a list``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f'"{shortened(printable(value))}"'
        case Mapping():
            return "a group of keys"
        case Sequence():
            return "a list"
    return f"{value!r:.60}"


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    word = word.rpartition(".")[2].lower()
    if SYNONYMS.get(word) in known:
        return SYNONYMS[word]
    folded = {name.lower(): name for name in known}
    return next((folded[name] for name in get_close_matches(word, folded, n=1)), None)


def suggestion(word: str, known: Sequence[str]) -> str:
    """``; did you mean "dropout"?``, or nothing when no known word is near."""
    near = nearest(word, known)
    return f'; did you mean "{near}"?' if near else ""


def refused(*problems: Problem) -> PydanticCustomError:
    """The error that a validator raises for mistakes inside of what it validates."""
    text = "; ".join(f"{'.'.join(map(str, where))}: {what}" for where, what in problems)
    return PydanticCustomError("refused", "{text}", {"text": text, "problems": problems})


class Keys:
    """The keys that may stand in each group of a model. homes: the group of each key that belongs in one."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model
        groups = reversed(model.model_fields)
        self.homes = {name: group for group in groups for name in self.at((group,))}

    def at(self, where: Where) -> Sequence[str]:
        """The keys of the group at `where`; none where no group is."""
        model = self.model
        for part in where:
            annotation = model.model_fields[str(part)].annotation
            kinds = (kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
            models = [kind for kind in kinds if issubclass(kind, BaseModel)]
            if not models:
                return ()
            model = models[0]
        return tuple(model.model_fields)

    def unknown(self, where: Where) -> str:
        """What to say about the key at `where`, which means nothing there."""
        *group, name = map(str, where)
        known = self.at(where[:-1])
        if name in UNSUPPORTED:
            return f"{UNSUPPORTED[name]} is not supported; remove it"
        if name in known:
            return "means nothing in this form of a parameter"
        homes = {} if group[1:] else self.homes
        hint = "" if name in homes else suggestion(name, known)
        if not hint and (near := nearest(name, tuple(homes))):
            hint = f'; did you mean "{near}" under {homes[near]}?'
        what = "parameter" if group == ["parameters"] else "key"
        return f"unknown {what}{hint or '; expected one of ' + ', '.join(known)}"


def explain(
    error: ValidationError, keys: Keys, under: Where = (), tags: frozenset[str] = frozenset()
) -> list[Problem]:
    """What pydantic refused, one problem for each mistake.

    Args:
        error: what validating raised.
        keys: those of the model that was validated.
        under: where in the file its values stand.
        tags: names of forms, which pydantic puts into the place of a mistake and a file does not have.
    """
    every = error.errors(include_url=False)
    groups = {each["loc"][:depth] for each in every for depth in range(len(each["loc"]))}
    problems: list[Problem] = []
    for each in every:
        if each["type"] == "too_short" and each["loc"] in groups:
            continue  # a list whose items were refused is not short
        where = tuple(part for part in each["loc"] if part not in tags)
        if each["type"] == "refused":
            problems += [((*under, *where, *inner), what) for inner, what in each["ctx"]["problems"]]
        else:
            problems.append(((*under, *where), _said(each, where, keys)))
    return problems


def _said(error: Any, where: Where, keys: Keys) -> str:
    kind, value, context, hint = error["type"], error["input"], error.get("ctx", {}), ""
    expected = str(error["msg"]).replace("Input should be", "expected")
    match kind:
        case "extra_forbidden":
            return keys.unknown(where)
        case "missing":
            return "missing"
        case "value_error":
            return str(context["error"])
        case "model_type" | "model_attributes_type":
            expected = f"expected a group of keys ({', '.join(keys.at(where))})"
        case "literal_error" if context["expected"] == "False":
            return f"means nothing for {where[-2]}"
        case "literal_error" if isinstance(value, str):
            hint = suggestion(value, re.findall("'(.*?)'", expected))
        case _ if kind in _EXPECTED:
            expected = f"expected {_EXPECTED[kind].format(**context)}"
    return f"{expected}, found {describe(value)}{hint}"
