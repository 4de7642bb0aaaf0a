// cublaslt.cpp: owns the stand-in for cuBLASLt, libcublasLt.so.13 beside the emulated programs: the calls that cublaslt.cuh makes, by plain loops.
//
// Names, values, defaults and rules are those of NVIDIA's documentation (cuBLAS, "Using the cublasLt API"); columns are counted first. What the documentation
// forbids ends the program with a sentence: descriptors that do not exist, sizes and types that do not fit, a workspace that is too small or not at a multiple of
// 256, matrices less aligned than the algorithm was asked for, memory that is not the device's, no stream, descriptors that are left at the end. The scalars and
// the descriptors are read when the call is made, the matrices when its turn on the stream comes. The algorithm that is found takes all of the workspace
// that it may have, and spoils its ends. Where beta is 0, C is not read.
//
// It behaves badly on request, through the environment:
//   GPT_CUBLASLT_FAIL=N        the N-th call from cublasLtCreate on, which is the first, fails (those that destroy are not counted)
//   GPT_CUBLASLT_FAIL=none     there is no algorithm for any product;   =state: one is named that cannot be had
//   GPT_CUBLASLT_LOG=FILE      a line for every algorithm asked for and every product: rows x columns x k, as the library counts them
// Tests: tests/test_cuda.c (library_*), tests/test_ops.c (linear_*), both with TEST_DEVICE=cuda-cublaslt and cuda-bf16-cublaslt
#include "emulator.h"       // submit, in_device, host_wrote
#include <map>

typedef int Status;
enum { SUCCESS = 0, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };                  // cublasStatus_t
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68 };                              // cudaDataType_t, cublasComputeType_t
enum { TRANSA = 3, TRANSB = 4, EPILOGUE = 7, BIAS_POINTER = 8 };                // cublasLtMatmulDescAttributes_t
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4 };                               // cublasLtEpilogue_t
enum { MAX_WORKSPACE_BYTES = 1, MIN_ALIGNMENT_A_BYTES = 5, MIN_ALIGNMENT_D_BYTES = 8 };   // cublasLtMatmulPreferenceAttributes_t

struct Layout { int type; uint64_t rows, columns; int64_t leading; };
struct Operation { int transposed[2]; uint32_t epilogue; const char *bias; };   // of a, of b
struct Preference { uint64_t workspace; uint32_t alignment[4]; };               // of a, b, c, d
struct Problem { Operation operation; Layout a, b, d; uint64_t m, n, k; };
struct Algorithm { uint64_t problem, workspace; uint32_t alignment[4]; char unused[32]; };   // cublasLtMatmulAlgo_t: 64 bytes that only the library reads
struct Result { Algorithm algorithm; size_t workspace; Status state; float waves; int reserved[4]; };   // cublasLtMatmulHeuristicResult_t
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t");

// ---- what exists ----

enum Kind { HANDLE, OPERATION, LAYOUT, PREFERENCE, KINDS };
static const char *const kinds[KINDS] = {"handle", "operation", "layout", "preference"};
static std::map<const void *, Kind> living;
static int calls;

static bool fails() {
  const char *text = getenv("GPT_CUBLASLT_FAIL");
  return text && atoi(text) == ++calls;
}
template <class T> static Status create(void **p, Kind kind, const T &start) {
  if (fails()) return INTERNAL_ERROR;
  *p = new T(start);
  living[*p] = kind;
  return SUCCESS;
}
template <class T> static T &get(const void *p, Kind kind, const char *call) {
  auto found = living.find(p);
  if (found == living.end() || found->second != kind) cuemu::fail("%s: %p is no %s", call, p, kinds[kind]);
  return *(T *)p;
}
template <class T> static Status destroy(void *p, Kind kind, const char *call) {
  T *old = &get<T>(p, kind, call);
  living.erase(p);
  delete old;
  return SUCCESS;
}
template <class T> static void take(T &to, const void *from, size_t bytes, const char *what) {
  if (bytes != sizeof to) cuemu::fail("%s: %zu bytes, not %zu", what, bytes, sizeof to);
  memcpy(&to, from, bytes);
}

