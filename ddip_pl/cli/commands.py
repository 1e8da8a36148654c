"""The command line: runs a command, and turns its errors into one line and an exit code.

A command is imported only when it runs, so that `ddip-pl --help` does not wait for PyTorch.
"""

import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module

import ddip_pl
from ddip_pl.cli.usage import COMMANDS, PLAIN, parser, usage
from ddip_pl.errors import InputError, bad_input, did_you_mean
from ddip_pl.methods.configs import find_configs

TRAINER = {"test": "reconstruct", "predict": "reconstruct", "fit": "train", "validate": "train"}  # command: module


def run(command: str, arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Raises:
        InputError: the user's input cannot be used.
    """
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {command!r}{hint}")
    arguments = find_configs(arguments)
    if {"-h", "--help"} & set(arguments):
        if command in PLAIN:
            parser(command).print_help()
        else:
            import_module("ddip_pl.cli.help").show(command)
        return 0
    module = import_module(f"ddip_pl.cli.{TRAINER.get(command, command)}")
    for name in ("lightning.pytorch", "lightning.fabric", "nibabel.global"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the import has lowered the level
    if command in TRAINER:
        return module.main(command, ["--help" if argument == "--help_all" else argument for argument in arguments]) or 0
    return module.main(arguments) or 0


def main() -> int:
    """Entry point; the exit code is 0, 2 for bad input, 1 for an internal error, 128 + a signal that ended the run."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")  # all is done
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"ddip-pl {ddip_pl.__version__}")
        return 0
    try:
        return run(arguments[0], arguments[1:])
    except (KeyboardInterrupt, SystemExit) as error:
        if not any(isinstance(reason, KeyboardInterrupt) for reason in (error, error.__context__)):
            raise
        print("ddip-pl: interrupted before the run had started", file=sys.stderr)  # Lightning would exit with 1
        return 128 + signal.SIGINT
    except Exception as error:
        if debug:
            traceback.print_exc()
        if line := bad_input(error):
            print(f"ddip-pl: error: {line}", file=sys.stderr)
            return 2
        print(f"ddip-pl: internal error: {error!r}; add --debug for a traceback", file=sys.stderr)
        return 1
