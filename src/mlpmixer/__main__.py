"""python -m mlpmixer is the command mlpmixer."""

import sys

from mlpmixer.cli import main

sys.exit(main())
