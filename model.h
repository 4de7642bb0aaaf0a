// model.h: configuration, the one table of tensors, memory layout, forward and backward of both families.
//
// A model is one arena on one device. Every tensor, activation and buffer in it is placed by one function, model_layout(),
// which runs twice: once to count (the printed memory table, --dry-run, the refusal) and once to place.
// Tests: tests/test_model.c, tests/test_config.c, tests/test_gradients.c
#pragma once
#include "device.h"   // the operations
#include "json.h"     // Json: config.json
#include "util.h"     // Buffer, bool

typedef enum { FAMILY_GPT2, FAMILY_LLAMA } Family;
typedef enum { RECOMPUTE_NONE, RECOMPUTE_LIGHT, RECOMPUTE_BLOCK } Recompute;

// ---- configuration (config.c) ----
typedef struct {
  Family family;         // gpt2: layer norm, learned positions, GELU; llama: RMS norm, rotary positions, SwiGLU
  int64_t layers, heads, kv_heads, channels, context, ffn, vocab;
  bool bias;             // gpt2 only: biases in every linear layer and layer norm (llama has none)
  bool tie;              // the head is wte itself
  double dropout;        // embedding, attention probabilities, both residual branches
  double norm_eps;       // 1e-5
  double rope_theta;     // llama: 10000
  AttentionMask mask;    // causal; full is in the contract for the masked objective
  double init_std;       // of initial weights; 0: 0.02, GPT-2's
  bool starts_with_eot;  // in training every row began with the end-of-text token (whole documents): so do prompts
} GptConfig;

static inline int64_t config_head_size(const GptConfig *c) { return c->channels / c->heads; }
static inline int64_t config_qkv_width(const GptConfig *c) { return (c->heads + 2 * c->kv_heads) * config_head_size(c); }
// Exit 2, one line, for what cannot be: heads that do not divide channels, sizes < 1, an odd head size with rotary positions, ... In the words
// of flags, with flags that would do: what config_read_json reads is refused there, by the keys of its file.
void config_check(const GptConfig *c);
// Sets *c to the preset named (all but vocab); unknown name: exit 2 with the list.
void config_preset(GptConfig *c, const char *name);
// Feed-forward width when nobody names one: 4C (gpt2), 8C/3 rounded up to a multiple of 16 (llama).
int64_t config_default_ffn(const GptConfig *c);
// The Hugging Face config.json of this model; eot_id -1: the vocabulary has no end-of-text token.
void config_write_json(const GptConfig *c, int32_t eot_id, Buffer *out);
// Reads it back, also as transformers writes it. What this project cannot honour is refused by the file's name and the key (exit 2), and so is
// what has another type or is out of range: only what is missing takes transformers' default.
void config_read_json(GptConfig *c, const Json *j, const char *path);
// FLOPs to train one token: 6 N + 6 L C T (the causal half of attention); N counts every parameter but position and
// untied token embeddings, which are looked up, not multiplied.
double config_flops_per_token(const GptConfig *c, int64_t T);

// ---- the one table of tensors (tensors.c): a row is a tensor of the Hugging Face file ----
typedef enum { INIT_NORMAL, INIT_ZERO, INIT_ONE } Init;
typedef enum {            // what a tensor is for; q, k, v (and gate, up) lie side by side: the first row has the role
  ROLE_WTE, ROLE_WPE, ROLE_NORM1_WEIGHT, ROLE_NORM1_BIAS, ROLE_QKV_WEIGHT, ROLE_QKV_BIAS, ROLE_PROJ_WEIGHT, ROLE_PROJ_BIAS,
  ROLE_NORM2_WEIGHT, ROLE_NORM2_BIAS, ROLE_FC_WEIGHT, ROLE_FC_BIAS, ROLE_DOWN_WEIGHT, ROLE_DOWN_BIAS,
  ROLE_NORMF_WEIGHT, ROLE_NORMF_BIAS, ROLE_HEAD, ROLE_JOINED
} Role;

