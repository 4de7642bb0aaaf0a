// tensors.c: owns the one table of tensors. Parameters, gradients, moments, checkpoints, import, export and plans all
// walk it; no tensor is known by its number. See model.h.
#include "detmath.h"   // det_normals
#include "model.h"
#include "rng.h"       // rng_site
#include <math.h>      // sqrt
#include <stdlib.h>    // free
#include <string.h>    // strcmp

typedef struct { TensorTable *t; const GptConfig *c; size_t row_multiple; } Builder;

static double init_std(const GptConfig *c) { return c->init_std > 0 ? c->init_std : 0.02; }

static TensorRow *add(Builder *b, Role role, int layer, const char *name, int64_t rows, int64_t cols, int dims) {
  TensorTable *t = b->t;
  t->rows = xrealloc(t->rows, t->count + 1, sizeof *t->rows);
  TensorRow *row = &t->rows[t->count++];
  *row = (TensorRow){.role = role, .layer = layer, .rows = rows, .cols = cols, .dims = dims, .trainable = true, .decays = dims == 2,
                     .init = dims == 2 ? INIT_NORMAL : INIT_ZERO, .init_std = init_std(b->c), .padded_rows = (size_t)rows};
  snprintf(row->name, sizeof row->name, "%s", name);
  return row;
}

// One row of a block: the name is formatted from prefix, layer and suffix.
static TensorRow *add_in_layer(Builder *b, Role role, int layer, const char *prefix, const char *suffix, int64_t rows, int64_t cols, int dims) {
  char name[80];
  snprintf(name, sizeof name, "%s.%d.%s", prefix, layer, suffix);
  return add(b, role, layer, name, rows, cols, dims);
}

static void add_bias(Builder *b, Role role, int layer, const char *suffix, int64_t n) {
  TensorRow *row = add_in_layer(b, role, layer, "transformer.h", suffix, 1, n, 1);
  row->zero_in_file_only = !b->c->bias;
}

static void add_gpt2_matrix(Builder *b, Role role, int layer, const char *suffix, int64_t out, int64_t in, double std) {
  TensorRow *row = add_in_layer(b, role, layer, "transformer.h", suffix, out, in, 2);
  row->file_transposed = true;   // Conv1D stores (in, out)
  row->init_std = std;
}

static void add_gpt2_layer(Builder *b, int l, double residual_std) {
  const GptConfig *c = b->c;
  add_in_layer(b, ROLE_NORM1_WEIGHT, l, "transformer.h", "ln_1.weight", 1, c->channels, 1)->init = INIT_ONE;
  add_bias(b, ROLE_NORM1_BIAS, l, "ln_1.bias", c->channels);
  add_gpt2_matrix(b, ROLE_QKV_WEIGHT, l, "attn.c_attn.weight", config_qkv_width(c), c->channels, init_std(c));
  add_bias(b, ROLE_QKV_BIAS, l, "attn.c_attn.bias", config_qkv_width(c));
  add_gpt2_matrix(b, ROLE_PROJ_WEIGHT, l, "attn.c_proj.weight", c->channels, c->channels, residual_std);
  add_bias(b, ROLE_PROJ_BIAS, l, "attn.c_proj.bias", c->channels);
  add_in_layer(b, ROLE_NORM2_WEIGHT, l, "transformer.h", "ln_2.weight", 1, c->channels, 1)->init = INIT_ONE;
  add_bias(b, ROLE_NORM2_BIAS, l, "ln_2.bias", c->channels);
  add_gpt2_matrix(b, ROLE_FC_WEIGHT, l, "mlp.c_fc.weight", c->ffn, c->channels, init_std(c));
  add_bias(b, ROLE_FC_BIAS, l, "mlp.c_fc.bias", c->ffn);
  add_gpt2_matrix(b, ROLE_DOWN_WEIGHT, l, "mlp.c_proj.weight", c->channels, c->ffn, residual_std);
  add_bias(b, ROLE_DOWN_BIAS, l, "mlp.c_proj.bias", c->channels);
}

