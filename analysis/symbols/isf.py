# SPDX-License-Identifier: Apache-2.0
"""Put a kernel's names and types together to an ISF, the symbol table that volatility3 reads."""

from __future__ import annotations

import base64
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from analysis.errors import SymbolsError
from analysis.ram import Ram
from analysis.symbols.btf import VOID, Btf
from analysis.symbols.kernel import (
    Kernel,
    Names,
    kernels,
    parse_kallsyms,
    read_banner,
    read_btf,
    read_names,
)
from analysis.symbols.windows import PDB_NAME, Pdb

TEXT = 0xFFFFFFFF81000000  # where every x86-64 kernel is linked

# BTF has no types of ordinary globals. These are what volatility3 dereferences, and a few of their
# kind; what a kernel has not is left out. "*" pointer, "[n]" array, else the name of a type.
GLOBALS: Mapping[str, str] = {
    name: kind
    for kind, names in {
        "struct task_struct": "init_task",
        "struct files_struct": "init_files",
        "struct mm_struct": "init_mm",
        "struct pid_namespace": "init_pid_ns",
        "struct list_head": "modules net_namespace_list super_blocks tty_drivers bpf_kallsyms "
        "ftrace_mod_maps ftrace_ops_trampoline_list vmap_area_list slab_caches",
        "*struct kset": "module_kset",
        "struct mod_tree_root": "mod_tree",
        "long unsigned int": "module_addr_min module_addr_max vmemmap_base page_offset_base "
        "vmalloc_base kallsyms_relative_base max_pfn phys_base",
        "*struct printk_ringbuffer": "prb",
        "*char": "log_buf saved_command_line",
        "unsigned int": "log_buf_len log_end log_first_idx log_next_idx pidhash_shift "
        "kallsyms_num_syms nr_cpu_ids",
        "*struct hlist_head": "pid_hash",
        "struct idr": "prog_idr map_idr link_idr",
        "struct latch_tree_root": "bpf_tree",
        "struct resource": "iomem_resource ioport_resource",
        "struct timekeeper": "timekeeper timekeeper_data",
        "struct timespec": "wall_to_monotonic total_sleep_time",
        "struct atomic_notifier_head": "keyboard_notifier_list panic_notifier_list",
        "*struct ftrace_ops": "ftrace_ops_list",
        "struct ftrace_ops": "ftrace_list_end",
        "[256]struct gate_struct": "idt_table",
        "[0]*void": "sys_call_table ia32_sys_call_table",
        "[0]struct kernel_symbol": "__start___ksymtab __stop___ksymtab __start___ksymtab_gpl "
        "__stop___ksymtab_gpl",
        "[0]int": "__start___tracepoints_ptrs __stop___tracepoints_ptrs kallsyms_offsets",
        "[0]unsigned int": "kallsyms_markers",
        "[0]unsigned char": "kallsyms_names kallsyms_seqs_of_names",
        "[0]char": "kallsyms_token_table _text _stext _etext _sinittext _einittext _end _sdata "
        "_edata __bss_start __bss_stop",
        "[0]short unsigned int": "kallsyms_token_index",
        "[0]long unsigned int": "kallsyms_addresses height_to_maxindex height_to_maxnodes",
        "[0]struct pgd_t": "init_top_pgt init_level4_pgt swapper_pg_dir",
        "[0]*struct pg_data_t": "node_data",
        "**struct mem_section": "mem_section",
        "*struct page": "mem_map",
        "struct tcp_seq_afinfo": "tcp4_seq_afinfo tcp6_seq_afinfo",
        "struct udp_seq_afinfo": "udp4_seq_afinfo udp6_seq_afinfo udplite4_seq_afinfo "
        "udplite6_seq_afinfo",
        "struct seq_operations": "raw_seq_ops raw6_seq_ops udp_seq_ops udp6_seq_ops arp_seq_ops "
        "unix_seq_ops tcp_seq_ops tcp4_seq_ops tcp6_seq_ops packet_seq_ops",
        "struct file_operations": "socket_file_ops pipefifo_fops shmem_file_operations",
        "struct dentry_operations": "sockfs_dentry_operations",
        "struct sched_class": "fair_sched_class rt_sched_class dl_sched_class idle_sched_class "
        "stop_sched_class ext_sched_class",
        "[19]struct taint_flag": "taint_flags",
        "int": "cap_last_cap num_registered_fb",
        "[32]*struct fb_info": "registered_fb",
        "[0]struct nf_hook_list": "nf_hooks",
        "struct vm_struct": "vmlist",
        "struct uts_namespace": "init_uts_ns",
        "struct net": "init_net",
        "struct cred": "init_cred",
        "struct nsproxy": "init_nsproxy",
        "struct user_namespace": "init_user_ns",
    }.items()
    for name in names.split()
}  # fmt: skip


