#!/usr/bin/env bash
# Installs tcmalloc, which ranks on CPUs use where they find it (hpc_llm/training/allocator.py), as root on Debian or
# Ubuntu. Does nothing where it is present; elsewhere it says what is left out and exits with 0.
set -euo pipefail

present() {
    python3 -c 'import ctypes; ctypes.CDLL("libtcmalloc_minimal.so.4")' 2>/dev/null
}
left_out() {
    echo "install_tcmalloc: $1; left out: ranks on CPUs take more memory (conda: gperftools)"
    exit 0
}
! present || exit 0
command -v apt-get >/dev/null || left_out "this is neither Debian nor Ubuntu"
((EUID == 0)) || left_out "not root"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# Ubuntu since 24.04 has it as …4t64.
for package in libtcmalloc-minimal4 libtcmalloc-minimal4t64; do
    if { apt-get update -q && apt-get install -q -y --no-install-recommends "$package"; } >>"$log" 2>&1; then
        echo "install_tcmalloc: installed $package"
        exit 0
    fi
done
tail -n 20 "$log" >&2
echo "install_tcmalloc: apt-get could not install it; its last lines are above" >&2
exit 1
