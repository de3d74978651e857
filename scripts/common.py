"""What every subcommand shares: messages, and how a mistake of the user's ends a command."""

import sys


class CommandError(Exception):
    """A mistake that one line can explain; the command prints it and exits with status 2."""


def say(message: str) -> None:
    """Print a message for the person at the terminal, beside the results on standard output."""
    print(message, file=sys.stderr, flush=True)
