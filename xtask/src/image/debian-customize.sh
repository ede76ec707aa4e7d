#!/bin/sh
# Makes a fresh Debian, in the folder $1, a guest of ours: cloud-init with the NoCloud seed only, serial console.
set -eu
root=$1

cat >"$root/etc/cloud/cloud.cfg.d/90_rhyzome.cfg" <<'END'
datasource_list: [NoCloud, None]
# The mirror is reached on demand: the first boot asks nobody.
package_update: false
package_upgrade: false
apt: {preserve_sources_list: true}
# An RSA key takes a guest without KVM many seconds.
ssh_genkeytypes: [ed25519, ecdsa]
# C.UTF-8, which Debian has by itself; others would have to be generated first.
locale: "false"
END
echo 'datasource: NoCloud' >"$root/etc/cloud/ds-identify.cfg"
echo 'policy: enabled' >>"$root/etc/cloud/ds-identify.cfg"

cat >"$root/etc/fstab" <<'END'
LABEL=rhyzome-debian / ext4 defaults,noatime 0 1
LABEL=BOOT /boot/firmware vfat defaults,umask=0077,nofail 0 2
END
mkdir -p "$root/boot/firmware"

# Firmware reads kernels from the FAT partition: each new kernel and initramfs is copied there.
mkdir -p "$root/etc/kernel/postinst.d" "$root/etc/initramfs/post-update.d"
cat >"$root/etc/initramfs/post-update.d/zz-rhyzome" <<'END'
#!/bin/sh
# Copies the kernel whose initramfs was just made to where syslinux finds it.
set -e
version=$1
mountpoint -q /boot/firmware || exit 0
for name in vmlinuz initrd.img; do
    cp "/boot/$name-$version" "/boot/firmware/$name.new"
    mv "/boot/firmware/$name.new" "/boot/firmware/$name"
done
END
chmod 755 "$root/etc/initramfs/post-update.d/zz-rhyzome"

# Host keys are the guest's own, made by cloud-init at its first boot; so is the machine id.
rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
echo debian >"$root/etc/hostname"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*_* "$root"/var/log/apt "$root"/var/log/dpkg.log
chroot "$root" systemctl enable serial-getty@ttyS0.service systemd-networkd.service >/dev/null 2>&1
