"""The JSON Schema of a sweep file, for completion and checks in editors."""

from __future__ import annotations

from typing import Any

from regtune.config.sweepfile.specification import IGNORED, SweepSpec


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a sweep file.

    It is that of SweepSpec, with the words of W&B that are read or ignored. What only several keys together can have
    wrong (a circle of conditions, a range upside down) it cannot say.
    """
    schema = SweepSpec.model_json_schema()
    groups = {
        "": schema,
        "metric": schema["$defs"]["MetricSpec"],
        "early_terminate": schema["$defs"]["PrunerSpec"],
    }
    for group, keys in IGNORED.items():
        ignored = {"description": "A key of Weights & Biases; regtune does not use it.", "deprecated": True}
        groups[group]["properties"] |= dict.fromkeys(keys, ignored)
    schema["properties"]["method"]["enum"].append("bayes")
    groups["early_terminate"]["properties"]["type"]["enum"].append("none")
    schema["properties"]["parameters"]["minProperties"] = 1
    del schema["properties"]["name"]["default"]
    budgets = {"run_cap": "integer", "timeout": "number"}
    return schema | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "regtune sweep",
        "required": ["parameters"],
        "anyOf": [{"required": [key], "properties": {key: {"type": kind}}} for key, kind in budgets.items()],
    }
