"""``python -m clipkit``, so that ``torchrun -m`` and ``accelerate launch -m`` work."""

import os
import sys

from clipkit.cli import main

code = main()
if code == 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # In about one of a hundred processes torch 2.15 aborts while a rank is torn down ("terminate
    # called without an active exception"), and the launcher would call a finished run failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
sys.exit(code)
