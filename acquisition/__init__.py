# SPDX-License-Identifier: Apache-2.0
"""Acquisition: reads sources and hands every byte and fact to the evidence store."""
