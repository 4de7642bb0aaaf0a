// report.c: owns the work that `make cuda-report` counts: each operation of a training step once, on whole tiles (128 or 64 on a side).
//
//   report bf16|fp32     with GPT_CUDA_PTX and GPT_CUDA_PROFILE set (dev/cuda_report.sh); shapes of a block of GPT-2 124M
// Prints what tensor cores have to do: "kernel TAB FLOP", kernel as the beginning of its demangled name without `void `.
#include "../../device.h"   // the operations
#include "../../util.h"     // ARRAY_LEN
#include <math.h>           // sqrt
#include <stdio.h>          // printf
#include <stdlib.h>         // free
#include <string.h>         // strcmp

enum { B = 2, T = 256, ROWS = B * T, C = 768, FFN = 4 * C, NH = 12, HS = C / NH, V = 1024 };
static Device *d;

static real *array(size_t n) {
  real *p = d->allocate(d, n * d->real_size);
  double *values = xmalloc(n, sizeof *values);
  for (size_t i = 0; i < n; i++) values[i] = (double)(i * 2654435761u % 2001) / 1000 - 1;
  d->upload_real(d, p, values, n);
  free(values);
  return p;
}
static acc *gradient(size_t n) { return d->allocate(d, n * d->acc_size); }

static void streaming(void) {
  real *x = array((size_t)ROWS * C), *y = array((size_t)ROWS * C), *r = array((size_t)ROWS * C), *weight = array(C), *wide = array((size_t)ROWS * FFN), *post = array((size_t)ROWS * FFN);
  real *wte = array((size_t)V * C), *wpe = array((size_t)T * C), *logits = array((size_t)ROWS * V);
  acc *mean = gradient(ROWS), *rstd = gradient(ROWS), *dweight = gradient(C), *dbias = gradient(C), *dwte = gradient((size_t)V * C), *other = gradient((size_t)V * C), *dwpe = gradient((size_t)T * C);
  acc *table = gradient((size_t)T * HS), *losses = gradient(ROWS), *m = gradient((size_t)V * C), *v = gradient((size_t)V * C), *master = d->real_is_acc ? NULL : gradient((size_t)V * C);
  scalar *stats = d->allocate(d, STAT_COUNT * sizeof(double));
  int32_t ids[ROWS], *on_device = d->allocate(d, sizeof ids);
  for (int i = 0; i < ROWS; i++) ids[i] = (int32_t)((uint32_t)i * 2654435761u % V);
  d->upload_ids(d, on_device, ids, ROWS);
  const Dropout dropout = {.p = 0.1, .seed = 1};
  d->embedding_forward(d, x, on_device, wte, wpe, B, T, C, 0);
  d->embedding_backward(d, dwte, dwpe, y, on_device, B, T, C, V);
  d->dropout(d, y, ROWS, C, &dropout);
  d->layernorm_forward(d, r, y, mean, rstd, x, y, weight, weight, ROWS, C, 1e-5);
  d->layernorm_backward(d, x, dweight, dbias, y, r, x, weight, mean, rstd, ROWS, C);
  d->rmsnorm_forward(d, r, y, rstd, x, y, weight, ROWS, C, 1e-5);
  d->rmsnorm_backward(d, x, dweight, y, r, x, weight, rstd, ROWS, C);
  d->residual_forward(d, r, x, y, (size_t)ROWS * C);
  for (Activation activation = ACTIVATION_GELU; activation <= ACTIVATION_SWIGLU; activation++) {
    d->activation_forward(d, post, wide, ROWS, FFN, activation);
    d->activation_backward(d, wide, post, wide, ROWS, FFN, activation);
  }
  d->rope_table(d, table, T, HS, 10000);
  d->rope(d, x, table, B, T, 0, NH, HS, C, 1);
  d->copy_rows(d, y, C, x, C, ROWS, C);
  d->crossentropy(d, logits, losses, on_device, ROWS, V, V, 1.0 / ROWS, WITH_GRADIENT);
  d->sum(d, d->stat_at(stats, STAT_LOSS), losses, ROWS);
  d->add_rows(d, dwte, other, on_device, ROWS, C, V);
  d->sumsq(d, d->stat_at(stats, STAT_GRAD_SUMSQ), dwte, (size_t)V * C);
  const AdamWTensor tensor = {wte, master, dwte, m, v, (size_t)V * C, 0.1, 1};
  const AdamWSettings settings = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .bias1 = 0.1, .bias2 = 0.01, .grad_clip = 1};
  d->adamw(d, &tensor, 1, &settings, stats);
  d->sync(d);
}

