# SPDX-License-Identifier: Apache-2.0
"""The AWS stand-in: moto, pinned, with what moto leaves out and this project depends on.

A leaf: it imports moto, what moto brings along and the standard library, nothing of this project;
nothing imports it when the command line starts, and it patches moto only in `call.install()`.

    from pipeline.gameday.aws.stand import InProcess, ServerProcess

Both give the same behaviour and the same interface (`stand.Stand`): in this process for most tests,
as a process of its own where kills, sockets or other programs matter.

    accounts   the three accounts and how to act in them
    call       one request in either mode: where everything below takes hold
    faults     errors, lost answers, delays, damaged bodies on demand, for any service
    s3, kms    strictness that moto lacks; functions: Lambda Invoke of Python functions
    conditions how the simulated AWS behaves
    snapshots, locks, volumes, paging, direct, blocks   EC2 and EBS
    images, recycle, ended, trail   what is left of what was deleted, and the events of it
    instances, scaling   what guards and connects an instance; Auto Scaling
    stacks     what CloudFormation makes of groups and instances
    network, flows, endpoints   machines behind instances; a proxy that enforces the accounts
    sessions   role sessions that end; events: the account in an event
    server     the process; stand: both modes for the caller; seed: what a game day starts from
"""
