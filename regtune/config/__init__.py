"""Configurations and sweep files.

`trial` is one configuration, `sweepfile` a search over many, `source` YAML with line numbers.
"""
