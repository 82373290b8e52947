import sys

from sb3_isaac.cli import main

sys.exit(main())
