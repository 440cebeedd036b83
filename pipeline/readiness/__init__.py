# SPDX-License-Identifier: Apache-2.0
"""Whether everything is in place before an incident: observed facts, and a judgement over them.

model         what a check is, and what it found
checks        the list of checks
judge         a fact and the settings -> faults; `policies`: what a policy says; both pure
observe       one fact of this machine or Audit; `observe_account`, `observe_member`: of the others
organisation  which accounts and Regions there are
look          many facts at once, bounded in time; what could not be read is `unknown`
mend          what AWS lets us put right, on request
page, record  the result as one HTML page; as an item of the case `_readiness`
"""
