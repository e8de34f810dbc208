#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the test guests: mounts what every program expects, runs /run.sh, which a
# test appends to the archive, tells its exit status and powers off. Where there is none, the word
# hcalld.shell on the kernel's command line asks for a shell instead.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=dumb
for kind in debugfs:/sys/kernel/debug securityfs:/sys/kernel/security; do
    [ -d "${kind#*:}" ] && mount -t "${kind%%:*}" none "${kind#*:}"
done
if [ -f /run.sh ]; then
    sh /run.sh
    echo "EXIT: STATUS=$?"
elif grep -qw hcalld.shell /proc/cmdline; then
    # For people: a shell on the console, with job control.
    setsid cttyhack sh
else
    echo "EXIT: no /run.sh in the initramfs, and no hcalld.shell on the command line"
fi
sync
poweroff -f
