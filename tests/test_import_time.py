"""Commands that do not compute start fast: they import neither PyTorch nor Lightning."""

import subprocess
import sys

import pytest
from helpers import ROOT

from ddip_pl.cli.usage import COMMANDS

SLOW = ("torch", "lightning")
HELP = "import sys; sys.argv = ['ddip-pl', '{}', '--help']; from ddip_pl.cli import main; assert main() == 0"
CALLS = {
    "import ddip_pl": "import ddip_pl",
    "ddip-pl --help": "import sys; sys.argv = ['ddip-pl', '--help']; from ddip_pl.cli import main; assert main() == 0",
    **{f"ddip-pl {command} --help": HELP.format(command) for command in COMMANDS},
    "ddip-pl with an unknown command": "import sys; sys.argv = ['ddip-pl', 'x']; from ddip_pl.cli import main; main()",
}


@pytest.mark.parametrize("call", CALLS)
def test_nothing_slow_is_imported(call: str) -> None:
    code = (
        f"import time; start = time.monotonic()\n{CALLS[call]}\nseconds = time.monotonic() - start\n"
        f"import sys; print(*[name for name in {SLOW} if name in sys.modules], f'{{seconds:.2f}} s', sep=', ')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *imported, seconds = done.stdout.splitlines()[-1].split(", ")
    print(call, seconds)
    assert imported == []
