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
# The toolkit's folder, asked of nvcc itself: it may be called through a script. Its libraries are linked by $CC, so that is tried.
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) cuda_libs="" gpu=""
version=$([ -n "$nvcc" ] && "$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
if [ "$CUDA" = 0 ]; then nvcc=""; say nvcc "off as asked (CUDA=0): the CPU device only"
elif [ $native = 0 ]; then nvcc=""; say nvcc "not used for another processor: the CPU device only"
elif [ -z "$nvcc" ]; then say nvcc "not found: the CPU device only"
elif [ "${version%%.*}" -lt 12 ] 2>/dev/null; then nvcc=""; say nvcc "$version is too old, 12.0 is needed: the CPU device only"
else
  libraries=$("$nvcc" --dryrun "$work/cuda.cu" 2>&1 | sed -n 's/^#\$ LIBRARIES= *//p' | tr -d '"')
  cuda_libs="$libraries -lcudart_static -lpthread -ldl -lrt"
  if "$nvcc" -Xcompiler -fno-exceptions -c -o "$work/cuda.o" "$work/cuda.cu" >/dev/null 2>&1 && $CC "$work/cuda.o" -o "$work/cuda" $cuda_libs 2>/dev/null && "$work/cuda"; then
    gpu=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d '. ' | grep -E '^[0-9]+$')
    case $gpu in 90 | 100 | 103 | 120) gpu=${gpu}a ;; esac
    say nvcc "found ($version): the CUDA device is built, for ${gpu:+the GPU here, }sm_${gpu:-80}${gpu:+ }${gpu:- and PTX}"
  else nvcc="" cuda_libs=""; say nvcc "seen ($version), but a program built with it does not link and run: the CPU device only"
  fi
fi

printf '#include <nccl.h>\nint main(void) { int v; return ncclGetVersion(&v) != ncclSuccess; }\n' > "$work/nccl.c"
if $CC "$work/nccl.c" -o "$work/nccl" -lnccl 2>/dev/null && "$work/nccl"; then say NCCL "found: not used yet, ranks compute on CPUs"
else say NCCL "not found: not needed, ranks compute on CPUs so far"
fi

if command -v mpirun >/dev/null 2>&1 && mpirun --version >/dev/null 2>&1; then say MPI "found: it can start the ranks of a run on several machines (recipes/mpi.md); nothing is linked with it"
else say MPI "not found: not needed, it would only start the ranks of a run on several machines"
fi
{ echo "OMP_FLAGS := $omp"; echo "NVCC := $nvcc"; echo "CUDA_LIBS := $cuda_libs"; echo "CUDA_GPU := ${gpu:+sm_$gpu}"; } > "$out"
