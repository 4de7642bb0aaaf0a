// emulator_nccl.cu: owns the tests of the stand-in for NCCL (dev/cuda_on_cpu/nccl.cpp) through NCCL's own interface: that it is as little obliging as NVIDIA's. Two
// processes with a GPU each; the calls of two communicators end in another order on request; what is in progress, late, mismatched or aborted. The sums
// themselves are test_nccl.c's. Also compiles with nvcc and NVIDIA's NCCL. `make test-nccl`
#include <cuda_runtime.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int rank, bad;
#define CHECK(ok) do { if (!(ok)) printf("FAILED tests/emulator_nccl.cu:%d: rank %d: %s\n", __LINE__, rank, #ok), bad = 1; } while (0)

static ncclResult_t settled(ncclComm_t c) {
  ncclResult_t state = ncclInProgress;
  while (ncclCommGetAsyncError(c, &state) == ncclSuccess && state == ncclInProgress) usleep(100);
  return state;
}
static ncclComm_t join(const ncclUniqueId *id, int blocking) {
  ncclConfig_t config = {};
  ncclComm_t c;
  config.size = sizeof config, config.magic = 0xcafebeef, config.version = 21400, config.blocking = blocking;
  const ncclResult_t result = ncclCommInitRankConfig(&c, 2, *id, rank, &config);
  CHECK(result == (blocking ? ncclSuccess : ncclInProgress));
  CHECK(settled(c) == ncclSuccess);
  return c;
}
static float first(const float *x) {
  float v;
  cudaMemcpy(&v, x, sizeof v, cudaMemcpyDeviceToHost);
  return v;
}
static void set(float *x, float v, size_t n, cudaStream_t s) {
  float *values = (float *)malloc(n * sizeof v);
  for (size_t i = 0; i < n; i++) values[i] = v;
  cudaMemcpyAsync(x, values, n * sizeof v, cudaMemcpyHostToDevice, s);
  cudaStreamSynchronize(s);
  free(values);
}

enum { N = 1000, ROUNDS = 240 };
typedef struct { ncclUniqueId id[4]; char order[2][ROUNDS]; } Notes;

static int run(Notes *notes) {
  ncclComm_t c[2] = {join(&notes->id[0], 1), join(&notes->id[1], 1)};
  cudaStream_t stream[2];
  cudaEvent_t end[2];
  float *x[2];
  for (int i = 0; i < 2; i++) cudaStreamCreate(&stream[i]), cudaEventCreate(&end[i]), cudaMalloc(&x[i], N * sizeof(float));
  // given to A, then to B: whichever is done first. The ranks seldom differ in that: once in a dozen rounds
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < 2; i++) {
      set(x[i], (float)(rank + round + i), N, stream[i]);
      ncclAllReduce(x[i], x[i], N, ncclFloat32, ncclSum, c[i], stream[i]);
      cudaEventRecord(end[i], stream[i]);
    }
    while (cudaEventQuery(end[0]) == cudaErrorNotReady && cudaEventQuery(end[1]) == cudaErrorNotReady) usleep(50);
    notes->order[rank][round] = cudaEventQuery(end[0]) == cudaSuccess ? 'A' : 'B';
    for (int i = 0; i < 2; i++) {
      cudaStreamSynchronize(stream[i]);
      CHECK(first(x[i]) == (float)(2 * (round + i) + 1));
    }
  }
  // one that does not block: what it is given stands on no stream before it was asked, and another call before is refused
  ncclComm_t d = join(&notes->id[2], 0);
  set(x[0], 1, N, stream[0]);
  CHECK(ncclAllReduce(x[0], x[0], N, ncclFloat32, ncclSum, d, stream[0]) == ncclInProgress);
  cudaStreamSynchronize(stream[0]);
  CHECK(first(x[0]) == 1);
  CHECK(ncclAllReduce(x[0], x[0], N, ncclFloat32, ncclSum, d, stream[0]) == ncclInvalidUsage);
  CHECK(settled(d) == ncclSuccess);
  cudaStreamSynchronize(stream[0]);
  CHECK(first(x[0]) == 2);
  // calls that do not fit never end, and nothing tells; the other streams go on; ncclCommAbort ends them
  ncclComm_t e = join(&notes->id[3], 1);
  ncclAllReduce(x[1], x[1], (size_t)(N - rank), ncclFloat32, ncclSum, e, stream[1]);
  cudaEventRecord(end[1], stream[1]);
  usleep(200000);
  CHECK(cudaEventQuery(end[1]) == cudaErrorNotReady && settled(e) == ncclSuccess);
  set(x[0], 3, N, stream[0]);
  CHECK(first(x[0]) == 3);
  CHECK(ncclCommAbort(e) == ncclSuccess);
  for (int i = 0; i < 2; i++) CHECK(ncclCommDestroy(c[i]) == ncclSuccess);
  CHECK(ncclCommFinalize(d) == ncclInProgress && settled(d) == ncclSuccess && ncclCommDestroy(d) == ncclSuccess);
  fflush(stdout);
  return bad;
}

int main(void) {
  // Rank 0 makes the ids and hands them on: by a pipe each way
  int down[2], up[2];
  setenv("GPT_NCCL_LATE", "4:3", 1);
  if (pipe(down) || pipe(up)) return 2;
  const pid_t child = fork();
  rank = child ? 0 : 1;
  Notes notes = {}, other = {};
  if (rank == 0) {
    for (int i = 0; i < 4; i++) CHECK(ncclGetUniqueId(&notes.id[i]) == ncclSuccess);
    if (write(down[1], &notes, sizeof notes) != sizeof notes) return 2;
  } else if (read(down[0], &notes, sizeof notes) != sizeof notes) return 2;
  const int code = run(&notes);
  if (rank == 1) return write(up[1], &notes, sizeof notes) == sizeof notes ? code : 2;
  int status = 1, first_a = 0, differ = 0;
  if (read(up[0], &other, sizeof other) != sizeof other) bad = 1;
  waitpid(child, &status, 0);
  for (int round = 0; round < ROUNDS; round++) first_a += notes.order[0][round] == 'A', differ += notes.order[0][round] != other.order[1][round];
  CHECK(first_a > 0 && first_a < ROUNDS);      // in either order
  CHECK(differ > 0);                           // and not in the same on both ranks
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  printf("tests/emulator_nccl.cu: %d passed, %d failed\n", !bad, bad);
  return bad;
}
