"""``python -m clipkit``, so that ``torchrun -m`` and ``accelerate launch -m`` work."""

import sys

from clipkit.cli import main

sys.exit(main())
