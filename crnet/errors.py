"""The one error that users see as a sentence instead of a traceback."""

LONGEST = 1500  # characters of a sentence; what it quotes may be of any length


class CrnetError(Exception):
    """A mistake in the input, the data or the machine: says what, where, and what to do, in one sentence.

    The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """``text`` as any terminal and log can show it: control characters and half characters escaped, not endless."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 200]} ... {shown[-190:]}"
