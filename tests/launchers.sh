# launchers.sh: owns the proof of ranks that the real launchers start: Open MPI's mpirun, MPICH's mpiexec, and Slurm (a cluster of two nodes that this script
# starts on this machine and ends again), by the words of recipes/. Those that are not installed are named and left out.
# `make test-launchers`; GPT=./gpt. Debian: apt-get install openmpi-bin mpich slurm-wlm
gpt=$(realpath "${GPT:-./gpt}")
tests=$(realpath "$(dirname "$0")")
recipes=$tests/../recipes
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1   # more ranks than cores
passed=0 failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt_launchers_XXXXXX") || exit 1
end_cluster() {   # and waits: they write to the folder until they end
  local daemons=$(cat "$work"/cluster/*.pid 2> /dev/null)
  [ -n "$daemons" ] && kill $daemons 2> /dev/null
  for _ in $(seq 100); do [ -n "$daemons" ] && kill -0 $daemons 2> /dev/null || return 0; sleep 0.1; done
}
trap 'end_cluster; rm -rf "$work"' EXIT
cd "$work" || exit 1

pass() { passed=$((passed + 1)); }
miss() { failed=$((failed + 1)); printf 'FAILED tests/launchers.sh: %s\n' "$*"; tail -n 5 out err 2> /dev/null; }
check() { local name=$1; shift; if "$@"; then pass; else miss "$name"; fi; }    # check NAME COMMAND...

. "$tests/joined.sh"
. "$tests/ports.sh"
(umask 077; head -c 32 /dev/urandom | base64 > token)
next_port() { free_port; join="--rendezvous 127.0.0.1:$port --token token"; }
rank_of_run() { pgrep -f "^$gpt train .*--out $1( |\$)" | tail -1; }    # some rank's process
left() { for _ in $(seq 100); do pgrep -f "^$gpt train .*--out $1( |\$)" > /dev/null || return 1; sleep 0.1; done; }

"$gpt" train my.txt $tiny --ranks 3 --steps 12 --out here > out 2> err || miss "--ranks 3"

goes_on() {
  local pid before=$(newest "$1")
  "$gpt" train --resume "$1" --ranks 1 --save-every 0 > out 2> err & pid=$!
  sleep 0.5; kill -TERM $pid; wait $pid
  test $? = 143 -a "$(newest "$1")" != "$before"
}

# The same for each launcher: launch N FLAGS... runs gpt train as N ranks
try() {   # NAME
  next_port; launch 3 my.txt $tiny --steps 6 --out "$1" $join > out 2> err
  check "$1: three ranks train" test $? = 0
  check "$1: ... and one speaks" test "$(grep -c '^run ' out)" = 1 -a ! -s err
  next_port; launch 3 --resume "$1" --steps 12 $join > out 2> err
  check "$1: ... and go on: the bits of --ranks 3" same_model here "$1"
  check "$1: ... one log" test "$(grep -c '"kind": "step"' "$1/log.jsonl")" = 12

  next_port; launch 3 my.txt $tiny --steps 100000 --save-every 1 --out "$1.killed" $join > out 2> err & local pid=$!
  check "$1: a run that saves" wait_for_saves "$1.killed" 3
  kill -9 "$(rank_of_run "$1.killed")"
  wait $pid
  check "$1: a rank killed: the launcher says so by its exit code" test $? != 0
  check "$1: ... no rank is left" eval "! left $1.killed"
  check "$1: ... the run goes on" goes_on "$1.killed"

  next_port; launch 3 my.txt $tiny --steps 100000 --save-every 0 --out "$1.asked" $join > out 2> err & pid=$!
  for _ in $(seq 600); do grep -q '"kind": "step"' "$1.asked/log.jsonl" 2> /dev/null && break; sleep 0.05; done
  ask $pid
  wait $pid
  check "$1: asked to stop: no rank is left" eval "! left $1.asked"
  check "$1: ... with a checkpoint" test -n "$(newest "$1.asked")"
}

if command -v mpirun.openmpi > /dev/null; then
  launch() { local n=$1; shift; timeout -k 5 60 mpirun.openmpi -np $n --bind-to none "$gpt" train "$@"; }
  ask() { kill -TERM "$(rank_of_run openmpi.asked)"; }   # one rank tells the others
  try openmpi
  # mpirun itself kills all within milliseconds: nothing new is saved, and what was saved is whole
  next_port; launch 3 my.txt $tiny --steps 100000 --save-every 1 --out openmpi.stopped $join > out 2> err & pid=$!
  wait_for_saves openmpi.stopped 3
  kill -TERM "$(pgrep -f '^mpirun.* --out openmpi.stopped ')"; wait $pid
  check "openmpi: mpirun stopped: no rank is left" eval "! left openmpi.stopped"
  check "openmpi: ... the run goes on" goes_on openmpi.stopped
else echo "Open MPI is not here (mpirun.openmpi): left out"; fi

if command -v mpiexec.hydra > /dev/null; then
  launch() { local n=$1; shift; timeout -k 5 60 mpiexec.hydra -n $n "$gpt" train "$@"; }
  ask() { kill -TERM "$(rank_of_run mpich.asked)"; }
  try mpich
else echo "MPICH is not here (mpiexec.hydra): left out"; fi

# ---- Slurm: two nodes, which are two daemons on two addresses of the loopback ----

begin_cluster() {
  mkdir cluster cluster/state
  local me=$(id -un) names="127.0.0.[1-2]"
  cat > cluster/slurm.conf << END
ClusterName=launchers
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldPort=$((port + 1000))
SlurmctldPidFile=$work/cluster/control.pid
SlurmdPidFile=$work/cluster/%n.pid
SlurmdSpoolDir=$work/cluster/spool.%n
StateSaveLocation=$work/cluster/state
SlurmctldLogFile=$work/cluster/control.log
SlurmdLogFile=$work/cluster/%n.log
SchedulerType=sched/builtin
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
NodeName=$names NodeHostname=$(hostname -s) Port=[$((port + 1001))-$((port + 1002))] CPUs=2
PartitionName=all Nodes=$names Default=YES MaxTime=5 OverSubscribe=FORCE:4 State=UP
END
  export SLURM_CONF=$work/cluster/slurm.conf
  slurmctld -c && sleep 1 && slurmd -N 127.0.0.1 && slurmd -N 127.0.0.2 || return 1
  for _ in $(seq 100); do [ "$(sinfo -h -t idle -o %D)" = 2 ] && return 0; sleep 0.1; done
  return 1
}
if command -v slurmctld > /dev/null && command -v slurmd > /dev/null && command -v srun > /dev/null; then
  if begin_cluster > out 2> err; then
    launch() { local n=$1; shift; timeout -k 5 60 srun -N2 -n$n "$gpt" train "$@"; }
    ask() { scancel -s TERM "$(squeue -h -o %i | head -1)"; }
    try slurm
    launch() { local n=$1; shift; timeout -k 5 60 srun -N2 -n$n --mpi=pmi2 "$gpt" train "$@"; }
    next_port; launch 3 my.txt $tiny --steps 12 --out pmi2 $join > out 2> err
    check "srun --mpi=pmi2" same_model here pmi2

    # the recipe, word for word but for what the machine has and the model's size
    next_port
    { awk '/^```/ { n++; next } n == 1' "$recipes/slurm.md" | sed "s/--nodes=4/--nodes=2/; s/--cpus-per-task=32/--cpus-per-task=1/; s/29400/$port/; s#\./gpt train#$gpt train#; s#--out run#--out recipe $tiny --steps 12#"; } > recipe.sh
    check "the recipe has its script" grep -q '^srun .* --rendezvous "$first:' recipe.sh
    timeout 60 sbatch --wait -o recipe.out recipe.sh > out 2> err
    check "the recipe's job" test $? = 0
    "$gpt" train my.txt $tiny --ranks 2 --steps 12 --out here2 > out 2> err
    check "... the bits of --ranks 2" same_model here2 recipe
    check "... its token is gone" eval '! ls token.[0-9]* 2> /dev/null'

    if command -v mpirun.openmpi > /dev/null; then   # Slurm's numbers in the environment are then those of mpirun's helper on each node
      next_port; timeout -k 5 60 salloc -Q -N2 -n4 mpirun.openmpi -np 4 --map-by ppr:2:node --bind-to none "$gpt" train my.txt ${tiny/--batch 4/--batch 3} --steps 12 --out within $join > out 2> err
      check "mpirun in a job of Slurm" test $? = 0
      "$gpt" train my.txt ${tiny/--batch 4/--batch 3} --ranks 4 --steps 12 --out here4 > out 2> err
      check "... the bits of --ranks 4" same_model here4 within
    fi
  else miss "a cluster of two nodes did not start: $(tail -n 2 cluster/*.log 2> /dev/null)"; fi
else echo "Slurm is not here (slurmctld, slurmd, srun): left out"; fi

echo "tests/launchers.sh: $passed passed, $failed failed"
[ $failed = 0 ]
