#!/bin/busybox sh
# The first process of a guest: makes the host's root file system its own, readable and with
# everything written to it kept in memory, and becomes stage two in there.
#
# It must be the first process itself that changes its root: the kernel looks for modprobe in it.
export PATH=/bin
/bin/busybox --install -s /bin
fail() {
    echo "guest: $*"
    poweroff -f
}
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    insmod "$module" || fail "cannot load $module"
done
options=trans=virtio,version=9p2000.L,msize=1048576
mount -t 9p -o ro,cache=loose,$options root /lower || fail "the host's root is not there"
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work root /root ||
    fail "no overlay"
for directory in proc sys dev run mnt; do
    mkdir -p /root/$directory
    [ $directory = dev ] || mount -t tmpfs memory /root/$directory
done
mount -t devtmpfs dev /root/dev
mkdir /root/mnt/results
mount -t 9p -o rw,$options results /root/mnt/results || fail "no directory for results"
cp /stage-two /root/mnt/stage-two
umount /proc
umount /dev
exec switch_root /root /bin/sh /mnt/stage-two
