"""MLflow's runs: derived from the studies and brought up to date at any time.

`live` does it in a process of its own while a sweep runs, `sync` on demand; both through `projection`. Importing
this package costs no import of MLflow.
"""
