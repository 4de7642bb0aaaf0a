// cuda_library.h: owns the tests of --gemm cublaslt's own part: what is asked of the library, how often, and what happens where it refuses. Emulated, beside
// the stand-in (dev/cuda_on_cpu/cublaslt.cpp), which writes down what it is asked; included by test_cuda.c.
#pragma once
#include "cuda_test.h"  // opened, real_of, emulated_launches

// What the stand-in was asked since this was last called, to be freed: GPT_CUBLASLT_LOG is set by library_log.
static char library_folder[300], *library_path;
static void library_log(void) {
  test_folder(library_folder, sizeof library_folder, "cublaslt");
  library_path = format("%s/log", library_folder);
  setenv("GPT_CUBLASLT_LOG", library_path, 1);
}
static char *library_said(void) {
  size_t n;
  char *text = access(library_path, F_OK) ? xcalloc(1, 1) : read_file(library_path, "the stand-in's log", 1 << 20, &n);
  unlink(library_path);
  return text;
}
static void library_log_end(void) {
  free(library_said()), free(library_path);
  rmdir(library_folder);
  unsetenv("GPT_CUBLASLT_LOG");
}
#define LIBRARY_SAYS(expected) do { char *said_ = library_said(); CHECK_STR(said_, (expected)); free(said_); } while (0)
// Whether kernels of our own have multiplied since this was last asked.
static bool own_products(void) { return strstr(emulated_launches(), "gemm_") != NULL; }

static void library_that_does_not_start(void) {
  setenv("GPT_CUBLASLT_FAIL", "1", 1);
  EXPECT_FAIL(EXIT_MACHINE, "--gemm cublaslt: cublasLtCreate failed: the library does not fit the driver, or memory is short; or use --gemm own", cuda_device(CUDA_FP32, GEMM_CUBLASLT));
  unsetenv("GPT_CUBLASLT_FAIL");
}

// Arrays whose bytes are multiples of 256: the emulated device places them at such.
enum { LIBRARY_ROWS = 24, LIBRARY_IC = 16, LIBRARY_OC = 32 };
typedef struct { real *x, *w, *b, *pre, *post, *dx; acc *dw, *db; } LibraryArrays;
static LibraryArrays library_arrays(Device *d) {
  const size_t most = 256 * 17;
  return (LibraryArrays){random_real(d, "x", most, 1), random_real(d, "w", most, 1), random_real(d, "b", most, 1), real_of(d, NULL, most), real_of(d, NULL, most), real_of(d, NULL, most),
                         random_acc(d, "dw", most, 1), random_acc(d, "db", most, 1)};
}
static void library_forward(Device *d, const LibraryArrays *r, size_t rows, const real *bias, Activation a) {
  d->linear_forward(d, r->pre, a ? r->post : NULL, r->x, r->w, bias, rows, LIBRARY_IC, LIBRARY_OC, a);
}
static void library_backward_weight(Device *d, const LibraryArrays *r) { d->linear_backward_weight(d, r->dw, r->db, r->w, r->x, LIBRARY_ROWS, LIBRARY_IC, LIBRARY_OC); }