static void say(const char *what, const Problem &p, const char *more) {
  FILE *log = getenv("GPT_CUBLASLT_LOG") ? fopen(getenv("GPT_CUBLASLT_LOG"), "a") : NULL;
  if (!log) return;
  fprintf(log, "%s %zux%zux%zu %s%s %c%c%s, %s\n", what, (size_t)p.m, (size_t)p.n, (size_t)p.k, p.a.type == R_16BF ? "bf16" : "fp32", p.d.type == p.a.type ? "" : " to fp32",
          p.operation.transposed[0] ? 'T' : 'N', p.operation.transposed[1] ? 'T' : 'N', p.operation.epilogue == EPILOGUE_BIAS ? " + bias" : "", more);
  fclose(log);
}

// ---- problems ----

static size_t size_of(const Layout &l) { return l.type == R_16BF ? 2 : 4; }
// From descriptors, which have to fit.
static Problem problem_of(const char *call, const void *operation, const void *a, const void *b, const void *c, const void *d) {
  Problem p = {get<Operation>(operation, OPERATION, call), get<Layout>(a, LAYOUT, call), get<Layout>(b, LAYOUT, call), get<Layout>(d, LAYOUT, call), 0, 0, 0};
  const Layout other = get<Layout>(c, LAYOUT, call);
  const bool ta = p.operation.transposed[0], tb = p.operation.transposed[1];
  p.m = ta ? p.a.columns : p.a.rows, p.k = ta ? p.a.rows : p.a.columns, p.n = tb ? p.b.rows : p.b.columns;
  const uint64_t k = tb ? p.b.columns : p.b.rows;
  if (k != p.k || p.d.rows != p.m || p.d.columns != p.n)
    cuemu::fail("%s: (%zu,%zu) times (%zu,%zu) is not (%zu,%zu)", call, (size_t)p.m, (size_t)p.k, (size_t)k, (size_t)p.n, (size_t)p.d.rows, (size_t)p.d.columns);
  if (other.type != p.d.type || other.rows != p.d.rows || other.columns != p.d.columns || other.leading != p.d.leading) cuemu::fail("%s: C is laid out otherwise than D", call);
  if (p.a.type != p.b.type || (p.a.type == R_32F && p.d.type != R_32F)) cuemu::fail("%s: types %d and %d to %d are not in the table of those supported", call, p.a.type, p.b.type, p.d.type);
  return p;
}
// Of all that an algorithm is chosen by (FNV-1a): it is good for nothing else.
static uint64_t fingerprint(const Problem &p) {
  const uint64_t facts[] = {p.m, p.n, p.k, (uint64_t)p.a.leading, (uint64_t)p.b.leading, (uint64_t)p.d.leading, (uint64_t)p.a.type, (uint64_t)p.d.type,
                            (uint64_t)p.operation.transposed[0], (uint64_t)p.operation.transposed[1], p.operation.epilogue};
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint64_t fact : facts) hash = (hash ^ fact) * 0x100000001b3u;
  return hash;
}

static float element(const char *p, const Layout &l, bool transposed, uint64_t i, uint64_t j) {
  const uint64_t at = transposed ? i * (uint64_t)l.leading + j : i + j * (uint64_t)l.leading;
  return l.type == R_16BF ? (float)((const __nv_bfloat16 *)p)[at] : ((const float *)p)[at];
}
static void multiply(const Problem &p, float alpha, const char *a, const char *b, float beta, char *d) {
  std::vector<float> row(p.k), column(p.k * p.n);
  for (uint64_t j = 0; j < p.n; j++) for (uint64_t k = 0; k < p.k; k++) column[j * p.k + k] = element(b, p.b, p.operation.transposed[1], k, j);
  for (uint64_t i = 0; i < p.m; i++) {
    for (uint64_t k = 0; k < p.k; k++) row[k] = element(a, p.a, p.operation.transposed[0], i, k);
    for (uint64_t j = 0; j < p.n; j++) {
      float sum = 0;
      for (uint64_t k = 0; k < p.k; k++) sum = fmaf(row[k], column[j * p.k + k], sum);
      sum *= alpha;
      if (beta != 0) sum = fmaf(beta, element(d, p.d, false, i, j), sum);
      if (p.operation.epilogue == EPILOGUE_BIAS) sum += element(p.operation.bias, p.d, false, i, 0);
      const uint64_t at = i + j * (uint64_t)p.d.leading;
      if (p.d.type == R_16BF) ((__nv_bfloat16 *)d)[at] = __nv_bfloat16(sum);
      else ((float *)d)[at] = sum;
    }
  }
}

