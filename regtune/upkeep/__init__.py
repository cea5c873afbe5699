"""Upkeep of a folder: `doctor`, `status`, cleanup and backup."""
