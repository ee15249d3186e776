#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two hosts on one machine: network namespaces with an address each and a cable between them, and nothing else to reach.
#   unshare --user --map-root-user --net --mount --pid --fork --kill-child --mount-proc bash hosts.sh LOGS COMMAND0 COMMAND1
# Runs COMMAND0 on 10.77.0.1 and COMMAND1 on 10.77.0.2; without commands it only shows that there could be hosts.
# Everything is inside the caller's own namespaces, and is gone when this script is.
set -euo pipefail

mount -t tmpfs tmpfs /run # where `ip netns` keeps the names
for rank in 0 1; do ip netns add "host$rank"; done
ip link add cable netns host0 type veth peer name cable netns host1
for rank in 0 1; do
    ip -n "host$rank" addr add "10.77.0.$((rank + 1))/24" dev cable
    ip -n "host$rank" link set lo up
    ip -n "host$rank" link set cable up
done
[ $# -eq 0 ] && exit 0

export GLOO_SOCKET_IFNAME=cable TP_SOCKET_IFNAME=cable
logs=$1 pids=()
for rank in 0 1; do
    shift
    ip netns exec "host$rank" bash -c "$1" >"$logs/host$rank.log" 2>&1 &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
exit "$status"
