// cuda_missing.c: owns the answer of a build without the CUDA device: linked instead of train_gpt.cu where there is no nvcc.
//
// Flow asks the same questions in every build and needs no conditional compilation. Tests: tests/test_cuda.c
#include "comm.h"     // comm_nccl_join, comm_nccl_version
#include "device.h"   // cuda_device, cuda_unavailable
#include "util.h"     // fail

const char *cuda_unavailable(void) { return "this build has no CUDA device: nvcc was not found when it was made"; }

Device *cuda_device(CudaPrecision precision, GemmLibrary library) {
  (void)precision, (void)library;
  fail(EXIT_MACHINE, "--device cuda: %s; install the CUDA toolkit and run make again, or use --device cpu", cuda_unavailable());
}

void cuda_select(int number) { (void)number; }
int cuda_devices(void) { return 0; }

const char *cuda_refusal(const CudaFacts *facts) {
  (void)facts;
  return cuda_unavailable();
}

int cuda_splits(size_t M, size_t N, size_t K, size_t tiles, size_t places) {
  (void)M, (void)N, (void)K, (void)tiles, (void)places;
  return 0;
}
const char *cuda_wgmma_refusal(int made, int major, int minor) {
  (void)made, (void)major, (void)minor;
  return cuda_unavailable();
}
void cuda_limit_work(size_t bytes) { (void)bytes; }
double cuda_flops_a_cycle(int major, int minor, CudaPrecision precision) {
  (void)major, (void)minor, (void)precision;
  return 0;
}

const char *comm_nccl_version(char text[COMM_NCCL_VERSION_ROOM]) {
  (void)text;
  return "this build has no CUDA device, whose ranks would need it";
}

Comm *comm_nccl_join(Comm *host, Device *d) {
  (void)d;
  return host;       // no device of this build has memory of its own
}