static void check_matrix(const char *name, const void *p, const Layout &l, uint32_t alignment) {
  const size_t bytes = ((l.columns - 1) * (uint64_t)l.leading + l.rows) * size_of(l);
  if (!cuemu::in_device(p, bytes)) cuemu::fail("cublasLtMatmul: %s, %zu bytes at %p, is not a device range", name, bytes, p);
  if ((uintptr_t)p % alignment) cuemu::fail("cublasLtMatmul: %s at %p: the algorithm was asked for with an alignment of %u bytes", name, p, alignment);
}

// ---- the calls ----

extern "C" {
Status cublasLtCreate(void **handle) { calls = 0; return create(handle, HANDLE, 0); }
Status cublasLtDestroy(void *handle) {
  destroy<int>(handle, HANDLE, "cublasLtDestroy");
  bool last = true;
  for (const auto &l : living) last &= l.second != HANDLE;
  if (last && !living.empty()) cuemu::fail("cublasLtDestroy: %zu descriptors are left, one of them of kind %s", living.size(), kinds[living.begin()->second]);
  return SUCCESS;
}

Status cublasLtMatmulDescCreate(void **operation, int compute, int scale) {
  if (compute != COMPUTE_32F || scale != R_32F) cuemu::fail("cublasLtMatmulDescCreate: compute type %d with scale type %d is not in the emulator", compute, scale);
  return create(operation, OPERATION, Operation{{0, 0}, EPILOGUE_DEFAULT, NULL});
}
Status cublasLtMatmulDescSetAttribute(void *operation, int attribute, const void *value, size_t bytes) {
  Operation &o = get<Operation>(operation, OPERATION, "cublasLtMatmulDescSetAttribute");
  if (fails()) return INTERNAL_ERROR;
  if (attribute == TRANSA || attribute == TRANSB) {
    int &transposed = o.transposed[attribute - TRANSA];
    take(transposed, value, bytes, "cublasLtMatmulDescSetAttribute, transposition");
    if (transposed != 0 && transposed != 1) cuemu::fail("cublasLtMatmulDescSetAttribute: transposition %d", transposed);
  } else if (attribute == EPILOGUE) {
    take(o.epilogue, value, bytes, "cublasLtMatmulDescSetAttribute, epilogue");
    if (o.epilogue != EPILOGUE_DEFAULT && o.epilogue != EPILOGUE_BIAS) cuemu::fail("cublasLtMatmulDescSetAttribute: epilogue %u is not in the emulator", o.epilogue);
  } else if (attribute == BIAS_POINTER) {
    take(o.bias, value, bytes, "cublasLtMatmulDescSetAttribute, bias");
  } else {
    cuemu::fail("cublasLtMatmulDescSetAttribute: attribute %d is not in the emulator", attribute);
  }
  return SUCCESS;
}
Status cublasLtMatmulDescDestroy(void *operation) { return destroy<Operation>(operation, OPERATION, "cublasLtMatmulDescDestroy"); }

Status cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  if ((type != R_32F && type != R_16BF) || !rows || !columns || leading < (int64_t)rows)
    cuemu::fail("cublasLtMatrixLayoutCreate: type %d, %zu rows, %zu columns, leading dimension %ld", type, (size_t)rows, (size_t)columns, (long)leading);
  return create(layout, LAYOUT, Layout{type, rows, columns, leading});
}
Status cublasLtMatrixLayoutDestroy(void *layout) { return destroy<Layout>(layout, LAYOUT, "cublasLtMatrixLayoutDestroy"); }

Status cublasLtMatmulPreferenceCreate(void **preference) { return create(preference, PREFERENCE, Preference{0, {256, 256, 256, 256}}); }
Status cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
  Preference &p = get<Preference>(preference, PREFERENCE, "cublasLtMatmulPreferenceSetAttribute");
  if (fails()) return INTERNAL_ERROR;
  if (attribute == MAX_WORKSPACE_BYTES) take(p.workspace, value, bytes, "cublasLtMatmulPreferenceSetAttribute, workspace");
  else if (attribute >= MIN_ALIGNMENT_A_BYTES && attribute <= MIN_ALIGNMENT_D_BYTES) take(p.alignment[attribute - MIN_ALIGNMENT_A_BYTES], value, bytes, "cublasLtMatmulPreferenceSetAttribute, alignment");
  else cuemu::fail("cublasLtMatmulPreferenceSetAttribute: attribute %d is not in the emulator", attribute);
  return SUCCESS;
}
Status cublasLtMatmulPreferenceDestroy(void *preference) { return destroy<Preference>(preference, PREFERENCE, "cublasLtMatmulPreferenceDestroy"); }

