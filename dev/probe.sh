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

# Instructions for matrix tiles: what the compiler and its assembler know, not what this processor has, which is asked at start
echo 'int main(void) { __asm__ volatile("tdpbf16ps %tmm0, %tmm1, %tmm2"); return 0; }' > "$work/amx.c"
amx=""
case $($CC -dumpmachine) in x86_64*)
  if $CC -mamx-tile -mamx-bf16 -c -o "$work/amx.o" "$work/amx.c" 2>/dev/null; then amx=1; say AMX "known to $CC: kernels for matrix tiles are built, and used in bf16 where the processor has them"
  else say AMX "not known to $CC (gcc 11, clang 12 are the first): no kernels for matrix tiles"
  fi ;;
esac

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

# Opened when a run wants several GPUs, as here; nothing of it is needed to build
cat > "$work/nccl.c" <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int main(void) { int v = 0, (*get_version)(int *); void *library = dlopen("libnccl.so.2", RTLD_NOW), *f = library ? dlsym(library, "ncclGetVersion") : NULL;
  if (!f) return 1;
  memcpy(&get_version, &f, sizeof f);
  if (get_version(&v) || v < 21400) return 1;
  printf("%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
  return 0; }
C
if [ -z "$nvcc" ]; then say NCCL "not asked for: it is for several GPUs, and the CUDA device is not built"
elif $CC "$work/nccl.c" -o "$work/nccl" -ldl 2>/dev/null && version=$("$work/nccl"); then say NCCL "found ($version): --gpus N trains on several GPUs"
else say NCCL "not found: one GPU needs none; for --gpus N install it (libnccl.so.2, 2.14 or later), before or after the build"
fi

if command -v mpirun >/dev/null 2>&1 && mpirun --version >/dev/null 2>&1; then say MPI "found: it can start the ranks of a run on several machines (recipes/mpi.md); nothing is linked with it"
else say MPI "not found: not needed, it would only start the ranks of a run on several machines"
fi
{ echo "OMP_FLAGS := $omp"; echo "AMX := $amx"; echo "NVCC := $nvcc"; echo "CUDA_LIBS := $cuda_libs"; echo "CUDA_GPU := ${gpu:+sm_$gpu}"; } > "$out"
