# SPDX-License-Identifier: Apache-2.0
"""Pipeline: composition. The only place that builds clients, reads settings or prints."""

__version__ = "0.1.0"
