"""What keeps a folder healthy: `doctor`, `status`, `cleanup` and `backup`."""
