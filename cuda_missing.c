// cuda_missing.c: owns the answer of a build without the CUDA device: linked instead of train_gpt.cu where there is no nvcc.
//
// Flow asks the same questions in every build and needs no conditional compilation. Tests: tests/test_cuda.c
#include "device.h"   // cuda_device, cuda_unavailable
#include "util.h"     // fail

const char *cuda_unavailable(void) { return "this build has no CUDA device: nvcc was not found when it was made"; }

Device *cuda_device(CudaPrecision precision, GemmLibrary library) {
  (void)precision, (void)library;
  fail(EXIT_MACHINE, "--device cuda: %s; install the CUDA toolkit and run make again, or use --device cpu", cuda_unavailable());
}

const char *cuda_refusal(const CudaFacts *facts) {
  (void)facts;
  return cuda_unavailable();
}
