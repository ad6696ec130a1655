"""The one exception a user of this project is meant to read."""


class ConvMAEError(Exception):
    """A request that cannot be carried out, for a reason its sender can mend.

    The message is one sentence: what was expected, what was found, what to do. Programs print it without a traceback
    and exit with a non-zero status; the server answers it with a 4xx status.
    """
