# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""volatility3 over a memory item: a process of its own, JSON in, rows out.

This folder is under the Volatility Software License (LICENSES/LicenseRef-VSL-1.0.txt), as
volatility3 asks of what wraps it. Nothing imports it: `analysis.jobs` starts
`python -I -m analysis.memory`.
"""
