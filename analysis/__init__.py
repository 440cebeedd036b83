# SPDX-License-Identifier: Apache-2.0
"""Analysis: reads items as seekable files; what it derives goes back as items."""
