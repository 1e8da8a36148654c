"""The command line."""

from ddip_pl.cli.commands import main

__all__ = ["main"]