static void add_llama_layer(Builder *b, int l, double residual_std) {
  const GptConfig *c = b->c;
  int64_t kv = c->kv_heads * config_head_size(c);
  add_in_layer(b, ROLE_NORM1_WEIGHT, l, "model.layers", "input_layernorm.weight", 1, c->channels, 1)->init = INIT_ONE;
  add_in_layer(b, ROLE_QKV_WEIGHT, l, "model.layers", "self_attn.q_proj.weight", c->channels, c->channels, 2);
  add_in_layer(b, ROLE_JOINED, l, "model.layers", "self_attn.k_proj.weight", kv, c->channels, 2)->joined = true;
  add_in_layer(b, ROLE_JOINED, l, "model.layers", "self_attn.v_proj.weight", kv, c->channels, 2)->joined = true;
  add_in_layer(b, ROLE_PROJ_WEIGHT, l, "model.layers", "self_attn.o_proj.weight", c->channels, c->channels, 2)->init_std = residual_std;
  add_in_layer(b, ROLE_NORM2_WEIGHT, l, "model.layers", "post_attention_layernorm.weight", 1, c->channels, 1)->init = INIT_ONE;
  add_in_layer(b, ROLE_FC_WEIGHT, l, "model.layers", "mlp.gate_proj.weight", c->ffn, c->channels, 2);
  add_in_layer(b, ROLE_JOINED, l, "model.layers", "mlp.up_proj.weight", c->ffn, c->channels, 2)->joined = true;
  add_in_layer(b, ROLE_DOWN_WEIGHT, l, "model.layers", "mlp.down_proj.weight", c->channels, c->ffn, 2)->init_std = residual_std;
}

// Offsets: rows of a matrix lie dense; a tensor starts on a multiple of 16 elements unless it is joined to the one before.
static void place(Builder *b) {
  TensorTable *t = b->t;
  size_t at = 0;
  for (size_t i = 0; i < t->count; i++) {
    TensorRow *row = &t->rows[i];
    if (row->zero_in_file_only) { row->trainable = row->decays = false; row->offset = at; row->size = 0; continue; }
    if (!row->joined) at = round_up(at, 16);
    row->offset = at;
    if (!mul_size(row->padded_rows, (size_t)row->cols, &row->size) || !add_size(at, row->size, &at))
      fail(EXIT_REQUEST, "%s of %lld x %lld is more than an address can hold", row->name, (long long)row->rows, (long long)row->cols);
    t->parameters += row->rows * row->cols;
  }
  t->total = round_up(at, 16);
}

void tensor_table_build(TensorTable *t, const GptConfig *c, size_t row_multiple) {
  *t = (TensorTable){0};
  Builder builder = {t, c, row_multiple}, *b = &builder;
  bool gpt2 = c->family == FAMILY_GPT2;
  // Residual projections start smaller, so that the residual stream does not grow with depth (Radford et al. 2019)
  double residual_std = init_std(c) / sqrt(2.0 * (double)c->layers);
  size_t padded_vocab = round_up((size_t)c->vocab, row_multiple);
  add(b, ROLE_WTE, -1, gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight", c->vocab, c->channels, 2)->padded_rows = padded_vocab;
  if (gpt2) add(b, ROLE_WPE, -1, "transformer.wpe.weight", c->context, c->channels, 2);
  for (int l = 0; l < c->layers; l++) {
    if (gpt2) add_gpt2_layer(b, l, residual_std);
    else add_llama_layer(b, l, residual_std);
  }
  add(b, ROLE_NORMF_WEIGHT, -1, gpt2 ? "transformer.ln_f.weight" : "model.norm.weight", 1, c->channels, 1)->init = INIT_ONE;
  if (gpt2) add(b, ROLE_NORMF_BIAS, -1, "transformer.ln_f.bias", 1, c->channels, 1)->zero_in_file_only = !c->bias;
  if (!c->tie) add(b, ROLE_HEAD, -1, "lm_head.weight", c->vocab, c->channels, 2)->padded_rows = padded_vocab;
  place(b);
}

void tensor_table_free(TensorTable *t) {
  free(t->rows);
  *t = (TensorTable){0};
}

const TensorRow *tensor_find(const TensorTable *t, const char *name) {
  for (size_t i = 0; i < t->count; i++) if (!strcmp(t->rows[i].name, name)) return &t->rows[i];
  return NULL;
}

const TensorRow *tensor_of(const TensorTable *t, Role role, int layer) {
  for (size_t i = 0; i < t->count; i++) if (t->rows[i].role == role && t->rows[i].layer == layer) return &t->rows[i];
  return NULL;
}

void tensor_init(const TensorRow *row, uint64_t seed, size_t first, size_t n, double *values) {
  enum { PIECE = 4096 };
  uint32_t site = rng_site(row->name);
  #pragma omp parallel for schedule(dynamic, 1)
  for (size_t at = 0; at < n; at += PIECE) {
    const size_t end = MIN(at + PIECE, n);
    if (row->init == INIT_NORMAL) det_normals(seed, site, first + at, end - at, values + at);
    for (size_t i = at; i < end; i++) values[i] = row->init == INIT_NORMAL ? row->init_std * values[i] : row->init == INIT_ONE ? 1 : 0;
  }
}