static void say(const char *kernel, double flop) { printf("%s\t%.0f\n", kernel, flop); }

// The bias's gradient is a product too: of dout with a column of ones, which a tensor core does eight columns at a time.
static void products(bool half) {
  real *x = array((size_t)ROWS * C), *weight = array((size_t)FFN * C), *bias = array(FFN), *wide = array((size_t)ROWS * FFN), *post = array((size_t)ROWS * FFN), *dx = array((size_t)ROWS * C);
  acc *dweight = gradient((size_t)FFN * C), *dbias = gradient(FFN);
  const double flop = 2.0 * ROWS * C * FFN;
  for (Activation activation = ACTIVATION_NONE; activation <= ACTIVATION_SWIGLU; activation++)
    d->linear_forward(d, wide, activation == ACTIVATION_NONE ? NULL : post, x, weight, bias, ROWS, C, FFN, activation);
  d->linear_backward_input(d, dx, wide, weight, ROWS, C, FFN);
  d->linear_backward_weight(d, dweight, dbias, wide, x, ROWS, C, FFN);
  d->linear_forward(d, dx, NULL, x, weight, NULL, 64, C, 128, ACTIVATION_NONE);   // two small tiles
  d->sync(d);
  if (!half) return;
  say("gemm_bf16_kernel<(Direction)0, (Activation)0, 128", flop);   // by mma.sync, and by wgmma
  say("gemm_bf16_kernel<(Direction)0, (Activation)1, 128", flop);
  say("gemm_bf16_kernel<(Direction)0, (Activation)2, 128", flop);
  say("gemm_bf16_kernel<(Direction)0, (Activation)0, 64", 2.0 * 64 * C * 128);
  say("gemm_bf16_kernel<(Direction)1", flop);
  say("gemm_bf16_kernel<(Direction)2", flop);
}

// Full attention: no tile is cut by the mask. Backward, the scores are computed twice, once for dq and once for dk and dv, so that
// nothing is added by two owners: three products of T x T x head size, and four.
static void attention(bool half) {
  const size_t row = 3 * C;
  real *qkv = array(ROWS * row), *dqkv = array(ROWS * row), *out = array((size_t)ROWS * C), *dout = array((size_t)ROWS * C);
  acc *lse = gradient((size_t)ROWS * NH);
  const AttentionShape s = {.B = B, .T = T, .S = T, .NH = NH, .KVH = NH, .HS = HS, .q_stride = row, .kv_stride = row, .out_stride = C, .q_batch = T * row, .kv_batch = T * row,
                            .out_batch = (size_t)T * C, .mask = MASK_FULL, .scale = 1 / sqrt(HS)};
  const real *q = qkv, *k = d->real_at(qkv, C), *v = d->real_at(qkv, 2 * C);
  d->attention_forward(d, out, lse, q, k, v, &s);
  d->attention_backward(d, dqkv, d->real_at(dqkv, C), d->real_at(dqkv, 2 * C), dout, q, k, v, out, lse, &s);
  d->sync(d);
  if (!half) return;
  const double product = 2.0 * B * NH * T * T * HS;
  say("flash_forward_kernel", 2 * product);
  say("flash_backward_query_kernel", 3 * product);
  say("flash_backward_key_kernel", 4 * product);
}

int main(int argc, char **argv) {
  const bool wgmma = argc == 2 && !strcmp(argv[1], "wgmma"), half = wgmma || (argc == 2 && !strcmp(argv[1], "bf16"));
  if (argc != 2 || (!half && strcmp(argv[1], "fp32"))) { fprintf(stderr, "usage: report bf16|wgmma|fp32\n"); return 2; }
  d = cuda_device(half ? CUDA_BF16 : CUDA_FP32, wgmma ? GEMM_WGMMA : GEMM_OWN);
  products(half);
  if (!wgmma) streaming(), attention(half);
  d->destroy(d);
  return 0;
}
