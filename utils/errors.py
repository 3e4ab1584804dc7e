"""The exception for errors that the user can correct."""


class InputError(Exception):
    """A wrong option, file or value.

    The message is one line that says what is wrong, where (``file:line``, a layer number), and what would be right.
    Programs print it without a traceback and exit with status 2 (:func:`utils.cli.run`).
    """