// Every kind of product with its transpositions, types, start, workspace; once for each, however often it is multiplied; what is not for the library is not asked.
static void library_is_asked_once_for_a_product(void) {
  library_log();
  Device *d = opened();
  CHECK(strstr(d->description, precision == CUDA_BF16 ? "bf16, cuBLASLt, " : "fp32, cuBLASLt, ") == d->description);
  const LibraryArrays r = library_arrays(d);
  const char *type = precision == CUDA_BF16 ? "bf16" : "fp32", *wider = precision == CUDA_BF16 ? " to fp32" : "", *full = "alignment 256 256 256 256, workspace 33554432";
  emulated_launches();
  for (int again = 0; again < 2; again++) {
    library_forward(d, &r, LIBRARY_ROWS, r.b, ACTIVATION_NONE), library_forward(d, &r, LIBRARY_ROWS, r.b, ACTIVATION_GELU);
    library_forward(d, &r, LIBRARY_ROWS, NULL, ACTIVATION_SWIGLU);
    d->linear_backward_input(d, r.dx, r.pre, r.w, LIBRARY_ROWS, LIBRARY_IC, LIBRARY_OC);
    library_backward_weight(d, &r);
    d->linear_backward_weight(d, r.dw, NULL, r.w, r.x, LIBRARY_ROWS, LIBRARY_IC, LIBRARY_OC);
    char *biased = format("32x24x16 %s TN + bias, ", type), *plain = format("32x24x16 %s TN, ", type), *input = format("16x24x32 %s NN, ", type), *weight = format("16x32x24 %s%s NT, ", type, wider);
    char *first = format("choose %s%s\nmultiply %sbeta 0\nmultiply %sbeta 0\nchoose %s%s\nmultiply %sbeta 0\nchoose %s%s\nmultiply %sbeta 0\nchoose %s%s\nmultiply %sbeta 1\nmultiply %sbeta 1\n",
                         biased, full, biased, biased, plain, full, plain, input, full, input, weight, full, weight, weight);
    char *second = format("multiply %sbeta 0\nmultiply %sbeta 0\nmultiply %sbeta 0\nmultiply %sbeta 0\nmultiply %sbeta 1\nmultiply %sbeta 1\n", biased, biased, plain, input, weight, weight);
    LIBRARY_SAYS(again ? second : first);
    free(biased), free(plain), free(input), free(weight), free(first), free(second);
    CHECK_STR(emulated_launches(), precision == CUDA_BF16
      ? "activation_forward_kernel<__nv_bfloat16, 8, (Activation)1> 1 x 256\nactivation_forward_kernel<__nv_bfloat16, 8, (Activation)2> 1 x 256\n"
        "column_sum_kernel<__nv_bfloat16, 8> 1 x 128\nnorm_backward_sum_kernel 1 x 256\n"
      : "activation_forward_kernel<float, 4, (Activation)1> 1 x 256\nactivation_forward_kernel<float, 4, (Activation)2> 1 x 256\n"
        "column_sum_kernel<float, 4> 1 x 128\nnorm_backward_sum_kernel 1 x 256\n");
  }
  // each array in turn begins at another multiple of 16 bytes
  const size_t step = 16 / d->real_size;
  for (int which = 0; which < 3; which++) {
    const real *x = d->real_at(r.x, which == 0 ? step : 0), *w = d->real_at(r.w, which == 1 ? 2 * step : 0);
    d->linear_forward(d, d->real_at(r.pre, which == 2 ? 4 * step : 0), NULL, x, w, NULL, LIBRARY_ROWS, LIBRARY_IC, LIBRARY_OC, ACTIVATION_NONE);
    char *text = format("choose 32x24x16 %s TN, alignment %d %d %d %d, workspace 33554432\nmultiply 32x24x16 %s TN, beta 0\n", type, 16 << which, 16 << which, 16 << which, 16 << which, type);
    LIBRARY_SAYS(text);
    free(text);
  }
  CHECK(!own_products());
  // rows that do not begin at multiples of 16 bytes, in x and in the output; a product that is not stored
  d->linear_forward(d, r.pre, NULL, r.x, r.w, NULL, 4, LIBRARY_IC - 1, LIBRARY_OC, ACTIVATION_NONE);
  CHECK(own_products());
  d->linear_forward(d, r.pre, NULL, r.x, r.w, NULL, 4, LIBRARY_IC, LIBRARY_OC - 1, ACTIVATION_NONE);
  CHECK(own_products());
  d->linear_forward(d, NULL, r.post, r.x, r.w, NULL, 4, LIBRARY_IC, LIBRARY_OC, ACTIVATION_GELU);
  CHECK(own_products());
  LIBRARY_SAYS("");
  d->destroy(d);
  library_log_end();
}

