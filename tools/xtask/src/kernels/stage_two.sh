# The first process of a guest, with the host's root file system under it: mounts what the lab
# needs, runs the command that was left in the directory for results, and ends the guest.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C
umount /proc /sys 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm /run/netns
mount -t devpts pts /dev/pts
mount -t tmpfs memory /dev/shm
# Not the host's own: what is written there would be seen through the overlay.
mkdir -p /lib/modules
mount -t tmpfs memory /lib/modules
mkdir /lib/modules/"$(uname -r)"
mount --bind "$(cat /mnt/results/modules)" /lib/modules/"$(uname -r)"
# Nobody else loads drivers for what is there: first of the buses, then of what they found.
for alias in /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias; do
    [ -e "$alias" ] && modprobe -q "$(cat "$alias")"
done
ip link set lo up
cd /mnt/results
echo "guest: $(uname -r) is up after $(cut -d' ' -f1 /proc/uptime) s"
sh ./command
echo $? >exit-code
sync
# The file systems that programs would be read from are going: only the shell itself is left.
echo o >/proc/sysrq-trigger
while :; do :; done
