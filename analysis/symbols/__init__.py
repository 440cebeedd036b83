# SPDX-License-Identifier: Apache-2.0
"""Symbol tables of a Linux kernel, made from its own memory: no debug package, no network.

VMCOREINFO says where kallsyms lies, kallsyms where BTF lies; BTF has the types. All three are read
from a hostile image, so this runs in a limited child (`analysis.symbols.job`).
"""
