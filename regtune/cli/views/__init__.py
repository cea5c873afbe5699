"""The output of the verbs, drawn with Rich."""
