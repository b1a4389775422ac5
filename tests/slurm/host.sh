#!/usr/bin/env bash
# Init of one made-up host inside fresh mount, net, pid and uts namespaces: bash, since it reaps orphans.
# Usage: host.sh FOLDER NAME ADDRESS/BITS
# The host ends, with everything on it, when this process does: killing it is pulling the plug.
set -euo pipefail
folder=$1 name=$2 address=$3

hostname "$name"
ip link set lo up
mount --bind "$folder/hosts" /etc/hosts

if [[ $name == ctl ]]; then
    # proctrack/cgroup gets a corner of its own, so that it meets no other cluster of this machine.
    if [[ -d $folder/freezer ]]; then mount --bind "$(readlink -f "$folder/freezer")" /sys/fs/cgroup/freezer; fi
    for bridge in lan island; do ip link add "$bridge" type bridge; ip link set "$bridge" up; done
    ip address add "$address" dev lan
    # munge wants folders that everyone may enter, and tests' folders are private.
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -m 755 /run/munge
    (umask 077 && head -c 128 /dev/urandom >/run/munge/key)
    munged --key-file=/run/munge/key --socket=/run/munge/socket --pid-file=/run/munge/pid \
        --log-file=/run/munge/log --seed-file=/run/munge/seed --num-threads=4
    slurmctld -f "$folder/slurm.conf"
else
    # The cable arrives from outside.
    until ip link show eth0 &>/dev/null; do sleep 0.02; done
    ip address add "$address" dev eth0
    ip link set eth0 up
    mount -t tmpfs tmpfs /dev/shm
    slurmd -f "$folder/slurm.conf" -N "$name"
fi
while :; do sleep 1000 & wait $!; done
