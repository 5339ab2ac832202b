#!/usr/bin/env bash
# Installs what tools/local_slurm needs: Slurm, slurmdbd, munge and MariaDB, as root on Debian or Ubuntu.
# None of them is started or enabled as a service: tools/local_slurm runs its own, under its own folder.
# Does nothing where everything is present; elsewhere it says what is left out and exits with 0.
set -euo pipefail

PACKAGES=(slurm-wlm slurmdbd munge mariadb-server)
BINARIES=(slurmctld slurmd slurmdbd munged mungekey mariadbd mariadb-install-db mariadb sbatch srun sacct)
UNITS=(slurmctld slurmd slurmdbd munge mariadb)
POLICY=/usr/sbin/policy-rc.d

export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

missing=()
for binary in "${BINARIES[@]}"; do
    command -v "$binary" >/dev/null || missing+=("$binary")
done
if ((${#missing[@]} == 0)); then
    echo "install_slurm: everything is present ($(slurmctld -V))"
    exit 0
fi

left_out() {
    echo "install_slurm: $1; left out: ${missing[*]}. tools/local_slurm and tests/slurm need them:" \
        "apt-get install ${PACKAGES[*]}"
    exit 0
}
command -v apt-get >/dev/null || left_out "this is neither Debian nor Ubuntu"
((EUID == 0)) || left_out "not root"

# A package that was here before keeps its services as they are; only what comes now is held back.
fresh_units=()
for unit in "${UNITS[@]}"; do
    [[ -e /lib/systemd/system/$unit.service ]] || fresh_units+=("$unit.service")
done

# Debian asks this script before it starts a service; 101 means "not allowed". The owner's own comes back afterwards.
saved=$(mktemp -d)
restore_policy() {
    rm -f "$POLICY"
    if [[ -e $saved/policy-rc.d ]]; then
        cp -p "$saved/policy-rc.d" "$POLICY"
    fi
    rm -rf "$saved"
}
[[ ! -e $POLICY ]] || cp -p "$POLICY" "$saved/policy-rc.d"
trap restore_policy EXIT
printf '#!/bin/sh\nexit 101\n' >"$POLICY"
chmod 755 "$POLICY"

log=$saved/apt.log
if ! { apt-get update -q && apt-get install -q -y --no-install-recommends "${PACKAGES[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "install_slurm: apt-get could not install ${PACKAGES[*]}; its last lines are above" >&2
    exit 1
fi
if command -v systemctl >/dev/null && ((${#fresh_units[@]} > 0)); then
    systemctl disable --quiet "${fresh_units[@]}" 2>/dev/null || true # without it they would start at the next boot
fi
echo "install_slurm: installed ${PACKAGES[*]} ($(slurmctld -V))"
