"""Decided values: `trial` is one configuration, `sweepfile` a search over many, `source` YAML with line numbers."""
