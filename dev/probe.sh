#!/bin/sh
# probe.sh: what this machine has, for the Makefile. "found" means compiled, linked and run, not just seen. Writes make
# variables to $1 and one line each to the terminal. Asked once per build folder.
out=$1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
say() { printf '%-8s %s\n' "$1" "$2"; }

cat > "$work/omp.c" <<'C'
#include <omp.h>
int main(void) { int n = 0;
#pragma omp parallel
#pragma omp atomic
  n++;
  return n < 1; }
C
omp=""
native=1
case $($CC -dumpmachine) in "$(uname -m)"*) ;; *) native=0 ;; esac
if [ "$OPENMP" = 0 ]; then say OpenMP "off as asked (OPENMP=0): one core is used"
elif $CC -fopenmp "$work/omp.c" -o "$work/omp" 2>/dev/null && { [ $native = 0 ] || "$work/omp"; }; then
  omp="-fopenmp"; say OpenMP "found: all cores are used"
else say OpenMP "not found with $CC: one core is used (Debian: apt install libgomp1, or libomp-dev for clang)"
fi

cat > "$work/cuda.cu" <<'C'
#include <cuda_runtime.h>
int main() { int version; return cudaRuntimeGetVersion(&version) != cudaSuccess; }
C
if ! command -v nvcc >/dev/null 2>&1; then say nvcc "not found: the CPU device only"
elif nvcc -cudart static -o "$work/cuda" "$work/cuda.cu" >/dev/null 2>&1 && "$work/cuda"; then
  say nvcc "found ($(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')): not used, this version has no CUDA device yet"
else say nvcc "seen, but a program built with it does not run: the CPU device only"
fi

printf '#include <nccl.h>\nint main(void) { int v; return ncclGetVersion(&v) != ncclSuccess; }\n' > "$work/nccl.c"
if $CC "$work/nccl.c" -o "$work/nccl" -lnccl 2>/dev/null && "$work/nccl"; then say NCCL "found: not used, this version trains in one process"
else say NCCL "not found: not needed, this version trains in one process"
fi

if command -v mpirun >/dev/null 2>&1 && mpirun --version >/dev/null 2>&1; then say MPI "found: a launcher, nothing is linked with it; this version trains in one process"
else say MPI "not found: not needed, it would only start processes"
fi
echo "OMP_FLAGS := $omp" > "$out"
