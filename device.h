// device.h: the contract between flow and devices. The most important page of the project.
//
// Flow (train.c, model.c, evaluate.c, sample.c) says what happens, in order; a device says how each operation is done. A
// device is a struct of functions. Three files implement it, in the same order and with the same variable names:
//   reference.c   plain loops in double precision, one thread: the specification and the oracle of every test
//   cpu.c         fp32 or bf16 with OpenMP and vector instructions (with cpu_gemm.c, cpu_attention.c, simd.h)
//   train_gpt.cu  fp32 or bf16 on NVIDIA GPUs (with gemm.cuh, attention.cuh, cuda.cuh, ptx.cuh)
// Names are x_layernorm_forward with x = reference, cpu, cuda, so that grep finds all three. The page is C11 and C++17.
//
// TYPES. Flow sees three opaque types and cannot look inside:
//   real   storage of weights and activations, and of the gradients of activations: fp64 on the reference, fp32 or bf16
//          on the CPU and on CUDA
//   acc    gradients of weights, losses, moments, master weights, row statistics:   fp64 on the reference, fp32 elsewhere
//   scalar fp64 scalars that live where the device lives (the loss, the norm)
// ids are int32_t. Scalars reach the device as double. upload and download are the only conversions.
//
// READING AN OPERATION. Shapes stand beside each pointer; B sequences, T positions, rows = B*T, C channels, V vocabulary.
//   =   the output is set; what was there does not matter (it may be uninitialised)
//   +=  the output is accumulated: each element continues ONE chain of additions from the stored value, rows in order.
// Pointers do not alias unless the operation says so. Rows are dense unless a stride is given.
//
// ASYNCHRONY. Operations enqueue in order; only download_* and sync wait. Nothing reports errors but sync/download.
//
// SAME BITS. Every output element has one owner; sums over rows are chains in row order from the stored accumulator;
// products are chains of fused multiply-adds over k from the stored accumulator (bias, gradient); sums inside a row put
// element j into lane j mod 16 and add the lanes in one fixed tree: ((l0+l8)+(l4+l12)) + ((l2+l10)+(l6+l14)) and so on,
// that is: for width 8, 4, 2, 1: lane[i] += lane[i+width]. So a fp32 result does not depend on threads, tiles or vector width.
// On CUDA sums have a fixed order of their own and exp is the toolkit's: two runs give the same bits, on one kind of GPU.
// This binds devices that compute in fp32, over all of their threads. The reference adds in plain order, in fp64; a device in bf16
// is bound within its own class of instructions only.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct real real;   // opaque: never defined in flow
typedef struct acc acc;
typedef struct scalar scalar;
typedef struct Device Device;

typedef enum { ACTIVATION_NONE, ACTIVATION_GELU, ACTIVATION_SWIGLU } Activation;
typedef enum { MASK_CAUSAL, MASK_FULL } AttentionMask;
typedef enum { WITHOUT_GRADIENT, WITH_GRADIENT } WantGradient;
enum { IGNORED_TARGET = -1 };

// Where the random numbers of one dropout come from (rng.h). Element e of a row-major (rows, width) array is kept if
// rng_u32(seed, step, site, (row0 + row) * width + column) >= keep_threshold, keep_threshold = (uint32_t)(p * 2^32), and then
// multiplied by 1/(1-p). row0 is the index of the first row within the whole step. p = 0: nothing happens.
typedef struct {
  double p;
  uint64_t seed;
  uint32_t step, site;
  uint64_t row0;
} Dropout;

// One attention call serves training, prefill, decoding with a cache and document masking.
typedef struct {
  size_t B;              // sequences
  size_t T;              // query rows of each sequence
  size_t S;              // key/value rows of each sequence; key row s stands at absolute position s
  size_t position;       // absolute position of query row 0 (training: 0; decoding: S - T)
  size_t NH, KVH, HS;    // query heads, key/value heads (divides NH; query head h reads key head h / (NH/KVH)), head size
  size_t q_stride, kv_stride, out_stride;          // elements between consecutive rows
  size_t q_batch, kv_batch, out_batch;             // elements between consecutive sequences
  AttentionMask mask;    // causal: query at absolute position p sees keys 0..p; full: sees all S keys
  const int32_t *first_key;  // device memory, (B, T) or NULL: first key that each query may see (start of its document)
  Dropout dropout;       // on the probabilities; width S, row = ((row0 + b*T + t) * NH + h)
  double scale;          // scores are multiplied by it, usually 1/sqrt(HS)
} AttentionShape;

