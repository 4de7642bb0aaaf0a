// doctor.c: owns `gpt doctor`: processor, instruction sets, memory, what the build found, and a self-test. See doctor.h.
#include "doctor.h"
#include "comm.h"      // comm_nccl_version
#include "detmath.h"   // det_pow
#include "load.h"      // cpu_device, cuda_unavailable, Options
#include "machine.h"   // what there is
#include "rng.h"       // made-up ids
#include "version.h"   // GPT_VERSION, GPT_COMPILER
#include <stdlib.h>    // free
#include <string.h>    // strcmp

enum { TEST_BATCH = 3, TEST_CONTEXT = 37, TEST_VOCAB = 101, TEST_STEPS = 5 };

const char *doctor_expected_hash(const Device *d) {
  // in matrix tiles: by the tests' stand-in for them, after Intel's manual; not seen on a processor that has them
  if (d->row_group > 1) return "716654bce28d86bbd31bd3137f5e696b55eca73ae1a26b4b1b31caa7df69cd12";
  return d->real_is_acc ? "81d6e1ab7283ceb0339f2f587fcb8f27af980135a4eb8a623b08429e8232c1be" : "33b9cac767e8bb640f133532a00b8133d48850efa056c18e196502a53fc94945";
}

// Odd sizes on purpose: every tile of every kernel meets an edge.
static void train_tiny(Device *d, Family family, Sha256 *sha) {
  bool llama = family == FAMILY_LLAMA;
  GptConfig c = {.family = family, .layers = 2, .heads = 6, .kv_heads = llama ? 2 : 6, .channels = 60, .context = TEST_CONTEXT, .ffn = 200,
                 .vocab = TEST_VOCAB, .bias = !llama, .tie = !llama, .dropout = 0.1, .norm_eps = 1e-5, .rope_theta = 10000};
  Gpt *m = gpt_create(d, &(GptOptions){.config = c, .purpose = PURPOSE_TRAIN, .B = TEST_BATCH, .T = TEST_CONTEXT});
  int32_t ids[TEST_BATCH * TEST_CONTEXT], targets[TEST_BATCH * TEST_CONTEXT];
  gpt_init(m, 7);
  for (uint32_t step = 0; step < TEST_STEPS; step++) {
    for (uint64_t i = 0; i < ARRAY_LEN(ids); i++) {
      ids[i] = (int32_t)rng_below(TEST_VOCAB, 1, step, rng_site("self-test ids"), i);
      targets[i] = i % 11 ? (int32_t)rng_below(TEST_VOCAB, 1, step, rng_site("self-test targets"), i) : IGNORED_TARGET;
    }
    MicroBatch place = {.seed = 7, .step = step, .loss_scale = 0.01};
    AdamWSettings s = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .bias1 = 1 - det_pow(0.9, step + 1.0), .bias2 = 1 - det_pow(0.99, step + 1.0), .grad_clip = 1};
    gpt_begin_step(m);
    gpt_forward(m, ids, targets, &place, WITH_GRADIENT);
    gpt_backward(m, &place);
    gpt_finish_gradients(m);
    gpt_update(m, &s, 0.1);
  }
  const TensorTable *t = gpt_table(m);
  for (size_t i = 0; i < t->count; i++) {
    const TensorRow *row = &t->rows[i];
    size_t n = tensor_values(row);
    double *values = xmalloc(n, sizeof *values);
    if (n) gpt_read(m, PART_WEIGHT, row, 0, n, values);
    sha256_update(sha, values, n * sizeof *values);
    free(values);
  }
  gpt_destroy(m);
}

void doctor_self_test(Device *d, char hex[65]) {
  Sha256 sha;
  uint8_t digest[32];
  sha256_init(&sha);
  train_tiny(d, FAMILY_GPT2, &sha);
  train_tiny(d, FAMILY_LLAMA, &sha);
  sha256_final(&sha, digest);
  sha256_hex(digest, hex);
}

// ---- gpt doctor ----

