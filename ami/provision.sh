#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a Debian 12 into a forensics workstation. As root: provision.sh FOLDER
#
# FOLDER is what `make ami-input` made. Nothing is fetched but Debian packages, and of these only
# what the lock names by version and SHA-256.
set -eu
umask 022
input=$(cd "$1" && pwd)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "provision: $*"; }
die() { echo "provision: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "run it as root"
(cd "$input" && sha256sum --check --strict --quiet SHA256SUMS) || die "the input is not what was prepared"

# -- Debian packages: those of the lock, in the versions of the lock ---------------------------------
say "Debian packages"
pins=/etc/apt/preferences.d/impound
archives=/var/cache/apt/archives
while read -r _sha256 name version; do
  printf 'Package: %s\nPin: version %s\nPin-Priority: 990\n\n' "$name" "$version"
done < "$input/debian.lock" > "$pins"
rm -f "$archives"/*.deb
apt-get update -q
xargs apt-get install -q -y --no-install-recommends --download-only < "$input/packages"
for deb in "$archives"/*.deb; do
  [ -e "$deb" ] || continue
  set -- "$(sha256sum "$deb" | cut -d' ' -f1)" "$(dpkg-deb -f "$deb" Package)" "$(dpkg-deb -f "$deb" Version)"
  grep -qxF "$1 $2 $3" "$input/debian.lock" || die "$2 $3 ($1) is not in the lock (make lock-ami)"
done
xargs apt-get install -q -y --no-install-recommends --no-download < "$input/packages"
if [ -e "$input/amazon-ssm-agent.deb" ]; then
  dpkg --install "$input/amazon-ssm-agent.deb"
fi
rm -f "$pins" "$archives"/*.deb

# -- impound, in an environment of its own -----------------------------------------------------------
say "impound"
python3 -m venv --without-pip /opt/impound
/opt/impound/bin/python -I "$(echo "$input"/wheels/pip-*.whl)/pip" install --quiet \
  --no-index --find-links "$input/wheels" --require-hashes --no-cache-dir --disable-pip-version-check \
  --requirement "$input/requirements.txt"
ln -sf /opt/impound/bin/impound /usr/local/bin/impound

# -- rules and symbols: archives that were prepared, or none yet ------------------------------------
for kind in rules symbols; do
  mkdir -p "/opt/impound/$kind"
  if [ -e "$input/$kind.tar" ]; then
    tar --no-same-owner -xf "$input/$kind.tar" -C "/opt/impound/$kind"
  fi
done

# -- hardening ---------------------------------------------------------------------------------------
say "hardening"
tar --no-same-owner -xf "$input/files.tar" -C /
mask() { for unit in "$@"; do ln -sf /dev/null "/etc/systemd/system/$unit"; done; }
# Nothing may take hold of a volume because it looks like part of something (A volume is evidence).
mask lvm2-monitor.service lvm2-lvmpolld.socket multipathd.service multipathd.socket mdmonitor.service \
  udisks2.service ssh.service ssh.socket
mkdir -p /etc/udev/rules.d /etc/systemd/system-generators /etc/systemd/system/sysinit.target.wants
for rules in 69-lvm.rules 69-lvm-metad.rules 63-md-raid-arrays.rules 64-md-raid-assembly.rules \
  60-multipath.rules 64-btrfs.rules; do
  ln -sf /dev/null "/etc/udev/rules.d/$rules"
done
ln -sf /dev/null /etc/systemd/system-generators/systemd-gpt-auto-generator
ln -sf /usr/lib/systemd/system/nftables.service /etc/systemd/system/sysinit.target.wants/nftables.service

# The root file system by a PARTUUID that no other disk has, evidence made from the same image included.
root=$(findmnt -n -o SOURCE / || true)
partition=$(lsblk -n -o PARTN "$root" 2>/dev/null | tr -d ' ' || true)
if [ -b "$root" ] && [ -n "$partition" ] && command -v update-grub >/dev/null; then
  disk=/dev/$(lsblk -n -o PKNAME "$root")
  uuid=$(cat /proc/sys/kernel/random/uuid)
  sfdisk --no-reread --part-uuid "$disk" "$partition" "$uuid"
  sed -i -E "s#^[^\#[:space:]]+([[:space:]]+/[[:space:]])#PARTUUID=$uuid\1#" /etc/fstab
  update-initramfs -u
  update-grub
  sed -i -E "s#root=[^ ]+#root=PARTUUID=$uuid#" /boot/grub/grub.cfg
else
  say "no disk of its own here: the root file system keeps its name"
fi

if dpkg -s openssh-server >/dev/null 2>&1; then
  apt-get purge -q -y openssh-server openssh-sftp-server
fi

# -- what is here, by path, version and digest -------------------------------------------------------
say "manifest"
mkdir -p /etc/impound
# shellcheck disable=SC2046
/opt/impound/bin/python -I -m pipeline.tools /etc/impound/tools.json $(cat "$input/packages")
say "done"