// One tensor as the optimizer sees it. n elements each.
typedef struct {
  real *param;           // =  new weights
  acc *master;           // =  new weights in full precision; NULL where param itself is the master copy
  const acc *grad;
  acc *m, *v;            // =  first and second moment
  size_t n;
  double weight_decay;   // 0 for tensors that do not decay
  uint32_t site;         // stream of random numbers that round param where master is NULL and real is bf16
} AdamWTensor;

// Loshchilov & Hutter 2019 (decoupled decay), bias correction as in Kingma & Ba 2015. For each element:
//   g = grad * clip;  m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2
//   w = w - lr * ( (m / bias1) / (sqrt(v / bias2) + eps) + weight_decay * w ),  bias_i = 1 - beta_i^t, t = updates so far, this one included
typedef struct {
  double lr, beta1, beta2, eps, bias1, bias2;
  double grad_clip;      // clip = min(1, grad_clip / norm), norm = sqrt(sum of squares); 0: no clipping
  double max_norm;       // nothing is updated if norm > max_norm (outlier skipping); 0: no limit
  uint64_t seed;         // and step: of stochastic rounding. Without a master copy a bf16 weight is rounded up with the probability of its
  uint32_t step;         // distance from the value below (Gupta et al. 2015), by the lower half of word (seed, step, site, element)
} AdamWSettings;

enum { STAT_LOSS, STAT_GRAD_SUMSQ, STAT_COUNT };   // slots of a step's stat array

struct Device {
  const char *name;        // "reference", "cpu", "cuda"
  const char *description; // for the banner: "fp32, avx512, 2 threads"
  size_t real_size, acc_size;  // bytes of one element
  int real_is_acc;         // 1: weights need no master copy
  size_t row_multiple;     // rows of the vocabulary table are padded to this multiple (zero rows, zero gradients)
  // linear_backward_weight's sums over rows go in groups of this many rows, counted from a call's first row; 1: row by row. Rows may be cut among
  // calls at its multiples without changing a bit. (1 but on a CPU with matrix tiles)
  size_t row_group;
  size_t scratch_bytes;    // memory the device holds for itself whatever it is asked to do, for the printed table
  double peak_flops;       // measured at creation, FLOP/s of this device with these threads; 0 if not measured
  void *state;             // the device's own

  // ---- memory ----
  void *(*allocate)(Device *d, size_t bytes);             // zeroed, 64-byte aligned; NULL if there is none
  void (*release)(Device *d, void *p, size_t bytes);
  void (*zero)(Device *d, void *p, size_t bytes);
  void (*copy)(Device *d, void *dst, const void *src, size_t bytes);   // within the device
  void (*upload_real)(Device *d, real *dst, const double *src, size_t n);   // = ; rounds to nearest even
  void (*upload_acc)(Device *d, acc *dst, const double *src, size_t n);
  void (*upload_real_float)(Device *d, real *dst, const float *src, size_t n);
  void (*upload_acc_float)(Device *d, acc *dst, const float *src, size_t n);
  void (*upload_ids)(Device *d, int32_t *dst, const int32_t *src, size_t n);
  void (*download_real)(Device *d, double *dst, const real *src, size_t n);
  void (*download_acc)(Device *d, double *dst, const acc *src, size_t n);
  void (*download_stat)(Device *d, double *dst, const scalar *src, size_t n);
  void (*sync)(Device *d);
  void (*destroy)(Device *d);
  // Bytes of its own that are free, scratch_bytes among them, and where the number is from. NULL: it takes the machine's.
  size_t (*memory_available)(const Device *d, const char **from);
  double (*measure_peak)(Device *d);                      // FLOP/s that can be had at this moment; NULL: cannot be measured
  // Bytes/s, read and written together, at which an array that no cache holds is changed in place; takes a tenth of a second and memory of its own. NULL or 0:
  // cannot be measured
  double (*measure_bandwidth)(Device *d);
  uint64_t (*launches)(const Device *d);                  // kernels launched so far in this process; NULL: the device launches none
  // Working memory (packed pieces of factors, blocks of scores) that comes on top of scratch_bytes for a product of (rows,IC) with
  // (OC,IC) in all three directions, or for this attention. It is kept: of many products, and of many attentions, the largest counts.
  // NULL: none.
  size_t (*linear_scratch)(const Device *d, size_t rows, size_t IC, size_t OC);
  size_t (*attention_scratch)(const Device *d, const AttentionShape *shape, WantGradient gradient);
  // Of each weight (OC,IC) that refresh has announced: bytes of the copies in another order that the device makes when a product meets it, and keeps till
  // its memory is released. NULL: it makes none.
  size_t (*weight_copies)(const Device *d, size_t OC, size_t IC, WantGradient gradient);
  // ---- a second stream, for a transport that works on the device's own memory (comm_nccl.c). All NULL: its memory is the process's own, which any
  // transport reads and writes once sync has returned. ----
  void *(*side_stream)(Device *d);                        // a cudaStream_t
  void (*side_begin)(Device *d);                          // what is put on the side stream from now on waits for all operations so far; a span begins
  void (*side_end)(Device *d);                            // the span ends behind what has been put there since
  int (*side_busy)(Device *d);                            // 1: not all spans are done. Operations never wait for them: the host does, by asking
  double (*side_seconds)(Device *d);                      // that the spans since the last call of this took, all of which are done
  real *(*real_at)(real *p, size_t i);                    // &p[i]
  acc *(*acc_at)(acc *p, size_t i);
  scalar *(*stat_at)(scalar *p, size_t i);

