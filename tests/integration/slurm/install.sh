#!/usr/bin/env bash
# Slurm with its accounts, munge and an ssh server from Debian's packages. Nothing is started and nothing under /etc is
# changed: of the database there are the programs alone.
set -euo pipefail
for command in slurmctld slurmd slurmdbd mariadbd mariadb mariadb-install-db munged sbatch sshd; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing=1
done
[ -z "${missing:-}" ] && exit 0
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
as_root apt-get update -q
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm slurmdbd mariadb-server-core mariadb-client-core munge openssh-server openssh-client
