"""Malformed sweep files: no YAML, YAML that acts, keys and values without meaning, and what is no file at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from corpus import TAGS, Malformed, bomb, encodings, large, nested, text, valid_yaml, written

LINES = ("run_cap: 5", "parameters: {dropout: {values: [0, 0.1]}}")
GOOD = "\n".join(LINES) + "\n"


def beside(*lines: str) -> str:
    """A good sweep file with these lines, which stand in place of those of the same key."""
    keys = [line.partition(":")[0] for line in lines]
    return "\n".join([*lines, *(line for line in LINES if line.partition(":")[0] not in keys)]) + "\n"


NOT_YAML = {
    "two colons in a line": ("a: b: c", "mapping values are not allowed"),
    "a list that is not closed": ("parameters: [1, 2", "not YAML"),
    "a group that is not closed": ("parameters: {dropout: {min: 0", "not YAML"),
    "a bracket that closes nothing": ("run_cap: ]", "not YAML"),
    "a quotation that is not closed": ('name: "half', "not YAML"),
    "an indentation with a tab": ("model:\n\thidden: [8]", "indent with spaces"),
    "an indentation that goes back halfway": ("model:\n    hidden: [8]\n  activation: relu", "not YAML"),
    "two documents": ("run_cap: 1\n---\nrun_cap: 2", "another document"),
    "an alias of nothing": ("seed: *nowhere", "undefined alias"),
    "an anchor given twice": ("a: &x 1\nb: &x 2\nc: *x", "duplicate anchor"),
    "a control character": ("name: \x07", "unacceptable character"),
    "a NUL": ("name: a\0b", "unacceptable character"),
    "a terminal's escape": ("name: \x1b[2J", "unacceptable character"),
    "a directive of another YAML": ("%YAML 9.0\n---\nrun_cap: 1", "not YAML"),
    "a directive given twice": ("%YAML 1.1\n%YAML 1.1\n---\nrun_cap: 1", "not YAML"),
    "an escape of no letter": ('name: "\\q"', "not YAML"),
    "an escape beyond Unicode": ('name: "\\UFFFFFFFF"', "not YAML"),
    "a reserved letter at the start": ("name: @x", "not YAML"),
    "a backtick at the start": ("name: `id`", "not YAML"),
    "a percent sign at the start": ("%", "not YAML"),
    "a list and a group at one level": ("- a\nb: 1", "not YAML"),
    "a block of text with a wrong indicator": ("description: |99\n x", "not YAML"),
    "a key of more than a thousand letters": (f"{'k' * 2000}: 1", "not YAML"),
    "a JSON with a comma too many": ('{"run_cap": 5,, "seed": 1}', "not YAML"),
    "a Python program": ("def main():\n    return {1: 2}\n", "expected"),
    "a TOML": ('run_cap = 5\n[parameters]\ndropout = "x"\n', "expected keys"),
    "an INI": ("[sweep]\nrun_cap = 5\n", "not YAML"),
    "an XML": ("<?xml version='1.0'?><sweep/>", "expected keys"),
    "a shell script": ("#!/bin/sh\ntouch canary\n", "expected keys"),
}
NO_KEYS = {
    "nothing": ("", "empty"),
    "a comment only": ("# run_cap: 5\n", "empty"),
    "blanks only": ("  \n\n   \n", "empty"),
    "a document without contents": ("---\n...\n", "empty"),
    "a null": ("null\n", "empty"),
    "a word": ("hello\n", 'found "hello"'),
    "a number": ("42\n", "found 42"),
    "a truth": ("true\n", "found true"),
    "a list": ("- run_cap: 5\n", "found a list"),
    "a list of nothing": ("[]\n", "found a list"),
    "a long text": ("x" * 100_000, "expected keys"),
    "no number": (".nan\n", "expected keys"),
}
BOMBS = {
    "a bomb of aliases": (bomb(), "more than 5000 values"),
    "a bomb of aliases of groups": (
        "a: &a {x: 1, y: 2}\n"
        + "".join(
            f"{chr(97 + n)}: &{chr(97 + n)} {{x: *{chr(96 + n)}, y: *{chr(96 + n)}}}\n" for n in range(1, 24)
        ),
        "more than 5000 values",
    ),
    "an alias of the list that it is in": ("parameters: &a [*a]", "nested deeper"),
    "an alias of the group that it is in": ("parameters: &a {dropout: *a}", "nested deeper"),
    "two aliases of each other": ("parameters: &a {x: &b {y: *a, z: *b}}", "nested deeper"),
    "a list in 40 lists": (f"parameters: {nested(40)}", "nested deeper than 32"),
    "a list in 100,000 lists": ("[" * 100_000, "nested deeper than 32"),
    "groups in 20,000 groups": ("{a: " * 20_000, "nested deeper than 32"),
    "blocks in 500 blocks": ("\n".join(" " * n + "a:" for n in range(500)), "nested deeper than 32"),
    "lists of one line in 5,000": ("- " * 5_000, "nested deeper than 32"),
    "a list of 100,000 values": (f"parameters: [{'1,' * 100_000}]", "more than 5000 values"),
    "100,000 empty lists": (f"parameters: [{'[],' * 80_000}]", "more than 5000 values"),
    "20,000 keys without meaning": ("\n".join(f"key{n}: 1" for n in range(20_000)), "more than 5000 values"),
    "2,000 keys without meaning": ("\n".join(f"key{n}: 1" for n in range(2_000)), "more mistakes"),
    "2,000 parameters without meaning": (
        "run_cap: 5\nparameters:\n" + "\n".join(f"  drop{n}: 1" for n in range(2_000)),
        "more mistakes",
    ),
    "2,000 values that are none": (
        beside(f"parameters: {{dropout: {{values: [{', '.join(['9'] * 2_000)}]}}}}"),
        "more mistakes",
    ),
    "the same key 2,000 times": ("run_cap: 5\n" * 2_000, "given twice"),
    "conditions on 900 values that are none": (
        beside(
            "parameters: {dropout: {min: 0, max: 0.5, when: {batch_size: "
            f"{list(range(1, 900))}}}}}, batch_size: {{values: {list(range(1000, 1900))}}}}}"
        ),
        "batch_size is one of",
    ),
}
WHAT_YAML_ALLOWS = {
    "a key given twice": ("seed: 1\nseed: 2", "given twice, on line 1 and on line 2"),
    "the budget given twice": ("run_cap: 1\nrun_cap: 1", "given twice"),
    "a parameter given twice": (
        "parameters: {l1: {values: [0, 1]}, l1: {values: [0, 1]}}",
        "parameters.l1: given twice",
    ),
    "a bound given twice": (
        "parameters: {dropout: {min: 0, max: 0.1, max: 0.2}}",
        "dropout.max: given twice",
    ),
    "a key given twice, once in quotation marks": ('seed: 1\n"seed": 2', "given twice"),
    "a merge key that merges a number": ("<<: [{seed: 1}, 2]", "<<: expected a group of keys"),
    "a merge key given twice": ("<<: {seed: 1}\n<<: {seed: 2}", "<<: given twice"),
    "a group merged into itself": ("early_terminate: &x\n  <<: *x", "nested deeper than 32 levels"),
    "a list as a key": ("? [a, b]\n: 1", "expected a word as key"),
    "a group as a key": ("? {a: b}\n: 1", "expected a word as key"),
    "an alias as a key": ("x: &x [1]\n? *x\n: 1", "expected a word as key"),
    "no number as the seed": ("seed: .nan", "expected a finite number, found .nan"),
    "an infinite timeout": ("timeout: .inf", "expected a finite number, found .inf"),
    "an infinite bound": ("parameters: {l1: {min: 0, max: .inf}}", "expected a finite number"),
    "minus infinity as a bound": ("parameters: {l1: {min: -.INF, max: 1}}", "expected a finite number"),
    "no number among values": ("parameters: {l1: {values: [0, .NaN]}}", "expected a finite number"),
    "no number as a list": ("parameters: [.nan]", "expected"),
}
TOP = {
    "a budget in words": ("run_cap: many", 'expected a whole number, found "many"'),
    "a budget of nothing": ("run_cap: 0", "expected at least 1"),
    "a budget below nothing": ("run_cap: -5", "expected at least 1"),
    "a broken budget": ("run_cap: 2.5", "expected a whole number"),
    "a budget that is a truth": ("run_cap: true", "expected a whole number"),
    "a budget that is a list": ("run_cap: [5]", "expected a whole number"),
    "a budget that is a group": ("run_cap: {trials: 5}", "expected a whole number"),
    "a budget of forty digits": (f"run_cap: {'9' * 40}", "run_cap"),
    "a budget of five thousand digits": (f"run_cap: {'9' * 5000}", "run_cap"),
    "a budget in hexadecimal letters": ("run_cap: 0xG", "expected a whole number"),
    "a budget of 1e999": ("run_cap: 1e999", "expected a whole number"),
    "no budget": ("run_cap:", "expected a budget"),
    "a timeout of nothing": ("timeout: 0", "expected more than 0"),
    "a timeout below nothing": ("timeout: -1", "expected more than 0"),
    "a timeout in words": ("timeout: 2h", "expected seconds"),
    "a timeout by the clock": ("timeout: 1:30", "expected seconds"),
    "a timeout without end": ("timeout: 1e300", "expected at most"),
    "a seed below nothing": ("seed: -1", "expected at least 0"),
    "a seed that is too large": ("seed: 2147483648", "expected at most"),
    "a seed of forty digits": (f"seed: {'1' * 40}", "seed"),
    "a broken seed": ("seed: 0.5", "expected a whole number"),
    "a seed in words": ("seed: lucky", "expected a whole number"),
    "a method without meaning": ("method: tpee", 'did you mean "tpe"'),
    "a method of W&B's own": ("method: custom", "W&B's own"),
    "a method that is a list": ("method: [tpe]", "method: expected one of"),
    "a method that is a number": ("method: 1", "method: expected one of"),
    "several metrics": ("metrics: [{name: val_loss}]", "several objectives"),
    "a metric that is a word": ("metric: val_accuracy", "expected a group of keys"),
    "a metric without meaning": ("metric: {name: val_acc}", 'did you mean "val_accuracy"'),
    "a goal without meaning": ("metric: {name: val_loss, goal: minimise}", 'did you mean "minimize"'),
    "a goal that is wrong": ("metric: {name: val_accuracy, goal: minimize}", "expected goal: maximize"),
    "a key of a metric without meaning": ("metric: {name: val_loss, direction: up}", "unknown key"),
    "a data set without meaning": ("dataset: cifar10", "expected mnist"),
    "a data set that is nearly one": ("dataset: mnits", 'did you mean "mnist"'),
    "a data set that is a list": ("dataset: [mnist]", "dataset"),
    "a data set of no name": ('dataset: ""', "dataset"),
    "a data set of a long name": (f"dataset: {'d' * 2000}.npz", "at most 1024 characters"),
    "a data set that is a password file": ("dataset: /etc/passwd", "expected mnist"),
    "a data set above the folder": ("dataset: ../../../../etc/shadow", "expected mnist"),
    "a data set that is a pickle": ("dataset: data.pkl", "a path to a .npz file"),
    "a data set at an address": ("dataset: http://evil.example/x.npy", "a path to a .npz file"),
    "a data set with a control character": ('dataset: "a\\x1b[2J.npz"', "printable characters"),
    "a data set with an end of line": ('dataset: "a\\nb.npz"', "printable characters"),
    "a data set with a NUL": ('dataset: "a\\0b.npz"', "printable characters"),
    "a data set with half a letter": ('dataset: "a\\ud800.npz"', "dataset"),
    "a split that is a number": ("split: 0.2", "expected a group of keys"),
    "a split that leaves nothing": ("split: {validation: 1.0}", "expected less than 1"),
    "a split of nothing": ("split: {validation: 0}", "expected more than 0"),
    "a split in words": ("split: {validation: half}", "expected a number"),
    "a key of the split without meaning": ("split: {validaton: 0.2}", 'did you mean "validation"'),
    "a description that is a list": ("description: [a]", "description"),
    "a description of 20,000 letters": (f"description: {'x' * 20_000}", "at most 10000 characters"),
    "controls in words": ("controls: maybe", "expected true or false"),
    "controls as YAML 1.1 has them": ("controls: yes", "expected true or false"),
    "controls as a number": ("controls: 1", "expected true or false"),
    "failures below nothing": ("max_failures: -1", "expected at least 0"),
    "a trial's timeout of nothing": ("trial_timeout: 0", "expected more than 0"),
    "a trial's memory in words": ("trial_memory_mb: 4g", "expected a whole number"),
    "a trial's memory of nothing": ("trial_memory_mb: 0", "expected at least 1"),
    "models below nothing": ("keep_models: -1", "expected at least 0"),
    "a key without meaning": ("methd: tpe", 'did you mean "method"'),
    "a key in capitals": ("RUN_CAP: 5", "unknown key"),
    "a key of no letters": ('"": 1', "unknown key"),
    "a key that is a number": ("5: 1", "unknown key"),
    "a key of 900 letters": (f"{'k' * 900}: 1", "unknown key"),
    "a key with a control character": ('"run\\x1b[2J": 1', "unknown key"),
    "a key with ends of lines": ('"a\\nerror: all is lost\\n": 1', "unknown key"),
    "a key of Python's own": ("__class__: x", "unknown key"),
    "a technique at the top": ("dropout: 0.2", "it belongs under parameters"),
    "a learning rate at the top": ("learning_rate: 0.1", "it belongs under training"),
    "label smoothing": ("label_smoothing: 0.1", "not supported"),
    "a configuration": ("regularization: {dropout: [0.2, 0.2]}", "this is a configuration"),
    "a best.yaml": ("provenance: {trial: 3}", "this is a configuration"),
}
GROUPS = {
    "a model that is a list": ("model: [128, 64]", "expected a group of keys"),
    "a model without layers": ("model: {hidden: []}", "at least 1"),
    "a model of nine layers": (f"model: {{hidden: {[8] * 9}}}", "at most 8"),
    "a layer of no width": ("model: {hidden: [0]}", "expected at least 1"),
    "a layer that is too wide": ("model: {hidden: [100000]}", "expected at most 4096"),
    "a layer of a broken width": ("model: {hidden: [12.5]}", "expected a whole number"),
    "layers as a word": ('model: {hidden: "128-64"}', "expected a list"),
    "layers as one number": ("model: {hidden: 128}", "expected a list"),
    "layers in layers": ("model: {hidden: [[8], [8]]}", "expected a whole number"),
    "an activation without meaning": ("model: {activation: rellu}", 'did you mean "relu"'),
    "an activation that is Python": (
        "model: {activation: \"__import__('os').system('touch canary')\"}",
        "expected one of",
    ),
    "a key of the model without meaning": ("model: {layers: [8]}", 'did you mean "hidden"'),
    "a training that is a word": ("training: adam", "expected a group of keys"),
    "an optimizer without meaning": ("training: {optimizer: adamm}", 'did you mean "adam"'),
    "a learning rate of nothing": ("training: {learning_rate: 0}", "expected more than 0"),
    "a learning rate below nothing": ("training: {learning_rate: -0.1}", "expected more than 0"),
    "a learning rate in words": ('training: {learning_rate: "0.1"}', "expected a number"),
    "a momentum of one": ("training: {momentum: 1}", "expected less than 1"),
    "a weight decay above one": ("training: {weight_decay: 2}", "expected at most 1"),
    "a batch of nothing": ("training: {batch_size: 0}", "expected at least 1"),
    "a broken batch": ("training: {batch_size: 3.5}", "expected a whole number"),
    "a batch that is too large": ("training: {batch_size: 1000000}", "expected at most 65536"),
    "no epochs": ("training: {max_epochs: 0}", "expected at least 1"),
    "a million epochs": ("training: {max_epochs: 1000000}", "expected at most 10000"),
    "epochs of another tool": ("training: {epochs: 5}", 'did you mean "max_epochs"'),
    "clipped gradients": ("training: {clipnorm: 1}", "not supported"),
    "a schedule": ("training: {lr_schedule: cosine}", "not supported"),
    "a technique in the training": ("training: {dropout: 0.2}", "it belongs under parameters"),
    "fused in words": ("training: {fused: perhaps}", "expected true or false"),
    "early stopping that is a number": ("early_stopping: 4", "expected a group of keys"),
    "a patience below nothing": ("early_stopping: {patience: -1}", "expected at least 0"),
    "a broken patience": ("early_stopping: {patience: 1.5}", "expected a whole number"),
    "a monitor without meaning": ("early_stopping: {monitor: val_acc}", 'did you mean "val_accuracy"'),
    "a min_delta below nothing": ("early_stopping: {min_delta: -1}", "expected at least 0"),
    "a pruner that is a word": ("early_terminate: hyperband", "expected a group of keys"),
    "a pruner without a type": ("early_terminate: {}", "early_terminate.type: missing"),
    "a pruner without meaning": ("early_terminate: {type: asha}", "expected one of median"),
    "a pruner that begins at nothing": (
        "early_terminate: {type: hyperband, min_iter: 0}",
        "expected at least 1",
    ),
    "a broken eta": ("early_terminate: {type: hyperband, eta: 2.5}", "expected a whole number"),
    "an eta of one": ("early_terminate: {type: hyperband, eta: 1}", "expected at least 2"),
    "a median with an eta": ("early_terminate: {type: median, eta: 3}", "means nothing for median"),
    "rungs counted from nowhere": ("early_terminate: {type: hyperband, s: 2}", "expected max_iter with s"),
    "more rungs than epochs": (
        "early_terminate: {type: hyperband, s: 20, max_iter: 20}",
        "expected max_iter to be at least",
    ),
}
PARAMETERS = {
    "nothing is searched": ("{}", "nothing is searched"),
    "parameters that are a list": ("[dropout]", "expected a parameter on each line"),
    "parameters that are a word": ("dropout", "expected a parameter on each line"),
    "one value only": ("{dropout: {value: 0.2}}", "each has one value only"),
    "a parameter without meaning": ("{drop_out: {min: 0, max: 0.5}}", 'did you mean "dropout"'),
    "a parameter of another tool": ("{lr: {min: 0.1, max: 0.5}}", 'did you mean "learning_rate"'),
    "a parameter with a dot": (
        "{training.learning_rate: {min: 0.1, max: 0.5}}",
        'did you mean "learning_rate"',
    ),
    "a parameter that is a path": ("{../../dropout: {min: 0, max: 0.5}}", "unknown parameter"),
    "a parameter of 900 letters": (f"{{{'p' * 900}: {{min: 0, max: 0.5}}}}", "unknown parameter"),
    "a parameter that is nothing": ("{dropout: }", "found nothing"),
    "a parameter that is a number": ("{dropout: 0.2}", "found 0.2"),
    "a parameter that is a list": ("{dropout: [0, 0.2]}", "found a list"),
    "a parameter of no keys": ("{dropout: {}}", "expected value, or values, or min and max"),
    "a lower bound alone": ("{dropout: {min: 0}}", "found min"),
    "an upper bound alone": ("{dropout: {max: 0.5}}", "found max"),
    "bounds beside values": ("{dropout: {min: 0, max: 0.5, values: [0.1]}}", "found values and min and max"),
    "bounds that are the same": ("{dropout: {min: 0.2, max: 0.2}}", "for one value use value"),
    "bounds upside down": ("{dropout: {min: 0.5, max: 0.1}}", "expected more than min"),
    "bounds in words": ("{dropout: {min: low, max: high}}", "expected a number"),
    "bounds that are lists": ("{dropout: {min: [0], max: [1]}}", "expected a number"),
    "bounds of nothing": ("{dropout: {min: , max: }}", "expected a number, found nothing"),
    "a bound of forty digits": (f"{{l1: {{min: 0, max: {'9' * 40}}}}}", "parameters.l1.max"),
    "a rate above its limit": ("{dropout: {min: 0, max: 1.5}}", "expected at most 0.95"),
    "a rate below nothing": ("{dropout: {min: -0.1, max: 0.5}}", "expected at least 0"),
    "a strength above its limit": ("{l2: {min: 0, max: 1000}}", "expected at most 100"),
    "magnitudes from nothing on": (
        "{l1: {distribution: log_uniform_values, min: 0, max: 1}}",
        "optional: true adds 0",
    ),
    "a distribution without meaning": (
        "{l1: {distribution: log_unifrm, min: 0, max: 1}}",
        'did you mean "log_uniform"',
    ),
    "a distribution that is a number": (
        "{l1: {distribution: 3, min: 0, max: 1}}",
        "expected one of constant",
    ),
    "a distribution that is a list": (
        "{l1: {distribution: [uniform], min: 0, max: 1}}",
        "expected one of constant",
    ),
    "a distribution without ends": ("{l1: {distribution: normal, mu: 0, sigma: 1}}", "unbounded"),
    "weighted values": ("{dropout: {values: [0, 0.1], probabilities: [0.5, 0.5]}}", "cannot be weighted"),
    "exponents that overflow": (
        "{l1: {distribution: log_uniform, min: -1000, max: 1000}}",
        "expected an exponent of e",
    ),
    "whole numbers as real ones": (
        "{batch_size: {distribution: uniform, min: 1, max: 5}}",
        "is a whole number",
    ),
    "real numbers as whole ones": (
        "{dropout: {distribution: int_uniform, min: 0, max: 1}}",
        "is a real number",
    ),
    "a step of nothing": ("{dropout: {min: 0, max: 0.5, q: 0}}", "expected a number above 0"),
    "a step below nothing": ("{dropout: {min: 0, max: 0.5, q: -0.1}}", "expected a number above 0"),
    "a step in words": ("{dropout: {min: 0, max: 0.5, q: small}}", "expected a number above 0"),
    "a broken step": ("{batch_size: {min: 1, max: 9, q: 0.5}}", "expected a whole number"),
    "a step wider than the range": ("{dropout: {min: 0.1, max: 0.2, q: 0.5}}", "at least two multiples"),
    "a billion steps": ("{l1: {min: 0, max: 100, q: 1.0e-7}}", "at most 100000 multiples"),
    "a step that is hardly one": ("{l1: {min: 0, max: 100, q: 1.0e-300}}", "at most 100000 multiples"),
    "no values": ("{dropout: {values: []}}", "expected a list"),
    "values that are a word": ("{dropout: {values: many}}", "expected a list"),
    "values that are a group": ("{dropout: {values: {a: 1}}}", "expected a list"),
    "a value given twice": ("{dropout: {values: [0.1, 0.1]}}", "given twice"),
    "a value given twice, once as a whole number": ("{l1: {values: [1, 1.0]}}", "given twice"),
    "a value above its limit": ("{dropout: {values: [0, 2]}}", "expected at most 0.95"),
    "a value that is a list": ("{dropout: {values: [[0.1, 0.2], 0]}}", "use per_layer: true"),
    "a value that is a group": ("{dropout: {values: [{a: 1}, 0]}}", "dropout.values.0"),
    "a value that is nothing": ("{dropout: {values: [null, 0]}}", "dropout.values.0"),
    "a placement without meaning": (
        "{batchnorm: {values: [none, befor]}}",
        "batchnorm.values.1: expected one of none",
    ),
    "a placement that is a truth": ("{batchnorm: {values: [true, false]}}", "expected one of none"),
    "a placement with bounds": ("{batchnorm: {min: 0, max: 1}}", "batchnorm is not a number"),
    "an optional placement": (
        "{batchnorm: {values: [none, before_activation], optional: true}}",
        "add none to its values",
    ),
    "optional in words": ("{dropout: {min: 0.1, max: 0.5, optional: sometimes}}", "expected true or false"),
    "optional beside a zero": (
        "{dropout: {values: [0, 0.1], optional: true}}",
        "adds 0, which is among the values",
    ),
    "an optional learning rate": ("{learning_rate: {min: 0.1, max: 0.5, optional: true}}", "cannot be off"),
    "a learning rate for each layer": (
        "{learning_rate: {min: 0.1, max: 0.5, per_layer: true}}",
        "one value for all layers",
    ),
    "too many values for the layers": (
        "{dropout: {value: [0.1, 0.2, 0.3]}, l1: {values: [0, 1]}}",
        "one a hidden layer",
    ),
    "layers of different number, each with its rate": (
        "{dropout: {min: 0, max: 0.5, per_layer: true}, hidden: {values: [[8], [8, 8]]}}",
        "expected one number of hidden layers",
    ),
    "a condition that is a word": (
        "{dropout: {min: 0, max: 0.5, when: always}}",
        "expected parameter: value",
    ),
    "a condition on nothing": (
        "{dropout: {min: 0, max: 0.5, when: {batchnorm: none}}}",
        "expected another searched parameter",
    ),
    "a condition on itself": ("{dropout: {values: [0, 0.1], when: {dropout: 0}}}", "a circle"),
    "a circle of conditions": (
        "{dropout: {values: [0, 0.1], when: {l1: 0}}, l1: {values: [0, 1], when: {dropout: 0}}}",
        "a circle",
    ),
    "a condition on a value that never is": (
        "{dropout: {min: 0, max: 0.5, when: {batchnorm: maybe}}, batchnorm: {values: [none, before_activation]}}",
        "batchnorm is one of",
    ),
    "a condition on no values": (
        "{dropout: {min: 0, max: 0.5, when: {batchnorm: []}}, batchnorm: {values: [none, before_activation]}}",
        "expected a value or a list of values",
    ),
    "a key of a parameter without meaning": ("{dropout: {min: 0, max: 0.5, stpe: 0.1}}", "unknown key"),
    "parameters in parameters": (
        "{dropout: {parameters: {a: {value: 1}}}}",
        "nested parameters are not read",
    ),
}
NAMES = {
    "a name above the folder": "../../etc/passwd",
    "a name that is a path": "a/b",
    "a name from the root": "/tmp/owned",
    "a name of another system's path": "..\\\\..\\\\owned",
    "a name that is a flag": "-rf",
    "a name that is two dots": "..",
    "a name that is a home": "~root",
    "a name that a shell runs": "$(touch canary)",
    "a name in backticks": "`touch canary`",
    "a name with a pipe": "x|touch canary",
    "a name with a semicolon": "x;touch canary",
    "a name that is SQL": "x' OR '1'='1",
    "a name that is HTML": "<script>alert(1)</script>",
    "a name that is markup": "[red]x[/red]",
    "a name that is a template": "{{7*7}}",
    "a name with an end of line": "a\\nb",
    "a name with a NUL": "a\\0b",
    "a name with an escape of a terminal": "a\\x1b[2Jb",
    "a name that turns the direction": "a\\u202egpj",
    "a name with half a letter": "a\\ud800",
    "a name that ends in a blank": "a ",
    "a name that is a blank": " ",
    "a name of no letters": "",
    "a name of 101 letters": "n" * 101,
    "a name of 100,000 letters": "n" * 100_000,
}


def _symlink(name: str, target: str) -> str:
    Path(name).symlink_to(target)
    return name


def _folder() -> str:
    Path("folder.yaml").mkdir()
    return "folder.yaml"


def _loop() -> str:
    Path("one.yaml").symlink_to("two.yaml")
    return _symlink("two.yaml", "one.yaml")


def _not_readable() -> str:
    path = Path(written("secret.yaml", GOOD))
    path.chmod(0)
    return str(path) if not os.access(path, os.R_OK) else "/proc/self/mem"  # root reads every file


def _of_the_stem(name: str) -> str:
    return written(name, GOOD)


FILES = [
    Malformed("a file that is not there", lambda: "absent.yaml", "no such file"),
    Malformed("a file below a file", lambda: f"{written('file', GOOD)}/x.yaml", "cannot be read"),
    Malformed("a folder", _folder, "found a folder"),
    Malformed("a link to nothing", lambda: _symlink("link.yaml", "absent.yaml"), "no such file"),
    Malformed("a link to itself", _loop, "cannot be read"),
    Malformed("a link to a folder", lambda: _symlink("link.yaml", "."), "found a folder"),
    Malformed("a link to the passwords", lambda: _symlink("link.yaml", "/etc/passwd"), "expected"),
    Malformed("a link to endless zeros", lambda: _symlink("link.yaml", "/dev/zero"), "larger than 256 KiB"),
    Malformed("a link to nothing at all", lambda: _symlink("link.yaml", "/dev/null"), "empty"),
    Malformed("a file that may not be read", _not_readable, "cannot be read"),
    Malformed("a file whose name has 300 letters", lambda: f"{'f' * 300}.yaml", "cannot be read"),
    Malformed(
        "a file whose name has an end of line",
        lambda: _of_the_stem("a\nb.yaml"),
        "expected up to 100 letters",
    ),
    Malformed(
        "a name with a terminal's escape", lambda: _of_the_stem("a\x1b[2J.yaml"), "expected up to 100 letters"
    ),
    Malformed(
        "a name that is no text",
        lambda: _of_the_stem(b"a\xff.yaml".decode("utf-8", "surrogateescape")),
        "a\\udcff.yaml",
    ),
    large("10 MB of comments", lambda size: b"# x\n" * (size // 4), "larger than 256 KiB"),
    large("10 MB of zeros", bytes, "larger than 256 KiB"),
    large("10 MB of brackets", lambda size: b"[" * size, "larger than 256 KiB"),
    large("10 MB in one line", lambda size: b"name: " + b"x" * size, "larger than 256 KiB"),
]


def _fragments(found: dict[str, tuple[str, str]]) -> Iterator[Malformed]:
    for what, (line, said) in found.items():
        yield text(what, beside(*line.split("\n")), said)


def _all() -> Iterator[Malformed]:
    for whole in (NOT_YAML, NO_KEYS, BOMBS):
        for what, (content, said) in whole.items():
            yield text(what, content, said)
    for what, content in encodings(GOOD).items():
        yield text(f"the encoding: {what}", content, "UTF-8" if _no_utf8(content) else "not YAML")
    for what, tag in TAGS.items():
        yield text(what, beside(f"seed: {tag}"), "not YAML" if "!nowhere!" in tag else "YAML tag")
    for fragments in (WHAT_YAML_ALLOWS, TOP, GROUPS):
        yield from _fragments(fragments)
    for what, (parameters, said) in PARAMETERS.items():
        yield text(what, beside(f"parameters: {parameters}"), said)
    for what, name in NAMES.items():
        yield text(what, beside(f'name: "{name}"'), "name: ")
    yield text(
        "a W&B file with its defaults", valid_yaml({"method": "bayes", "parameters": {}}), "expected a budget"
    )
    yield from FILES


def _no_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return True
    return False


SWEEPS = list(_all())
