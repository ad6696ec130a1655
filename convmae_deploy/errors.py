"""The exceptions that a user of this project is meant to read."""


class ConvMAEError(Exception):
    """A request that cannot be carried out, for a reason its sender can mend.

    The message is one sentence: what was expected, what was found, what to do. Programs print it without a traceback
    and exit with a non-zero status; the server answers it with a 4xx status.
    """


def missing_extra(what: str, packages: str, extra: str) -> ConvMAEError:
    """The refusal of what needs a package that is not installed.

    Args:
        what: cannot be done without it.
        packages: by name.
        extra: of this project, which brings them.
    """
    return ConvMAEError(f"{what} needs {packages}; run pip install '.[{extra}]' in a clone of convmae_deploy")


class ModelError(RuntimeError):
    """A model that does not run, or gives what it must not, whatever it was sent.

    The message is one sentence. Programs print it as they print a `ConvMAEError`; the server's status is 500, as its
    client can do nothing about it.
    """
