# test_join.sh: owns the proof of ranks that others started (--rendezvous, comm_tcp.c) from the command line: by hand, by Slurm's and MPI's environment, the
# same bits as --ranks, resuming, a rank killed or stopped by a signal, refusals; and two hosts where the system lets us make network namespaces.
# `bash tests/test_join.sh`; GPT=./gpt
gpt=$(realpath "${GPT:-./gpt}")
tests=$(realpath "$(dirname "$0")")
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
passed=0 failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/gpt_join_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

pass() { passed=$((passed + 1)); }
miss() { failed=$((failed + 1)); printf 'FAILED tests/test_join.sh: %s\n' "$*"; }
check() { local name=$1; shift; if "$@"; then pass; else miss "$name"; fi; }    # check NAME COMMAND...
refuse() {   # refuse CODE NEEDLE ARGUMENTS...: one line on stderr that has NEEDLE
  local code=$1 needle=$2; shift 2
  "$gpt" train my.txt $tiny --out no "$@" > out 2> err
  local got=$?
  if [ $got = "$code" ] && grep -qF -- "$needle" err && [ "$(wc -l < err)" = 1 ] && [ ! -e no ]; then pass; else miss "$* (exit $got, expected $code: $(head -c 300 err))"; fi
}

. "$tests/joined.sh"
. "$tests/ports.sh"
head -c 32 /dev/urandom | base64 > token; chmod 600 token

# N processes, each with the environment that `environment RANK` prints; their words in out.R and err.R, their numbers in pids
begin() {   # WORLD FLAGS...
  local world=$1; shift
  free_port
  pids=()
  for ((r = 0; r < world; r++)); do
    env $(environment $r $world) timeout -k 5 60 "$gpt" train "$@" --rendezvous 127.0.0.1:$port --token token $(numbers $r $world) > out.$r 2> err.$r & pids[r]=$!
  done
}
end() { codes=""; for pid in "${pids[@]}"; do { wait $pid; } 2> /dev/null; codes="$codes $?"; done; }   # the shell need not say that one was killed
by_hand() { environment() { :; }; numbers() { echo "--rank $1 --world $2"; }; }
by_launcher() { numbers() { :; }; }
quiet() { ! grep -hv '^gpt: warning: .* computes .* times as long' err.*; }    # a busy machine may slow a rank

"$gpt" train my.txt $tiny --ranks 3 --steps 12 --out here > out 2> err
by_hand; begin 3 my.txt $tiny --steps 12 --out joined; end
check "three ranks by hand: exit codes" test "$codes" = " 0 0 0"
check "... nothing on stderr" quiet
check "... the bits of --ranks 3" same_model here joined
check "... one banner, one line a step" test "$(grep -c '^step ' out.0)" = "$(grep -c '^step ' out)" -a ! -s out.1 -a ! -s out.2
begin 3 my.txt $tiny --steps 12 --zero 1 --out zero; end
check "... with --zero 1 the weights of without, but for the order in which the norm is added" test "$codes" = " 0 0 0"
"$gpt" train my.txt $tiny --ranks 3 --zero 1 --steps 12 --out zero_here > out 2> err
check "... the bits of --ranks 3 --zero 1" same_model zero_here zero

by_launcher
environment() { echo "SLURM_PROCID=$1 SLURM_STEP_NUM_TASKS=$2 SLURM_STEP_TASKS_PER_NODE=$2 SLURM_NODEID=0"; }
begin 2 my.txt $tiny --steps 4 --out slurm; end
check "Slurm's environment" test "$codes" = " 0 0" -a -n "$(newest slurm)"
environment() { echo "OMPI_COMM_WORLD_RANK=$1 OMPI_COMM_WORLD_SIZE=$2 OMPI_COMM_WORLD_LOCAL_SIZE=$2"; }
begin 2 --resume slurm --steps 12; end
check "... resumed with Open MPI's" test "$codes" = " 0 0"
environment() { echo "PMI_RANK=$1 PMI_SIZE=$2"; }
begin 4 my.txt ${tiny/--batch 4/--batch 3} --steps 4 --out mpich; end
check "MPICH's environment" test "$codes" = " 0 0 0 0" -a -n "$(newest mpich)"
"$gpt" train my.txt $tiny --ranks 2 --steps 12 --out twice > out 2> err
check "stopped and resumed: the bits of a run never stopped" same_model twice slurm

# ---- loss ----

