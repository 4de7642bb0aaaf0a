# ports.sh: owns the ports that tests meet on, sourced by tests/test_join.sh, tests/launchers.sh and tests/nccl.sh.
# free_port sets `port` to one that no socket of this machine has now: below 30000, as the system hands out those from 32768 up to any program that connects (a test met one
# there that was in use). Scripts that run at the same time begin far from each other.
port=$((20000 + $$ * 101 % 10000))
free_port() {
  for _ in $(seq 1000); do
    port=$((20000 + (port + 1) % 10000))
    grep -qs "^ *[0-9]*: [0-9A-F]*:$(printf %04X $port) " /proc/net/tcp /proc/net/tcp6 || return 0
  done
}
