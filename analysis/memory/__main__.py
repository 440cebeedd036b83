# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Entry of the process: the limits of every child first, then the worker."""

import sys

from evidence_store.child import main

if __name__ == "__main__":
    # Where jsonschema is installed, volatility3 checks a symbol table with it for 40 seconds.
    sys.modules["jsonschema"] = None  # type: ignore[assignment]
    main()
