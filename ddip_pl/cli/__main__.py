"""`python -m ddip_pl.cli` runs `ddip-pl`."""

import sys

from ddip_pl.cli import main

sys.exit(main())