  // ---- embedding: out[b,t] = wte[ids[b,t]] + wpe[position + t] ----
  void (*embedding_forward)(Device *d, real *out /* = (B,T,C) */, const int32_t *ids /* (B,T), each < V */,
                            const real *wte /* (V,C) */, const real *wpe /* (context,C) or NULL */,
                            size_t B, size_t T, size_t C, size_t position);
  // dwte[ids[b,t]] += dout[b,t];  dwpe[t] += dout[b,t] (position 0); rows in order; either gradient may be NULL
  void (*embedding_backward)(Device *d, acc *dwte /* += (V,C) */, acc *dwpe /* += (context,C) */,
                             const real *dout /* (B,T,C) */, const int32_t *ids /* (B,T) */, size_t B, size_t T, size_t C, size_t V);

  // ---- dropout, in place; its backward is the same call on the gradient ----
  void (*dropout)(Device *d, real *x /* (rows,width) */, size_t rows, size_t width, const Dropout *dropout);

  // ---- norms, fused with the residual addition that stands before each ----
  // residual = x + delta (delta NULL: residual is not written and x itself is normalised; residual may alias x or delta)
  // mean = sum(residual)/C;  rstd = 1/sqrt(sum((residual-mean)^2)/C + eps);  out = (residual-mean)*rstd*weight + bias
  void (*layernorm_forward)(Device *d, real *residual /* = (rows,C) */, real *out /* = (rows,C) */,
                            acc *mean /* = (rows) */, acc *rstd /* = (rows) */,
                            const real *x /* (rows,C) */, const real *delta /* (rows,C) or NULL */,
                            const real *weight /* (C) */, const real *bias /* (C) or NULL */, size_t rows, size_t C, double eps);
  // dx = dresidual + d(layernorm)/dx . dout (dresidual NULL: 0; dx may alias dresidual); dweight, dbias += sums over rows
  // x is the residual that was normalised
  void (*layernorm_backward)(Device *d, real *dx /* = (rows,C) */, acc *dweight /* += (C) */, acc *dbias /* += (C) or NULL */,
                             const real *dout /* (rows,C) */, const real *dresidual /* (rows,C) or NULL */,
                             const real *x /* (rows,C) */, const real *weight /* (C) */,
                             const acc *mean /* (rows) */, const acc *rstd /* (rows) */, size_t rows, size_t C);
  // rstd = 1/sqrt(sum(residual^2)/C + eps);  out = residual*rstd*weight (Zhang & Sennrich 2019)
  void (*rmsnorm_forward)(Device *d, real *residual, real *out, acc *rstd, const real *x, const real *delta,
                          const real *weight, size_t rows, size_t C, double eps);
  void (*rmsnorm_backward)(Device *d, real *dx, acc *dweight, const real *dout, const real *dresidual,
                           const real *x, const real *weight, const acc *rstd, size_t rows, size_t C);
  // out = x + delta, elementwise; out may alias either
  void (*residual_forward)(Device *d, real *out, const real *x, const real *delta, size_t n);

