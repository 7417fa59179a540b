#!/usr/bin/env bash
# Six runs on a SLURM of one node on loopback, one of which raises and one of which is killed; then the same command again.
# As root on Debian: apt-get install slurmctld slurmd slurm-client munge; pip install --editable '.[slurm]'. Nothing outside a
# temporary folder is written, no service is started, and its own processes are ended by their ids. What it showed stands in LOG.md.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD
bin=${BIN:-$checkout/.venv/bin}
dir=$(mktemp -d)
chmod 755 "$dir"
pids=()
trap 'scancel --me; sleep 3; kill "${pids[@]}" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT

mkdir "$dir"/{state,spool,munge,work}
dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
chmod 600 "$dir/munge/key"
chmod 711 "$dir/munge"
cat > "$dir/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=27817
SlurmdPort=27818
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" &
pids+=($!)
sleep 2
slurmctld -D 2> /dev/null &
pids+=($!)
slurmd -D 2> /dev/null &
pids+=($!)
for _ in $(seq 30); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo

cd "$dir/work"
export PYTHONPATH=$checkout/tests:$checkout OMP_NUM_THREADS=1
sweep=("$bin/rgpo-run" -m task=gym task.env_id=fragile:Fragile-v0 task.num_envs=1 task.num_steps=64 num_iterations=5
    checkpoint_every_s=0 eval_every=0 gradvar_every=0 "+task.env_kwargs.number=1,2,3,4,5,6" hydra/launcher=submitit_slurm)
for attempt in 1 2; do
    echo "== attempt $attempt"
    code=0
    timeout --signal=INT "${PATIENCE:-120}" "${sweep[@]}" || code=$?
    echo "== exit code $code (124: it still waited after ${PATIENCE:-120} s)"
    squeue
done
grep -h '"status"\|"attempt"' results/default/*/state.json
