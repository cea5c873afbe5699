"""The archive `model.keras`: what may be in it, and its weights.

Loading a Keras archive executes what it contains: a Lambda layer, or a class of any module. So a network is built from
its configuration, and weights alone are read. An archive with anything else in it is refused: others load all of it.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regtune.escaping import printable

MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
CLASSES = frozenset(
    {"keras.Sequential", "keras.DTypePolicy", "keras.regularizers.L1L2"}
    | {f"keras.initializers.{name}" for name in ("GlorotUniform", "Ones", "Zeros")}
    | {f"keras.layers.{name}" for name in ("InputLayer", "Reshape", "Rescaling", "Dense", "Activation")}
    | {f"keras.layers.{name}" for name in ("BatchNormalization", "Dropout")}
)
"""All classes of the networks that regtune makes."""


def check_archive(content: bytes) -> None:
    """See that a `model.keras` has nothing but weights and stock classes. Raises ValueError, which names the rest."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            names = sorted(member.filename for member in members)
            if names != sorted(MEMBERS):
                extra = [name for name in names if name not in MEMBERS] or names
                shown = printable(", ".join(extra)) or "none"
                raise ValueError(
                    f"expected the members {', '.join(MEMBERS)} in the archive, found {shown:.200}"
                )
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("expected an archive that is not compressed, as Keras writes it")
            config = json.loads(archive.read("config.json"))
            foreign = sorted(set(_classes(config)) - CLASSES)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        RuntimeError,
    ):  # RuntimeError: of an encrypted member
        raise ValueError(f"expected a Keras archive, found {_kind(content)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("config.json in the archive cannot be read") from None
    if foreign:
        raise ValueError(f"found what no network of regtune has: {printable(', '.join(foreign)):.200}")


def load_weights(network: Any, content: bytes) -> None:
    """Give `network` the weights of a `model.keras`, and read nothing else of it. Raises ValueError."""
    check_archive(content)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.keras"  # what was checked, whatever becomes of the file
        copy.write_bytes(content)
        try:
            network.load_weights(copy)
        except Exception as error:  # Keras and h5py raise whatever they meet
            reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
            raise ValueError(f"its weights do not fit the configuration ({reason:.200})") from None


def _classes(value: Any) -> Iterator[str]:
    """Whatever Keras would look up or import for a configuration."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield f"{value.get('module')}.{value['class_name']}"
            if (own := value.get("registered_name")) is not None:  # of classes outside Keras alone
                yield f"{own} (registered)"
        for inner in value.values():
            yield from _classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _classes(inner)


def _kind(content: bytes) -> str:
    if content.startswith(b"\x80"):
        return "a pickle"
    return "a damaged one" if content.startswith(b"PK") else "something else"