// Products that differ in one thing alone are asked for apart.
static void library_tells_products_apart(void) {
  library_log();
  Device *d = opened();
  const LibraryArrays r = library_arrays(d);
  enum { SIDE = 16 };
  d->linear_forward(d, r.pre, NULL, r.x, r.w, NULL, SIDE, SIDE, SIDE, ACTIVATION_NONE), d->linear_backward_input(d, r.pre, r.x, r.w, SIDE, SIDE, SIDE);
  d->linear_backward_weight(d, r.dw, NULL, r.w, r.x, SIDE, SIDE, SIDE), d->linear_forward(d, r.pre, NULL, r.x, r.w, r.b, SIDE, SIDE, SIDE, ACTIVATION_NONE);
  d->linear_forward(d, r.pre, NULL, r.x, r.w, NULL, SIDE, SIDE, 2 * SIDE, ACTIVATION_NONE), d->linear_forward(d, r.pre, NULL, r.x, r.w, NULL, 2 * SIDE, SIDE, SIDE, ACTIVATION_NONE);
  d->linear_forward(d, r.pre, NULL, r.x, r.w, NULL, SIDE, 2 * SIDE, SIDE, ACTIVATION_NONE);
  static const char *const asked[] = {"16x16x16 %s%.0s TN, ", "16x16x16 %s%.0s NN, ", "16x16x16 %s%s NT, ", "16x16x16 %s%.0s TN + bias, ", "32x16x16 %s%.0s TN, ", "16x32x16 %s%.0s TN, ", "16x16x32 %s%.0s TN, "};
  Buffer want = {0};
  for (size_t i = 0; i < ARRAY_LEN(asked); i++)
    for (int product = 0; product < 2; product++) {
      buffer_printf(&want, product ? "multiply " : "choose ");
      buffer_printf(&want, asked[i], precision == CUDA_BF16 ? "bf16" : "fp32", precision == CUDA_BF16 ? " to fp32" : "");
      if (product) buffer_printf(&want, "beta %d\n", i == 2);
      else buffer_printf(&want, "alignment 256 256 256 256, workspace 33554432\n");
    }
  LIBRARY_SAYS(want.data);
  buffer_free(&want);
  d->destroy(d);
  library_log_end();
}

// 128 answers are kept; the one after takes the first one's place, and so on.
static void library_plans_are_replaced(void) {
  library_log();
  Device *d = opened();
  const LibraryArrays r = library_arrays(d);
  for (size_t rows = 1; rows <= 128; rows++) library_forward(d, &r, rows, r.b, ACTIVATION_NONE);
  free(library_said());
  static const struct { size_t rows; bool known; } asked[] = {{1, true}, {128, true}, {129, false}, {129, true}, {2, true}, {1, false}, {3, true}, {2, false}, {4, true}, {1, true}, {129, true}};
  for (size_t i = 0; i < ARRAY_LEN(asked); i++) {
    library_forward(d, &r, asked[i].rows, r.b, ACTIVATION_NONE);
    char *said = library_said(), *size = format(" 32x%zux16 ", asked[i].rows);
    CHECK_MSG((strstr(said, "choose ") == NULL) == asked[i].known && strstr(said, size), "rows %zu, question %zu: %s", asked[i].rows, i, said);
    free(said), free(size);
  }
  d->destroy(d);
  library_log_end();
}

