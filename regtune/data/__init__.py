"""Data sets by name or path: files, digests and the fixed split."""
