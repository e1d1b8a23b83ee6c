"""The one error that users see as a sentence instead of a traceback."""


class CrnetError(Exception):
    """A mistake in the input, the data or the machine: says what, where, and what to do, in one sentence.

    The command line prints it without a traceback and exits with status 2.
    """
