"""`python -m lightning_vlm`, as `lightning-vlm`."""

import sys

from lightning_vlm.cli import main

sys.exit(main())