Status cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference, int wanted, Result *results, int *found) {
  const char *const call = "cublasLtMatmulAlgoGetHeuristic", *const text = getenv("GPT_CUBLASLT_FAIL");
  get<int>(handle, HANDLE, call);
  const Problem problem = problem_of(call, operation, a, b, c, d);
  const Preference &p = get<Preference>(preference, PREFERENCE, call);
  if (wanted < 1) cuemu::fail("%s: %d algorithms are asked for", call, wanted);
  *found = 0;
  if (fails()) return NOT_SUPPORTED;
  if (text && !strcmp(text, "none")) return SUCCESS;
  char more[120];
  snprintf(more, sizeof more, "alignment %u %u %u %u, workspace %zu", p.alignment[0], p.alignment[1], p.alignment[2], p.alignment[3], (size_t)p.workspace);
  say("choose", problem, more);
  *found = 1;
  results[0] = {{fingerprint(problem), p.workspace, {}, {}}, p.workspace, text && !strcmp(text, "state") ? NOT_SUPPORTED : SUCCESS, 1, {}};
  memcpy(results[0].algorithm.alignment, p.alignment, sizeof p.alignment);
  if (results[0].state) memset(&results[0].algorithm, 0xff, sizeof results[0].algorithm);   // "other fields are valid only if" it is a success
  return SUCCESS;
}

Status cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                      void *d, void *d_layout, const Algorithm *algorithm, void *workspace, size_t workspace_bytes, cudaStream_t stream) {
  const char *const call = "cublasLtMatmul";
  get<int>(handle, HANDLE, call);
  const Problem p = problem_of(call, operation, a_layout, b_layout, c_layout, d_layout);
  if (algorithm->problem != fingerprint(p)) cuemu::fail("%s: the algorithm was chosen for another product", call);
  if (workspace_bytes < algorithm->workspace) cuemu::fail("%s: a workspace of %zu bytes: the algorithm needs %zu", call, workspace_bytes, (size_t)algorithm->workspace);
  if ((uintptr_t)workspace % 256) cuemu::fail("%s: the workspace at %p is not at a multiple of 256 bytes", call, workspace);
  if (c != d) cuemu::fail("%s: out of place is not in the emulator", call);
  if (!stream) cuemu::fail("%s: no stream", call);
  if (fails()) return INTERNAL_ERROR;
  float by, start;
  memcpy(&by, alpha, sizeof by), memcpy(&start, beta, sizeof start);
  char more[40];
  snprintf(more, sizeof more, "beta %g", start);
  say("multiply", p, more);
  const Algorithm taken = *algorithm;
  cuemu::submit(stream, [=] {
    check_matrix("A", a, p.a, taken.alignment[0]), check_matrix("B", b, p.b, taken.alignment[1]), check_matrix("D", d, p.d, taken.alignment[2] > taken.alignment[3] ? taken.alignment[2] : taken.alignment[3]);
    if (p.operation.epilogue == EPILOGUE_BIAS && !cuemu::in_device(p.operation.bias, p.m * size_of(p.d))) cuemu::fail("cublasLtMatmul: the bias at %p is not a device range", p.operation.bias);
    if (taken.workspace && !cuemu::in_device(workspace, taken.workspace)) cuemu::fail("cublasLtMatmul: the workspace at %p is not a device range", workspace);
    const size_t spoilt = taken.workspace < 4096 ? taken.workspace : 4096;
    memset(workspace, 0xff, spoilt), memset((char *)workspace + taken.workspace - spoilt, 0xff, spoilt);
    multiply(p, by, (const char *)a, (const char *)b, start, (char *)d);
    cuemu::host_wrote(d, ((p.d.columns - 1) * (uint64_t)p.d.leading + p.d.rows) * size_of(p.d));
  });
  return SUCCESS;
}
}
