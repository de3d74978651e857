"""The command `speechgraft` and its subcommands; everything they do is importable from the other packages."""