  // ---- matrix products: weights are (OC, IC) always ----
  // pre[r,o] = bias[o] + sum_i x[r,i]*weight[o,i] (a chain over i that starts at the bias, or 0);
  // activation NONE: post is NULL. GELU: post (rows,OC) = gelu(pre). SWIGLU: gate and up lie side by side,
  // post (rows,OC/2): post[r,j] = silu(pre[r,j]) * pre[r,OC/2+j]. With an activation pre may be NULL (not kept).
  void (*linear_forward)(Device *d, real *pre /* = (rows,OC) */, real *post, const real *x /* (rows,IC) */,
                         const real *weight, const real *bias /* (OC) or NULL */, size_t rows, size_t IC, size_t OC, Activation activation);
  // dx[r,i] = sum_o dout[r,o]*weight[o,i], a chain over o from 0
  void (*linear_backward_input)(Device *d, real *dx /* = (rows,IC) */, const real *dout /* (rows,OC) */,
                                const real *weight /* (OC,IC) */, size_t rows, size_t IC, size_t OC);
  // dweight[o,i] += sum_r dout[r,o]*x[r,i];  dbias[o] += sum_r dout[r,o]; chains over r (dweight: over groups of r, see row_group) from the
  // stored value
  void (*linear_backward_weight)(Device *d, acc *dweight /* += (OC,IC) */, acc *dbias /* += (OC) or NULL */,
                                 const real *dout /* (rows,OC) */, const real *x /* (rows,IC) */, size_t rows, size_t IC, size_t OC);
  // post from pre, unfused (recomputation, and the test that fused equals unfused); width = OC of the product. GELU or SWIGLU:
  // with ACTIVATION_NONE neither of these two may be called, for there is no post
  // gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016, GPT-2's form); silu(x) = x/(1+exp(-x))
  void (*activation_forward)(Device *d, real *post, const real *pre, size_t rows, size_t width, Activation activation);
  // dpre (rows,width) = d(post)/d(pre) . dpost; dpre may alias pre, and with GELU dpost
  void (*activation_backward)(Device *d, real *dpre /* = */, const real *dpost, const real *pre, size_t rows, size_t width, Activation activation);

  // ---- rotary positions (Su et al. 2021), halves convention: pairs (i, i+HS/2) of each of the first `heads` heads of a row ----
  // table[p,i] = { cos, sin }(p * theta^(-2i/HS)), p < context, i < HS/2
  void (*rope_table)(Device *d, acc *table /* = (context,HS/2,2) */, size_t context, size_t HS, double theta);
  // in place; direction +1 forward, -1 backward (the inverse rotation of the gradient); row t of a sequence is position + t
  void (*rope)(Device *d, real *x /* (B,T,stride) */, const acc *table, size_t B, size_t T, size_t position,
               size_t heads, size_t HS, size_t stride, int direction);

  // ---- attention (Vaswani et al. 2017; Dao et al. 2022 for the backward pass from lse) ----
  // score[s] = scale * q.k[s] over visible s;  p = softmax(score), then dropout;  out = sum_s p[s] v[s];  lse = log sum exp(score)
  // lse may be NULL (decoding). A query that sees nothing (first_key behind its
  // last key; flow makes none) gives zeros and lse = -inf, and nothing in the backward pass.
  void (*attention_forward)(Device *d, real *out /* = */, acc *lse /* = (B,NH,T) */, const real *q, const real *k, const real *v,
                            const AttentionShape *shape);
  // dq, dk, dv have the strides of q, k, v and are all set; out, lse from the forward pass; dout has out's strides. T == S, position 0.
  // Grouped heads: each element of dk and dv is one chain over the query heads of its group in order, and within each head over
  // the queries in order.
  void (*attention_backward)(Device *d, real *dq, real *dk, real *dv, const real *dout, const real *q, const real *k, const real *v,
                             const real *out, const acc *lse, const AttentionShape *shape);
  // rows of `width` elements: dst[r*dst_stride + j] = src[r*src_stride + j] (filling a key-value cache)
  void (*copy_rows)(Device *d, real *dst, size_t dst_stride, const real *src, size_t src_stride, size_t rows, size_t width);

  // ---- classifier: softmax, cross-entropy and its gradient in place, on a chunk of rows of logits ----
  // loss[r] = logsumexp(logits[r,0..V)) - logits[r,target[r]], in nats; 0 where target[r] is IGNORED_TARGET.
  // WITH_GRADIENT: logits[r,j] = (softmax_j - [j == target]) * scale for j < V, 0 for V <= j < stride; whole row 0 where ignored.
  // WITHOUT_GRADIENT: logits unchanged.
  void (*crossentropy)(Device *d, real *logits /* (rows,stride) */, acc *loss /* = (rows) */, const int32_t *targets /* (rows) */,
                       size_t rows, size_t V, size_t stride, double scale, WantGradient gradient);
  // out[r] = log softmax(logits[r])[target[r]] is -loss; scoring uses crossentropy WITHOUT_GRADIENT.

