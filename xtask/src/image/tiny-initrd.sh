#!/bin/busybox sh
# First program of the tiny guest: finds the root file system on whichever disk it is, and goes there.
export PATH=/bin
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
while read -r module; do busybox insmod "/lib/$module.ko"; done </lib/order

tries=0
until root=$(busybox findfs LABEL=rhyzome-root 2>/dev/null); do
    tries=$((tries + 1))
    if [ "$tries" -gt 200 ]; then
        echo "Rhyzome tiny: no disk with a file system labelled rhyzome-root"
        busybox poweroff -f
    fi
    busybox usleep 20000
done
if ! busybox mount -t ext4 -o rw,noatime "$root" /root; then
    echo "Rhyzome tiny: cannot mount $root"
    busybox poweroff -f
fi
for place in dev proc sys; do busybox mount -o move "/$place" "/root/$place"; done
exec busybox switch_root /root /sbin/init
