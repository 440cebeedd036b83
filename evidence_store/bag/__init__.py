# SPDX-License-Identifier: Apache-2.0
"""Bags: a case handed to somebody else on a disk, and taken in there (BagIt 1.0, RFC 8493).

    export_case(case, Path("/media/disk/T-1001"), seal)
    verify_bag(Path("/media/disk/T-1001"))
    import_bag(store, Path("/media/disk/T-1001"), …)

Below `data/` lies a store of one case, so that every verifier of stores works on it unchanged.
"""

from evidence_store.bag.export import Exported, export_case
from evidence_store.bag.receive import Imported, import_bag
from evidence_store.bag.verify import BagVerdict, verify_bag

__all__ = ["BagVerdict", "Exported", "Imported", "export_case", "import_bag", "verify_bag"]