// One product and what it wrote; whether it was our own.
typedef struct { double out[LIBRARY_ROWS * LIBRARY_OC], bias[LIBRARY_OC]; bool own; } LibraryResult;
static LibraryResult library_result(Device *d, const LibraryArrays *r, bool backward) {
  LibraryResult got = {.own = false};
  emulated_launches();
  if (backward) {
    library_backward_weight(d, r);
    d->download_acc(d, got.out, r->dw, LIBRARY_IC * LIBRARY_OC), d->download_acc(d, got.bias, r->db, LIBRARY_OC);
  } else {
    library_forward(d, r, LIBRARY_ROWS, r->b, ACTIVATION_GELU);
    d->download_real(d, got.out, r->pre, LIBRARY_ROWS * LIBRARY_OC);
  }
  got.own = own_products();
  return got;
}
// Each call of the library fails once: the product is then our own, to the last bit, the next one is the library's, and nothing is left behind.
static void library_failures_are_own_products(void) {
  for (int backward = 0; backward < 2; backward++) {
    Device *own = cuda_device(precision, GEMM_OWN);
    const LibraryArrays o = library_arrays(own);
    const LibraryResult want = library_result(own, &o, backward);
    own->destroy(own);
    const int last = backward ? 15 : 17;   // of the first product's calls, behind which the second one has but its own; cublasLtCreate is the first; forward has the epilogue and the bias's place besides
    for (int call = 2; call <= last + 1; call++) {
      char *number = format("%d", call);
      setenv("GPT_CUBLASLT_FAIL", number, 1);
      Device *d = opened();
      const LibraryArrays r = library_arrays(d);
      const LibraryResult got = library_result(d, &r, backward), next = library_result(d, &r, backward);
      CHECK_MSG(got.own == (call <= last) && next.own == (call > last), "call %d: ours %d, then %d", call, got.own, next.own);
      // sums of 24 terms below 1, in another order
      for (size_t i = 0; i < LIBRARY_ROWS * LIBRARY_OC; i++) CHECK_NEAR(got.out[i], want.out[i], got.own ? 0 : 25 * 25 * 0x1p-24 + unit() * fabs(want.out[i]), "call %d, out %zu", call, i);
      for (size_t i = 0; i < LIBRARY_OC; i++) CHECK_NEAR(got.bias[i], want.bias[i], got.own ? 0 : 25 * 25 * 0x1p-24, "call %d, dbias %zu", call, i);
      d->destroy(d);   // the stand-in ends the program if a descriptor is left
      free(number);
    }
  }
  unsetenv("GPT_CUBLASLT_FAIL");
}

static void library_without_an_algorithm(void) {
  for (int state = 0; state < 2; state++) {
    setenv("GPT_CUBLASLT_FAIL", state ? "state" : "none", 1);
    Device *d = opened();
    const LibraryArrays r = library_arrays(d);
    for (int again = 0; again < 2; again++) {
      emulated_launches();
      library_forward(d, &r, LIBRARY_ROWS, r.b, ACTIVATION_NONE);
      CHECK(own_products());
    }
    d->destroy(d);
  }
  unsetenv("GPT_CUBLASLT_FAIL");
}

// The bias's gradient beside the library's product: of more rows than 128 slices of 64 have, and where there is room for two slices.
static void library_bias_gradients_are_their_sums(void) {
  enum { MANY = 9000, IC = 8, OC = 24 };
  Device *d = opened();
  for (int narrow = 0; narrow < 2; narrow++) {
    const size_t rows = narrow ? 200 : MANY;
    real *x = random_real(d, "x", rows * IC, 1), *dout = random_real(d, "dout", rows * OC, 1);
    acc *dw = acc_of(d, NULL, OC * IC), *db = random_acc(d, "db", OC, 1);
    double *v = xmalloc(rows * OC, 8), want[OC], size[OC];
    d->download_real(d, v, dout, rows * OC), d->download_acc(d, want, db, OC);
    for (size_t i = 0; i < OC; i++) size[i] = fabs(want[i]);
    for (size_t i = 0; i < rows * OC; i++) want[i % OC] += v[i], size[i % OC] += fabs(v[i]);
    if (narrow) cuda_limit_work(2 * 2 * OC * sizeof(float));
    if (emulated_launches) emulated_launches();
    d->linear_backward_weight(d, dw, db, dout, x, rows, IC, OC);
    cuda_limit_work(SIZE_MAX);
    if (emulated_launches) {
      char *text = format("column_sum_kernel<%s> 1,%d x 128\nnorm_backward_sum_kernel 1 x 256\n", precision == CUDA_BF16 ? "__nv_bfloat16, 8" : "float, 4", narrow ? 2 : 127);
      CHECK_STR(emulated_launches(), text);
      free(text);
    }
    // a chain of n additions errs by at most n u times the sum of magnitudes; cut into slices it is shorter
    for (size_t i = 0; i < OC; i++) CHECK_NEAR(acc_value(d, db, i), want[i], (double)rows * 0x1p-24 * size[i], "rows %zu, dbias %zu", rows, i);
    free(v);
  }
  d->destroy(d);
}