typedef struct {
  char name[80];           // its name in the Hugging Face file
  Role role;
  int layer;               // 0..layers-1, or -1
  int64_t rows, cols;      // in memory (out, in); a vector is (1, n)
  int dims;                // 1 or 2, in the file
  Init init;
  double init_std;         // of INIT_NORMAL
  bool decays;             // matrices decay, vectors do not
  bool trainable;
  bool file_transposed;    // the file holds it (in, out), as GPT-2's Conv1D
  bool joined;             // lies right behind the tensor before it (no alignment gap), so that one product takes both
  bool zero_in_file_only;  // a bias of GPT-2 without biases: written as zeros, read and required to be zeros, never in memory (size 0)
  size_t padded_rows;      // rows in device memory (>= rows; the rest is zero)
  size_t offset, size;     // elements from the start of the parameter arena; size = padded_rows * cols
} TensorRow;

typedef struct {
  TensorRow *rows;
  size_t count;
  size_t total;            // elements of the arena, gaps and padding included (gaps are zero)
  int64_t parameters;      // trained numbers, without gaps and padding
} TensorTable;

void tensor_table_build(TensorTable *t, const GptConfig *c, size_t row_multiple);
void tensor_table_free(TensorTable *t);
const TensorRow *tensor_find(const TensorTable *t, const char *name);               // NULL if absent
const TensorRow *tensor_of(const TensorTable *t, Role role, int layer);             // NULL if absent
static inline size_t tensor_values(const TensorRow *row) { return row->size ? (size_t)row->rows * (size_t)row->cols : 0; }   // in memory
// Initial values first..first+n-1 of one tensor: normal(0, init_std), 0 or 1. A function of (seed, name, element).
void tensor_init(const TensorRow *row, uint64_t seed, size_t first, size_t n, double *values);

// ---- a model on a device (model.c) ----
typedef struct Gpt Gpt;
typedef enum {
  PURPOSE_TRAIN,     // weights, gradients, moments, activations of B x T rows
  PURPOSE_EVALUATE,  // weights, activations of one layer
  PURPOSE_SAMPLE,    // weights, a key-value cache of `context` positions
} Purpose;

typedef struct {
  GptConfig config;
  Purpose purpose;
  int64_t B, T;              // of a micro-batch; PURPOSE_SAMPLE: B = 1, T = rows taken at once
  Recompute recompute;
  int64_t classifier_rows;   // rows of logits held at once, at most 1,024; 0: chosen. The result does not depend on it.
  bool no_master;            // bf16 weights without a copy in fp32: they are rounded stochastically (see device.h, AdamWSettings)
  bool shares_weights;       // looks at the weights of another model instead of holding own ones,
  const Gpt *weights_of;     // namely this one's (gpt_memory does not look)
  int64_t micro_batches;     // of a step on this rank, which bounds the tokens that a step looks up; 0: any number
  int shard_rank, shards;    // ZeRO-1: moments only of the part number shard_rank of `shards`; 0: all of them
} GptOptions;

// Bytes by kind that gpt_create(options) allocates: the same pass, counting. total is exact.
typedef struct { const char *kind; size_t bytes; } MemoryLine;
typedef struct { MemoryLine line[16]; size_t count, total; } MemoryTable;
void gpt_memory(MemoryTable *table, const Device *d, const GptOptions *options);
// Bytes of working memory that the device comes to hold for this model's products and attention, beside the arena.
size_t gpt_scratch(const Device *d, const GptOptions *options);
Gpt *gpt_create(Device *d, const GptOptions *options);     // all zero; exit 3 if the device has no memory for it
void gpt_destroy(Gpt *m);

typedef enum { PART_WEIGHT /* the master copy */, PART_GRADIENT, PART_M, PART_V } Part;

// Where a micro-batch stands in the whole training: what randomness and the scale of the loss depend on.
typedef struct {
  uint64_t seed;
  uint32_t step;
  uint64_t row0;             // index of its first row within the step, over all micro-batches and ranks
  double loss_scale;         // one over the counted targets of the whole step on all ranks
  bool last;                 // of the step on this rank: its backward pass hands each block's gradients to the reducer
} MicroBatch;