def build(
    names: Names, types: Btf, *, offset: int, banner: bytes, producer: tuple[str, str]
) -> dict[str, Any]:
    """Return the ISF of a kernel.

    Args:
        names: symbols at run-time addresses.
        types: its types.
        offset: the KASLR shift, bytes; taken off what lies in the kernel's image, and only there:
            per-CPU offsets and absolute symbols stay.
        banner: `linux_banner`, with newline and NUL; volatility3 finds a table by it.
        producer: name and version of what made it.

    Raises: SymbolsError if the result cannot be of this kernel.
    """
    first, last = names["_text"], names["_end"]
    if first - offset != TEXT:
        raise SymbolsError(
            f"_text would be linked at {first - offset:#x}, not at {TEXT:#x}: the offset of this "
            "kernel and its symbols are not of one boot"
        )
    for need in ("task_struct", "list_head", "mm_struct", "module"):
        if not types.user_types.get(need, {}).get("size"):
            raise SymbolsError(f"the BTF has no struct {need}: it is not a kernel's")
    if names.get("init_task") is None:
        raise SymbolsError("kallsyms have no data symbols: built without CONFIG_KALLSYMS_ALL")
    symbols: dict[str, Any] = {}
    for name, (_, address) in names.symbols.items():
        shifted = address - offset if first <= address <= last else address
        symbols[name] = {"address": shifted, "type": VOID}
    for name, text in GLOBALS.items():
        if name in symbols and (kind := _type(text, types)):
            symbols[name]["type"] = kind
    if "tk_core" in symbols and (kind := _timekeeping(types)):
        symbols["tk_core"]["type"] = kind
    symbols["linux_banner"].update(
        type={"kind": "array", "count": len(banner), "subtype": {"kind": "base", "name": "char"}},
        constant_data=base64.b64encode(banner).decode(),
    )
    return {
        "metadata": {"format": "6.2.0", "producer": {"name": producer[0], "version": producer[1]}},
        "base_types": types.base_types,
        "user_types": types.user_types,
        "enums": types.enums,
        "symbols": symbols,
    }


def _type(text: str, types: Btf) -> dict[str, Any] | None:
    if text.startswith("*"):
        inner = _type(text[1:], types)
        return {"kind": "pointer", "subtype": inner} if inner else None
    if match := re.match(r"\[([0-9]+)\]", text):
        inner = _type(text[match.end() :], types)
        return {"kind": "array", "count": int(match[1]), "subtype": inner} if inner else None
    kind, _, name = text.rpartition(" ")
    if kind in ("struct", "union"):
        return {"kind": kind, "name": name} if name in types.user_types else None
    return {"kind": "base", "name": text} if text in types.base_types else None


def _timekeeping(types: Btf) -> dict[str, Any] | None:
    """`tk_core` is of an anonymous struct of a sequence counter and the time keeper."""
    for name, made in types.user_types.items():
        if set(made["fields"]) >= {"seq", "timekeeper"} and made["kind"] == "struct":
            return {"kind": "struct", "name": name}
    return None


def from_image(ram: Ram, producer: tuple[str, str]) -> tuple[Kernel, dict[str, Any]]:
    """Return the kernel of an image and its ISF, from the image alone.

    Raises: SymbolsError, with the reason for each kernel that was tried.
    """
    if ram.machine not in ("", "x86-64"):
        raise SymbolsError(f"memory of {ram.machine}: only x86-64 is analysed")
    reasons: list[str] = []
    for kernel in kernels(ram):
        if kernel.machine not in ("x86-64", "unknown"):
            raise SymbolsError(f"memory of {kernel.machine}: only x86-64 is analysed")
        try:
            return kernel, _of_kernel(ram, kernel, producer)
        except (SymbolsError, KeyError) as e:
            why = f"it has no {e}" if isinstance(e, KeyError) else str(e)
            reasons.append(f"kernel {kernel.release} at {kernel.address:#x}: {why}")
    raise SymbolsError("; ".join(dict.fromkeys(reasons)) or "no VMCOREINFO note of a Linux kernel")


