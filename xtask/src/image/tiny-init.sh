#!/bin/sh
# Boot script of the tiny guest, called once by busybox init (/etc/inittab).
#
# It honours a NoCloud seed: a second drive labelled `cidata` (ISO 9660 or FAT) with
#   meta-data  instance-id, local-hostname, public-keys (YAML lines or JSON)
#   user-data  a script that begins with `#!`, or `#cloud-config` with ssh_authorized_keys
#
# What it keeps, in /var/lib/rhyzome:
#   boots        how often this disk has booted
#   user-data    the instance-id whose user-data script was started. Delete this file, and the next boot runs the
#                script again; another instance-id does the same.
# As with cloud-init, programs in /var/lib/cloud/scripts/per-boot run at every boot, before user-data. The output of
# both goes to the console and to /var/log/user-data.log.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
state=/var/lib/rhyzome
seed=/run/seed
per_boot=/var/lib/cloud/scripts/per-boot

say() { echo "Rhyzome tiny: $*"; }

prepare() {
    mount -t tmpfs -o mode=755 run /run
    mount -t tmpfs tmp /tmp
    mkdir -p /dev/pts "$seed" "$state" "$per_boot"
    mount -t devpts devpts /dev/pts
    ip link set lo up
    modprobe -a virtio_net isofs
    boots=0
    [ -r "$state/boots" ] && read -r boots <"$state/boots"
    boots=$((boots + 1))
    # A power cut leaves the old count or the new one, never an empty file.
    echo "$boots" >"$state/boots.new" && mv "$state/boots.new" "$state/boots"
}

# Mounts the seed. Drives that are not virtio-blk need drivers that cost time, so they are tried last.
find_seed() {
    drive=$(findfs LABEL=cidata 2>/dev/null || findfs LABEL=CIDATA 2>/dev/null)
    if [ -z "$drive" ] && grep -qsE '^0x0101|^0x0100' /sys/bus/pci/devices/*/class; then
        modprobe -a ata_piix virtio_scsi sr_mod sd_mod
        usleep 700000
        drive=$(findfs LABEL=cidata 2>/dev/null || findfs LABEL=CIDATA 2>/dev/null)
    fi
    [ -n "$drive" ] || return 0
    # Named, so that the kernel loads the driver: mount by itself only tries those that are there.
    mount -t iso9660 -o ro "$drive" "$seed" 2>/dev/null || mount -t vfat -o ro "$drive" "$seed"
}

# One value of meta-data: `key: value` and `"key": "value"` read the same way.
meta() {
    [ -r "$seed/meta-data" ] || return 0
    sed -n "/$1\"\{0,1\} *:/{s/.*$1\"\{0,1\} *: *[\"']\{0,1\}\([^\"',}]*\).*/\1/p;q}" "$seed/meta-data"
}

set_name() {
    read -r name </etc/hostname
    new=$(meta local-hostname)
    if [ -n "$new" ] && [ "$new" != "$name" ]; then
        name=$new
        echo "$name" >/etc/hostname
        printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost\n' "$name" >/etc/hosts
    fi
    echo "$name" >/proc/sys/kernel/hostname
}

# Keys may be a list or a map, in either file: whatever looks like a public key is one.
authorize_keys() {
    files="$seed/meta-data"
    first=
    [ -r "$seed/user-data" ] && read -r first <"$seed/user-data"
    case "$first" in
    '#cloud-config'*) files="$files $seed/user-data" ;;
    esac
    keys=$(grep -ohE '((sk-)?(ssh-(rsa|ed25519|dss)|ecdsa-sha2-nistp[0-9]+)(@openssh\.com)?) [A-Za-z0-9+/=]+( [^]",}'"'"']*)?' $files 2>/dev/null)
    [ -n "$keys" ] || return 0
    mkdir -p -m 700 /root/.ssh
    echo "$keys" >/root/.ssh/authorized_keys
    chmod 600 /root/.ssh/authorized_keys
}

# DHCP on every interface at once; udhcpc stays and renews. Waits up to 6 s for the first leases.
network() {
    waiting=
    for path in /sys/class/net/*; do
        nic=${path##*/}
        [ "$nic" = lo ] && continue
        udhcpc -i "$nic" -b -S -t 6 -T 1 -A 3 -O mtu -O staticroutes -x "hostname:$name" \
            -s /etc/rhyzome/udhcpc -p "/run/udhcpc.$nic.pid" >/dev/null 2>&1 &
        waiting="$waiting $!"
    done
    for process in $waiting; do wait "$process"; done
}

greet() {
    addresses=$(ip -4 -o address show scope global | sed -n 's/.* inet \([^ ]*\).*/\1/p')
    say "boots=$boots"
    # Unquoted: the addresses are lines, and become words of one.
    say "$name is up, addresses" ${addresses:-none}
}

# Runs a program with its output on the console and in the log. Not by a plain pipe: that would wait for whatever
# daemon the program leaves behind.
run_logged() {
    pipe=/run/output.${1##*/}
    mkfifo "$pipe"
    tee -a /var/log/user-data.log <"$pipe" &
    (
        "$@"
        echo "Rhyzome tiny: ${1##*/} ended with $?"
    ) </dev/null >"$pipe" 2>&1
    rm "$pipe"
}

run_scripts() {
    for script in "$per_boot"/*; do
        [ -x "$script" ] && run_logged "$script"
    done
    case "$first" in
    '#!'*) ;;
    *) return 0 ;;
    esac
    id=$(meta instance-id)
    id=${id:-none}
    [ "$(cat "$state/user-data" 2>/dev/null)" = "$id" ] && return 0
    # Marked before it runs: a script that turns the machine off must not run again.
    echo "$id" >"$state/user-data"
    sync
    cp "$seed/user-data" /run/user-data
    chmod 700 /run/user-data
    run_logged /run/user-data
}

prepare
find_seed
set_name
authorize_keys
network
greet
run_scripts >/dev/console &
# The power button: acpid calls /etc/acpi/PWRF/00000080, which says poweroff.
modprobe -a button evdev
acpid
