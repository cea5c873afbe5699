"""Mistakes in a file in words: where each is, what was expected and found, what was probably meant."""

from __future__ import annotations

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

SYNONYMS: Mapping[str, str] = {
    "batch_norm": "batchnorm",
    "batch_normalization": "batchnorm",
    "bn": "batchnorm",
    "dropout_rate": "dropout",
    "epochs": "max_epochs",
    "hidden_layers": "hidden",
    "layers": "hidden",
    "lr": "learning_rate",
    "num_epochs": "max_epochs",
    "opt": "optimizer",
    "units": "hidden",
    "wd": "weight_decay",
}
"""Spellings of other tools. They are not read, only recognized in a "did you mean"."""

_CLIPPING = "gradient clipping is not supported; a smaller learning_rate is the nearest thing"
_SCHEDULE = "learning-rate schedules are not supported; search learning_rate instead"
UNSUPPORTED: Mapping[str, str] = {
    **dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "gradient_clip"), _CLIPPING),
    **dict.fromkeys(("decay", "learning_rate_schedule", "lr_schedule", "lr_decay"), _SCHEDULE),
    **dict.fromkeys(("reduce_lr_on_plateau", "warmup", "warmup_epochs"), _SCHEDULE),
    "label_smoothing": "label smoothing is not supported; remove it",
    "parameters": "nested parameters are not read; name each key directly under parameters",
    "metrics": "several objectives are not supported; expected metric: with name and goal",
    "probabilities": "values cannot be weighted; use values alone",
}
"""What other tools have and regtune does not, refused by name."""

_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} letters",
    "string_too_long": "at most {max_length} letters",
    "string_pattern_mismatch": "text of the form {pattern}",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a group of keys",
}


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
    """The keys that may stand in each group of a model.

    homes: the group in which a key belongs that is known elsewhere.
    """

    def __init__(self, model: type[BaseModel], homes: Mapping[str, str]) -> None:
        self.model = model
        self.homes = homes

    def at(self, where: Where) -> Sequence[str]:
        model = self.model
        for part in where:
            annotation = model.model_fields[str(part)].annotation
            kinds = (annotation, *get_args(annotation))
            model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
        return tuple(model.model_fields)

    def unknown(self, where: Where) -> str:
        """What to say about the key at `where`, which means nothing there."""
        *group, name = map(str, where)
        known = self.at(where[:-1])
        homes = {key: home for key, home in self.homes.items() if group != [home]}
        if name in UNSUPPORTED:
            return UNSUPPORTED[name]
        if name in homes and not group[1:]:
            return f"unknown key here; it belongs under {homes[name]}"
        if name in known:
            return "means nothing in this form of a parameter"
        hint = suggestion(name, known)
        if not hint and not group[1:] and (near := nearest(name, tuple(homes))):
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
        context = each.get("ctx", {})
        if each["type"] == "refused":
            problems += [((*under, *where, *inner), what) for inner, what in context["problems"]]
        else:
            problems.append(((*under, *where), _said(each, context, where, keys)))
    return problems


def _said(error: Any, context: Mapping[str, Any], where: Where, keys: Keys) -> str:
    kind, value = error["type"], error["input"]
    found = f", found {describe(value)}"
    match kind:
        case "extra_forbidden":
            return keys.unknown(where)
        case "missing":
            return "missing"
        case "literal_error":
            return _literal(context["expected"], value, where)
        case "model_type" | "model_attributes_type":
            expected = f"expected a group of keys ({', '.join(keys.at(where))})"
        case "form":
            expected = str(error["msg"])
            if isinstance(value, Mapping):
                found = f", found {shortened(', '.join(map(str, value))) or 'no keys'}"
        case "value_error":
            return str(error["msg"]).removeprefix("Value error, ")
        case _ if kind in _EXPECTED:
            expected = f"expected {_EXPECTED[kind].format(**context)}"
            if kind in ("too_short", "too_long"):
                found = f", found {context['actual_length']}"
            if kind == "float_type" and str(where[-1]).endswith("timeout"):
                expected += " of seconds"
        case _:
            expected = str(error["msg"])
    return expected + found


def _literal(expected: str, value: Any, where: Where) -> str:
    words = tuple(word.strip(" '") for word in expected.replace(" or ", ", ").split(","))
    if words != ("False",):
        hint = suggestion(value, words) if isinstance(value, str) else ""
        return f"expected one of {', '.join(words)}, found {describe(value)}{hint}"
    if not isinstance(value, bool):
        return f"expected true or false, found {describe(value)}"
    *_, name, key = where
    return f"adds 0, which {name} does not take" if key == "optional" else f"{name} has one for all layers"
