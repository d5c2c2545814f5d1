"""``python -m rnnjax convert SOURCE TARGET``, also installed as ``rnnjax``."""

import sys

from rnnjax.interop.convert import main

if __name__ == "__main__":
    sys.exit(main())
