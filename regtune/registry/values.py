"""Single values of a configuration, for a shell."""

from __future__ import annotations

from typing import Any

from regtune.config.mistakes import suggestion
from regtune.config.trial import KEYS, TrialConfig
from regtune.errors import InputError
from regtune.escaping import printable


def value_of(config: TrialConfig, key: str) -> Any:
    """Return the value of `key`, which is a dotted name such as ``training.batch_size``, or its last part alone.

    A technique that is the same in all layers is one value; None is what is off or absent. Raises InputError.
    """
    known: dict[str, Any] = {}
    for group, values in config.to_dict().items():
        names = KEYS.at((group,))
        known |= {f"{group}.{name}": values and values[name] for name in names} if names else {group: values}
    last = {name.rpartition(".")[2]: name for name in known}
    name = key if key in known else last.get(key)
    if name is None:
        hint = suggestion(key, tuple(last)) or f"; expected one of {', '.join(known)}"
        raise InputError(f"--get {printable(key)}: unknown key{hint}")
    value = known[name]
    of_all_layers = name.startswith("regularization.") and len(set(value)) == 1
    return value[0] if of_all_layers else value


def words(value: Any) -> str:
    """A value as a shell takes it: the items of a list with spaces between them, nothing for None."""
    if isinstance(value, list):
        return " ".join(map(words, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
