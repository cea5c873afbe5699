"""What verbs show, drawn with Rich."""