static void print_instruction_sets(void) {
  printf("instructions ");
#if defined(__x86_64__)
  static const char *const names[] = {"avx2", "fma", "avx512f", "avx512bf16", "amx"};
  bool has[] = {__builtin_cpu_supports("avx2") != 0, __builtin_cpu_supports("fma") != 0, __builtin_cpu_supports("avx512f") != 0, false, false};
  char text[1 << 14];
  FILE *f = fopen("/proc/cpuinfo", "r");
  size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
  if (f) fclose(f);
  text[n] = 0;
  has[3] = strstr(text, "avx512_bf16") != NULL;
  has[4] = strstr(text, "amx_tile") != NULL;
  for (size_t i = 0; i < ARRAY_LEN(names); i++) printf("%s%s %s", i ? ", " : "", names[i], has[i] ? "yes" : "no");
  printf("\n             used here: avx512, else avx2 with fma, else generic (the same bits, slow); in bf16 amx, else avx512bf16 before them\n");
  const char *why = cpu_tiles_unavailable();
  printf("tiles (AMX)  %s\n", why ? why : "used in bf16, with bits of their own; these kernels were written without such a processor: if the self-test differs, please report it and set GPT_CPU=avx512bf16");
#else
  printf("generic code (the same bits as on x86-64, without hand-written vectors)\n");
#endif
}

static int print_self_test(Device *d) {
  char hex[65];
  const char *expected = doctor_expected_hash(d);
  doctor_self_test(d, hex);
  bool good = !strcmp(hex, expected);
  printf("self-test    %.16s on %s; expected %.16s: %s\n", hex, d->description, expected, good ? "same bits" : "DIFFERENT BITS");
  if (!good) printf("             this build does not compute what others do: rebuild with make clean && make, and report processor and compiler\n");
  return good ? 0 : EXIT_NO;
}

int doctor_command(const Options *o) {
  if (o->arg_count) fail(EXIT_REQUEST, "gpt doctor takes no names, %s was given", o->args[0]);
  char processor[128];
  const char *from;
  machine_processor(processor);
  size_t available = machine_memory_available(&from);
  printf("gpt          %s, commit %s, built with %s\n", GPT_VERSION, GPT_COMMIT, GPT_COMPILER);
  printf("processor    %s, %d physical cores, %d threads for this process\n", processor, machine_cores(), machine_threads());
  print_instruction_sets();
  printf("memory       %.1f GiB, %.1f GiB available (%s)\n", (double)machine_memory_total() / (1 << 30), (double)available / (1 << 30), from);
#ifdef _OPENMP
  printf("OpenMP       yes: every core is used\n");
#else
  printf("OpenMP       no: one core is used; install your compiler's OpenMP (Debian: libgomp1 with gcc, libomp-dev with clang), then make clean && make\n");
#endif
  const char *why = cuda_unavailable();
  printf("CUDA         %s%s\n", why ? "training runs on the CPU: " : "yes: training runs on the GPU", why ? why : "");
  char version[COMM_NCCL_VERSION_ROOM];
  const char *none = comm_nccl_version(version);
  printf("NCCL         %s%s\n", none ? none : version, none ? "; several GPUs (--gpus N) would need it, nothing else does" : why ? ": is here, and not used without a GPU" : ": --gpus N trains on N GPUs of this machine");
  const int threads = threads_of(o);
  Device *devices[] = {cpu_device(threads), cpu_device_bf16(threads)};   // the self-test is of the CPU's bits
  int code = 0;
  for (size_t i = 0; i < ARRAY_LEN(devices); i++)
    if (devices[i]->peak_flops > 0) printf("peak         %.0f GFLOP/s in %s\n", 1e-9 * devices[i]->peak_flops, devices[i]->description);
  for (size_t i = 0; i < ARRAY_LEN(devices); i++) {
    if (print_self_test(devices[i])) code = EXIT_NO;
    devices[i]->destroy(devices[i]);
  }
  return code;
}
