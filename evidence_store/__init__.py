# SPDX-License-Identifier: Apache-2.0
"""Evidence store: items, digests, ledger, checkpoints, signatures. The ground layer."""
