"""The sweep file: what is searched, how, on which data, and for how long.

`SweepSpec.load` reads a file and reports every mistake in it at once, each with its line. `parameters` is the
grammar of what is searched, `checks` says what must fit together.
"""

from regtune.config.sweepfile.specification import SweepSpec

__all__ = ["SweepSpec"]
