"""The one exception that means: the user can mend this."""


class InputError(Exception):
    """A wrong option, file or value.

    The message is one line that says what is wrong, where (``file:line``, a layer number), and what would be
    right. Programs print it without a traceback and end with status 2 (:func:`utils.cli.run`).
    """