def _of_kernel(ram: Ram, kernel: Kernel, producer: tuple[str, str]) -> dict[str, Any]:
    offset, _ = kernel.offset, kernel.phys_base
    names = read_names(ram, kernel)
    banner = read_banner(ram, kernel, names)
    if not banner.startswith(f"Linux version {kernel.release} ".encode()):
        raise SymbolsError("linux_banner is of another kernel")
    types = Btf(read_btf(ram, kernel, names))
    return build(names, types, offset=offset, banner=banner, producer=producer)


def from_side_cars(
    ram: Ram, *, btf: bytes, kallsyms: bytes, producer: tuple[str, str]
) -> tuple[Kernel, dict[str, Any]]:
    """As `from_image`, with BTF and /proc/kallsyms copied from the live kernel (before 6.0).

    Raises: SymbolsError.
    """
    names, types = parse_kallsyms(kallsyms), Btf(btf)
    reasons: list[str] = []
    for kernel in kernels(ram):
        try:
            banner = read_banner(ram, kernel, names)
            made = build(names, types, offset=kernel.offset, banner=banner, producer=producer)
        except (SymbolsError, KeyError) as e:
            reasons.append(f"kernel {kernel.release} at {kernel.address:#x}: {e}")
        else:
            return kernel, made
    raise SymbolsError("; ".join(dict.fromkeys(reasons)) or "no VMCOREINFO note of a Linux kernel")


MAX_GIVEN = 1 << 30


def from_given(ram: Ram, tables: Iterable[tuple[str, bytes]]) -> tuple[Kernel, dict[str, Any]]:
    """Return the kernel of an image and the first of these ISFs that is of it, by its banner.

    Args:
        ram: the memory.
        tables: name and content of each, JSON plain or compressed by gzip or xz.

    Raises: SymbolsError, saying what each was.
    """
    found = [kernel for kernel in kernels(ram) if kernel.machine == "x86-64"]
    if not found:
        raise SymbolsError("no VMCOREINFO note of a Linux kernel on x86-64")
    reasons: list[str] = []
    for name, content in tables:
        try:
            isf, banner = read_isf(content)
        except SymbolsError as e:
            reasons.append(f"{name}: {e}")
            continue
        for kernel in found:
            if banner.startswith(f"Linux version {kernel.release} ".encode()) and any(
                True for _ in ram.find(banner)
            ):
                return kernel, isf
        reasons.append(f"{name} is of another kernel")
    raise SymbolsError("; ".join(reasons) or "none were given")


def read_isf(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return an ISF and the banner of its kernel. Raises: SymbolsError if it is none of Linux."""
    isf, whose = read_table(content)
    if isinstance(whose, Pdb):
        raise SymbolsError(f"not the ISF of a Linux kernel: it is of {whose.name}")
    return isf, whose


def read_table(content: bytes) -> tuple[dict[str, Any], bytes | Pdb]:
    """Return an ISF and whose it is: the banner of a Linux kernel, or the PDB it was made from.

    Raises: SymbolsError if it is neither.
    """
    try:
        if content.startswith(b"\x1f\x8b"):
            plain = zlib.decompressobj(31).decompress(content, MAX_GIVEN)
        elif content.startswith(b"\xfd7zXZ"):
            plain = lzma.LZMADecompressor().decompress(content, MAX_GIVEN)
        else:
            plain = content
        isf = json.loads(plain)
        parts = ("base_types", "user_types", "enums", "symbols")
        if not all(isinstance(isf[part], dict) for part in parts):
            raise SymbolsError("not the ISF of a kernel: a part is no object")
        if "windows" in isf.get("metadata", {}):
            return isf, _pdb(isf["metadata"]["windows"]["pdb"])
        banner = base64.b64decode(isf["symbols"]["linux_banner"]["constant_data"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error, lzma.LZMAError) as e:
        raise SymbolsError(f"not the ISF of a kernel: {type(e).__name__} {e}") from e
    if len(banner) < 20 or not banner.startswith(b"Linux version "):
        raise SymbolsError("its linux_banner is none")
    return isf, banner


def _pdb(said: dict[str, Any]) -> Pdb:
    name, key, age = str(said["database"]).lower(), str(said["GUID"]).upper(), said["age"]
    if not re.fullmatch("[0-9A-F]{32}", key) or type(age) is not int or not 0 <= age < 1 << 32:
        raise SymbolsError("not the ISF of a PDB: its GUID or age is none")
    if not PDB_NAME.fullmatch(name):
        raise SymbolsError(f"not the ISF of a PDB: its name would be {name[:60]!r}")
    return Pdb(name, key, age)