process_of() { local kids=$(cat /proc/${pids[$1]}/task/*/children); echo ${kids%% *}; }     # below timeout
by_hand
for victim in 0 1 2; do
  begin 3 my.txt $tiny --steps 100000 --save-every 1 --out lost$victim
  wait_for_saves lost$victim 3
  kill -9 $(process_of $victim); end
  cat err.* > errors
  check "rank $victim killed: all end with 3" test "$(echo $codes | tr ' ' '\n' | grep -c '^3$')" = 2
  check "... one line, with rank, operation, bytes, step and what to do" sh -c "[ \$(grep -vc 'computes .* times as long' errors) = 1 ] && grep -qE '^gpt: rank $victim has ended .* bytes .*step [0-9]+.*--resume lost$victim' errors || { cat errors; exit 1; }"
  "$gpt" train --resume lost$victim --ranks 1 --steps 100000 --save-every 0 > out 2> err & pid=$!
  sleep 0.5; kill -TERM $pid; wait $pid
  check "... the run goes on" test $? = 143
done
begin 2 my.txt $tiny --steps 100000 --save-every 0 --out asked
for _ in $(seq 400); do grep -q '"kind": "step"' asked/log.jsonl 2> /dev/null && break; sleep 0.02; done
kill -TERM $(process_of 1); end
check "SIGTERM to one rank: all stop" test "$codes" = " 143 143"
check "... with a checkpoint" test -n "$(newest asked)"

# ---- refusals ----

printf short > short; chmod 600 short
cp token open; chmod 644 open
refuse 2 "--rendezvous needs --token FILE" --rendezvous 127.0.0.1:$port --rank 0 --world 2
refuse 2 "--token short: has 5 bytes, at least 16 are needed" --rendezvous 127.0.0.1:$port --rank 0 --world 2 --token short
refuse 2 "--token open: others may read it (mode 644); chmod 600 open" --rendezvous 127.0.0.1:$port --rank 0 --world 2 --token open
refuse 2 "missing" --rendezvous 127.0.0.1:$port --rank 0 --world 2 --token missing
refuse 2 "--rank needs --rendezvous" --rank 1
refuse 2 "--world needs --rendezvous" --world 2
refuse 2 "--token needs --rendezvous" --token token
refuse 2 "--rank 2: with --world 2 ranks are numbered from 0 to 1" --rendezvous 127.0.0.1:$port --rank 2 --world 2 --token token
refuse 2 "no launcher (Slurm, MPI) says which rank this is" --rendezvous 127.0.0.1:$port --token token
refuse 2 "--ranks 2 and --rendezvous are both given" --rendezvous 127.0.0.1:$port --token token --ranks 2 --rank 0 --world 2
for wrong in 127.0.0.1 :80 127.0.0.1: 127.0.0.1:0 127.0.0.1:65536 127.0.0.1:8x; do
  refuse 2 "--rendezvous $wrong: HOST:PORT is needed" --rendezvous $wrong --token token --rank 0 --world 2
done
export SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4
refuse 2 "Slurm started 4 processes: for one run give all --rendezvous HOST:PORT --token FILE" --steps 1
unset SLURM_PROCID SLURM_STEP_NUM_TASKS
by_hand
numbers() { echo "--rank $1 --world $2 --lr 0.00$(($1 + 1))"; }
begin 2 my.txt $tiny --steps 4 --out no
wait ${pids[1]}; code=$?
kill $(process_of 0) 2> err; end
check "a rank with other flags is refused" test $code = 2
check "... with a sentence" grep -q "rank 1 was refused by 127.0.0.1:$port .*: its flags or its text are not those of rank 0" err.1
check "... and nothing is left" test ! -e no
numbers() { echo "--rank $1 --world $2 --init $([ $1 = 0 ] && echo here || echo joined2)"; }
mkdir joined2 && cp -r "$(newest zero)" joined2/
begin 2 my.txt --batch 4 --tokens-per-step 384 --steps 4 --out no
wait ${pids[1]}; code=$?
kill $(process_of 0) 2> err; end
check "a rank with other weights to begin with is refused" test $code = 2
check "... with a sentence" grep -q "its flags or its text are not those of rank 0" err.1
rm -rf no
by_hand
begin 2 my.txt $tiny --steps 100000 --save-every 0 --out no
for _ in $(seq 400); do grep -q '"kind": "step"' no/log.jsonl 2> /dev/null && break; sleep 0.02; done
# while they train, nobody listens any more; before, only at the address given: its sockets are of 127.0.0.1
check "all sockets are of the loopback device" sh -c "for p in $(process_of 0) $(process_of 1); do ls -l /proc/\$p/fd | grep -o 'socket:.[0-9]*' | tr -dc '0-9\n'; done | sort > inodes; awk 'NR > 1 { print \$10, \$2, \$4 }' /proc/net/tcp | sort > all; join inodes all > ours; [ -s ours ] && ! grep -qvE '^[0-9]+ 0100007F:[0-9A-F]+ 01' ours"
kill -TERM $(process_of 0); end

# ---- two hosts ----

if ip netns add gpt_a_$$ 2> err && ip netns add gpt_b_$$ 2> err && ip link add va$$ netns gpt_a_$$ type veth peer name vb$$ netns gpt_b_$$ 2> err; then
  ip -n gpt_a_$$ addr add 10.77.0.1/24 dev va$$; ip -n gpt_b_$$ addr add 10.77.0.2/24 dev vb$$
  ip -n gpt_a_$$ link set va$$ up; ip -n gpt_b_$$ link set vb$$ up
  for r in 0 1; do
    ip netns exec gpt_$([ $r = 0 ] && echo a || echo b)_$$ timeout 60 "$gpt" train my.txt $tiny --steps 12 --rendezvous 10.77.0.1:29400 --rank $r --world 2 --token token --out hosts > out.$r 2> err.$r & pids[r]=$!
  done
  end
  check "two hosts: exit codes" test "$codes" = " 0 0"
  check "... the bits of one machine" same_model twice hosts
else echo "skipped: two hosts (no network namespaces here: $(head -c 100 err))"
fi
ip netns del gpt_a_$$ 2> err; ip netns del gpt_b_$$ 2> err

echo "tests/test_join.sh: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
