"""What all programs' command lines share: help with defaults, errors of one line, exit status 2."""

import argparse
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from utils import workers
from utils.errors import InputError
from utils.signals import Stopped
from utils.sizes import Size

EXIT_BAD_INPUT = 2


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Options(argparse.Namespace):
    """Parsed options.

    Attributes:
        given: the names of the options on the command line; the others have their defaults.
    """

    __slots__ = ("given",)  # keeps it out of vars(), which holds the options only


class ArgumentParser(argparse.ArgumentParser):
    """argparse with ``--debug``, defaults in the help, and errors of one line instead of the usage."""

    def __init__(self, description: str | None, **options):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(  # type: ignore[override]  # argparse also parses into objects of any other class
        self, args: Iterable[str] | None = None, namespace: Options | None = None
    ) -> Options:
        """Parse ``args``, by default those of the program."""
        words = sys.argv[1:] if args is None else list(args)
        parsed = super().parse_args(words, namespace or Options())
        # argparse sets a default only where there is no value yet, so an option that is still unset was not given.
        unset = object()
        again = super().parse_args(words, argparse.Namespace(**dict.fromkeys(vars(parsed), unset)))
        parsed.given = {name for name, value in vars(again).items() if value is not unset}
        self._refuse_empty(parsed)
        self._refuse_inputs_lost(parsed)
        return parsed

    def _refuse_empty(self, parsed: Options) -> None:
        """End with an error if an option was given an empty text, as by a variable of the shell that is not set."""
        for name in sorted(parsed.given):
            value = getattr(parsed, name)
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"--{name}: is empty: give a value, or leave the option out")

    def _refuse_inputs_lost(self, parsed: Options) -> None:
        """End with an error if a file to write is one that another option names, so that it would be lost."""
        for output in (action for action in self._actions if action.type is output_file):
            target = getattr(parsed, output.dest)
            for name, value in vars(parsed).items():
                files = value if isinstance(value, list) else [value]
                if name != output.dest and any(_is_same_file(file, target) for file in files):
                    self.error(f"--{output.dest} {target}: would be overwritten, but is --{name}")

    def error(self, message: str):
        """Print one line and exit with status 2."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {message} (--help lists the options)\n")


def number(kind: type, low: float | None = None, high: float | None = None, *, above: float | None = None) -> Callable:
    """An argparse ``type`` for a number of ``kind`` within [``low``, ``high``] and greater than ``above``."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a{'n int' if kind is int else ' number'}") from None
        inside = (low is None or value >= low) and (high is None or value <= high)
        if not (-math.inf < value < math.inf and inside and (above is None or value > above)):  # a NaN fails too
            bounds = [(">", above), (">=", low), ("<=", high)]
            limits = " and ".join(f"{op} {v}" for op, v in bounds if v is not None) or "finite"
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {limits}")
        return value

    return parse


def output_file(text: str) -> str:
    """An argparse ``type`` for a file to write, so that a folder is refused before the work."""
    if os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is a folder: give a file")
    return text


def _is_same_file(first: object, second: object) -> bool:
    """Whether both are paths of one file that exists."""
    if not (isinstance(first, str) and isinstance(second, str)):
        return False
    return os.path.isfile(first) and os.path.isfile(second) and os.path.samefile(first, second)


class _SizeAction(argparse.Action):
    """Makes an AnySize (:mod:`utils.sizes`) of one or two numbers."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2:
            raise argparse.ArgumentError(self, "give one number for a square, or two: height and width")
        setattr(namespace, self.dest, Size(values[0], values[-1]).plain)


def add_size_option(
    parser: argparse._ActionsContainer, text: str, default: int | None = None, smallest: int = 32
) -> None:
    """Add ``--img_size``, which gives an AnySize (:mod:`utils.sizes`).

    Args:
        parser: to add it to.
        text: the help text.
        default: the side of a square in pixels.
        smallest: the smallest side in pixels.
    """
    parser.add_argument(
        "--img_size",
        type=number(int, smallest),
        nargs="+",
        action=_SizeAction,
        metavar="PIXELS",
        default=default,
        help=f"{text}; one number is a square, two are height and width",
    )


def run(parser: argparse.ArgumentParser, main: Callable[[Any], None]) -> None:
    """Parse the command line and run ``main``.

    An :class:`InputError` or OSError is printed as one line, with exit status 2; a request to stop as one line, with
    the status of its signal.
    """
    _replace_closed_streams()
    # They name no image and come back at every reading; what is wrong with an image the check of the data says.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    args = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(args)
    except (InputError, OSError, RuntimeError) as error:
        known = workers.explain(error) or error
        if args.debug or not isinstance(known, InputError | OSError):
            raise
        sys.exit(_fail(parser.prog, known))
    except Stopped as stop:
        print(f"{parser.prog}: {stop}", file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        sys.exit(130)


def _replace_closed_streams() -> None:
    """Let what is printed on a stream that the caller has closed (``2>&-``) go nowhere: Python has None there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the program runs


def _fail(program: str, error: Exception) -> int:
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    print(f"{program}: error: {place}{reason}", file=sys.stderr)
    return EXIT_BAD_INPUT