// What happens to gradients as soon as they are final: they are summed over the ranks of a run, beside the computation.
// Where moments are sharded only the own part (comm_part) of each x needs the sum, and only that of updated weights is right until gathered.
typedef struct {
  void (*gradients)(void *context, acc *x /* = sum over ranks, (n) */, size_t n);   // may return before it is done
  void (*scalars)(void *context, scalar *x /* = sum over ranks, (n) */, size_t n);
  void (*wait)(void *context);                                                      // until all of it is done
  void (*gather)(void *context, void *x /* = in the parts of others, (n) of `size` bytes */, size_t n, size_t size);   // sharded only; done when it returns
  void *context;
} Reducer;

void gpt_init(Gpt *m, uint64_t seed);                      // initial weights
void gpt_begin_step(Gpt *m);                               // gradients and step statistics = 0
// Forward pass over ids (B,T) and targets (B,T) on the host (IGNORED_TARGET: not scored). Adds the sum of losses to the
// step statistics. WITH_GRADIENT also adds the head's gradients and sets the gradient at the last norm's output,
// because the logits live only chunk by chunk; call gpt_backward next.
void gpt_forward(Gpt *m, const int32_t *ids, const int32_t *targets, const MicroBatch *place, WantGradient want);
void gpt_backward(Gpt *m, const MicroBatch *place);        // gradients += those of the micro-batch of the last gpt_forward
// After the last micro-batch: adds the two accumulators of a tied embedding, reduces what the backward pass has not handed over
// and the sum of losses, waits for it, and takes the sum of squares of all gradients.
void gpt_finish_gradients(Gpt *m);
void gpt_set_reducer(Gpt *m, const Reducer *reducer);      // copied; NULL: one rank alone, nothing to reduce (so it is at first)
void gpt_update(Gpt *m, const AdamWSettings *settings, double weight_decay);   // AdamW on every trainable tensor (of the shard, then gathered), then refresh
// Collective, sharded only: PART_M or PART_V of all ranks, or PART_GRADIENT's sums, to be read by gpt_read on any rank until the next
// gpt_begin_step; the moments take the place of the gradients. PART_WEIGHT: the master weights, until the next gpt_update; nothing where the weights
// have no other copy. gpt_read does it itself where PART_WEIGHT, PART_M or PART_V was not gathered.
void gpt_gather(Gpt *m, Part part);
double gpt_loss_sum(Gpt *m);                               // sum of losses of the step so far, nats; waits
double gpt_grad_norm(Gpt *m);                              // after gpt_finish_gradients; waits
void gpt_token_losses(Gpt *m, double *losses /* (B*T) */); // of the last gpt_forward, 0 where ignored; waits
// Forward pass without targets, all logits: (B*T, vocab). For tests and comparisons; a chunk at a time internally.
void gpt_logits(Gpt *m, const int32_t *ids, double *logits);

// Decoding (PURPOSE_SAMPLE): takes n tokens that stand at positions position..position+n-1 into the cache (positions before
// them must be there already) and sets logits (vocab) of the last one. position + n <= context. Waits.
void gpt_decode(Gpt *m, const int32_t *ids, size_t n, size_t position, double *logits);

// ---- its numbers, by tensor, for checkpoints, tests and logs: values first..first+n-1 of the tensor's rows*cols, in
// memory order (out, in), without padding. In pieces, so that a caller needs no second copy of a tensor. ----
void gpt_read(Gpt *m, Part part, const TensorRow *row, size_t first, size_t n, double *values);
void gpt_write(Gpt *m, Part part, const TensorRow *row, size_t first, size_t n, const double *values);
void gpt_refresh(Gpt *m);                                  // after the last gpt_write of weights
const TensorTable *gpt_table(const Gpt *m);
const GptConfig *gpt_config(const Gpt *m);
const GptOptions *gpt_options(const Gpt *m);
Device *gpt_device(const Gpt *m);
// Replaces the device by one that wraps it (watch.h); the wrapper must use the same memory.
void gpt_set_device(Gpt *m, Device *d);
// What lies at p in the arena: "layer 3 qkv", "gradient of transformer.wte.weight"; "?" if nothing. Text valid until the next call.
const char *gpt_name_at(const Gpt *m, const void *p);