  // ---- the step's scalars and the optimizer ----
  // out[ids[i]] += x[i], rows of C numbers; all ids are different
  void (*add_rows)(Device *d, acc *out /* += (V,C) */, const acc *x /* (n,C) */, const int32_t *ids /* (n), each < V; NULL: i itself */, size_t n, size_t C, size_t V);
  void (*sum)(Device *d, scalar *out /* += one */, const acc *x, size_t n);      // fp64 chain in order
  // *out += sum x^2: fp64 partials of blocks of 4,096 elements counted from x, added to *out in order
  void (*sumsq)(Device *d, scalar *out /* += one */, const acc *x, size_t n);
  // For every tensor the update above. Nothing at all is written if stat[STAT_LOSS] or the norm sqrt(stat[STAT_GRAD_SUMSQ])
  // is not finite, or norm > max_norm.
  void (*adamw)(Device *d, const AdamWTensor *tensors, size_t count, const AdamWSettings *settings, const scalar *step_stat /* (STAT_COUNT) */);
  // Called after every update or load of weights: a device may renew packed or low-precision copies of them.
  void (*refresh)(Device *d, const real *params, size_t n);
  // *out += number of elements that are not finite (checked re-run of a bad step)
  void (*count_nonfinite_real)(Device *d, scalar *out, const real *x, size_t n);
  void (*count_nonfinite_acc)(Device *d, scalar *out, const acc *x, size_t n);
};

// The specification: fp64, one thread.
Device *reference_device(void);
// OpenMP; storage fp32, or bf16 beside fp32 master weights. threads 0: physical cores within the quota. Instruction set: the best here,
// or what GPT_CPU says (generic, avx2, avx512, avx512bf16, amx; exit 3 if this processor lacks it, exit 2 if the word is unknown).
Device *cpu_device(int threads);
Device *cpu_device_bf16(int threads);
// NULL: products in bf16 may use matrix tiles (AMX) here; else why not, without a full stop. Asks the system for them, once for all threads.
const char *cpu_tiles_unavailable(void);
// Logical processors that threads of this process may run on.
int cpu_processors(void);
// First of all in main, before any thread: makes OpenMP's threads wait briefly, then sleep, unless the environment says how. Does not return where it has
// to start the program anew for it.
void cpu_wait_briefly(char **argv);
// NVIDIA GPUs of capability 8.0 and up (train_gpt.cu). Storage fp32, or bf16 beside fp32 master weights; acc is fp32. Exit 3 and one
// sentence where cuda_unavailable() gives one.
// GEMM_CUBLASLT: matrix products by NVIDIA's library (cublaslt.cuh); exit 3 if it is not found. GEMM_WGMMA: large bf16 products by the instruction
// that sm_90a alone has (gemm.cuh); exit 3 where the GPU or the binary lacks it.
typedef enum { CUDA_FP32, CUDA_BF16 } CudaPrecision;
typedef enum { GEMM_OWN, GEMM_CUBLASLT, GEMM_WGMMA } GemmLibrary;   // places of --gemm's words
Device *cuda_device(CudaPrecision precision, GemmLibrary library);
// NULL: cuda_device() would open one; else why not, without a full stop: the build has none, driver, device, memory, exclusive use.
const char *cuda_unavailable(void);
// Both are about the GPU that cuda_select chose, as CUDA numbers them; at first it is 0. How many there are: 0 where there is none, or no driver.
// A process that has asked any of these questions cannot fork others that use a GPU: CUDA does not survive it.
void cuda_select(int number);
int cuda_devices(void);
// What that sentence depends on, and the sentence (for tests). error: the runtime's cudaError_t; versions as 1000 major + 10 minor
typedef struct { int driver, runtime, error, devices, major, minor; size_t memory_free, memory_needed; } CudaFacts;
const char *cuda_refusal(const CudaFacts *facts);
// The same of --gemm wgmma. made: the kernels that the GPU runs were made for sm_90a. NULL: it can be used.
const char *cuda_wgmma_refusal(int made, int major, int minor);
// For tests: operations that can work in pieces use at most so many bytes of their working memory. At first it is all of it.
void cuda_limit_work(size_t bytes);
// What its products in bf16 depend on (for tests; 0 where the build lacks the device): in how many parts the sum over K is cut where tiles make `tiles`
// blocks and `places` run at once; FLOP a cycle of a multiprocessor of that capability.
int cuda_splits(size_t M, size_t N, size_t K, size_t tiles, size_t places);
double cuda_flops_a_cycle(int major, int minor, CudaPrecision precision);

#ifdef __cplusplus
}
#endif
