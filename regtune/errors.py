"""The exceptions that a user can meet, one leaf for each thing a user can do about it.

    RegtuneError
    ├── InputError                  what was typed or written in a file is wrong (exit code 2)
    │   ├── SourceError             a YAML file: every mistake at once, each with its file and line
    │   │   ├── SpecError           the sweep file
    │   │   ├── ConfigError         a configuration file such as best.yaml
    │   │   └── GatesError          a file of gates
    │   ├── DataError               a data set is missing, damaged or not what its digest says
    │   ├── SettingsError           a flag, an environment variable or a line of .env
    │   ├── ParameterError          a value outside the search space (enqueue)
    │   ├── StudyNotFound           no such study, or no such trial in it
    │   └── ModelNotFound           no such registered model, version or alias
    ├── SpecChanged                 the study exists with another spec; carries the differences
    ├── StudyBusy                   another coordinator runs the study
    ├── StorageError                a database cannot be opened, read or written
    │   └── NoStudies               there is no database of studies yet
    ├── TrackingError               the MLflow store or server cannot be used
    ├── VersionDamaged              a registered version is not what was registered; one line for each file or figure
    ├── RegistryError               a registered model is another program's, or its journal is gone
    ├── AliasMoved                  somebody else moved the alias meanwhile
    ├── ExportError                 a model cannot be converted, or answers otherwise than the registered one
    ├── WorkerError                 workers cannot be started
    └── TooManyFailures             more trials failed than `max_failures` allows

Each carries a message for people: where, what was expected, what to try. `exit_code` is what the CLI exits with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

AGAIN = "the same command with"
COMMAND: ContextVar[str] = ContextVar("command", default=AGAIN)
"""The sweep's command as it was given, which remedies repeat with more options; set by the command line."""


class RegtuneError(Exception):
    """Something a user can mend; its text is shown without a traceback."""

    exit_code = 1


class InputError(RegtuneError):
    """What was typed, or written in a file, is wrong."""

    exit_code = 2


class SourceError(InputError):
    """A file has mistakes. `problems` has one line for each: ``file:line: key: what was expected``."""

    expected = "a YAML file"

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SpecError(SourceError):
    expected = "a sweep file (keys such as parameters and run_cap)"


class ConfigError(SourceError):
    expected = "a configuration (try: regtune best STUDY -o best.yaml)"


class GatesError(SourceError):
    expected = "a file of gates (keys such as max_ece)"


class DataError(InputError): ...


class SettingsError(InputError): ...


class ParameterError(InputError): ...


class StudyNotFound(InputError): ...


class ModelNotFound(InputError): ...


class SpecChanged(RegtuneError):
    """The study exists, but was begun with another spec. `differences` has one line for each key."""

    exit_code = 2

    def __init__(self, message: str, differences: Sequence[str] = ()) -> None:
        self.differences = tuple(differences)
        super().__init__("\n".join((message, *self.differences)))


class StudyBusy(RegtuneError): ...


class StorageError(RegtuneError): ...


class NoStudies(StorageError): ...


class TrackingError(RegtuneError): ...


class VersionDamaged(RegtuneError):
    """Files or figures of a registered version are not those that were registered. `problems`: one line for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class RegistryError(RegtuneError): ...


class AliasMoved(RegtuneError): ...


class ExportError(RegtuneError): ...


class WorkerError(RegtuneError): ...


class TooManyFailures(RegtuneError): ...
