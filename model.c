// model.c: owns the transformer: one arena, forward and backward of both families in terms of device operations.
//
// Reading order: linear() and norm(), forward_block() and backward_block() (mirrors of each other), gpt_forward() and
// gpt_backward(). model_layout() at the top says where everything lies. This file does not know where memory is or
// how an operation is done; a new GPU or precision does not touch it. Tests: tests/test_model.c, tests/test_gradients.c
#include "model.h"
#include "comm.h"     // comm_part
#include "rng.h"      // rng_site
#include <math.h>     // sqrt
#include <stdlib.h>   // free
#include <string.h>   // strcmp

// ---- what a model consists of ----

typedef struct {         // one matrix product's weights and where their gradients go
  real *weight, *bias;   // (OC, IC), (OC) or NULL
  acc *dweight, *dbias;  // NULL unless training
  size_t IC, OC;
} Linear;

typedef struct {
  real *weight, *bias;   // (C), (C) or NULL
  acc *dweight, *dbias;
} Norm;

typedef struct { Norm norm1, norm2; Linear qkv, proj, fc, down; } Block;

typedef struct {         // activations of one block that its backward pass needs
  real *residual;        // (rows, C)    what the block received
  real *norm1;           // (rows, C)
  acc *mean1, *rstd1;    // (rows)
  real *qkv;             // (rows, QKV)  after the rotation
  real *attention;       // (rows, C)
  acc *lse;              // (B, NH, T)
  real *middle;          // (rows, C)    residual after attention
  real *norm2;           // (rows, C)
  acc *mean2, *rstd2;    // (rows)
  real *fc;              // (rows, FC)   before the activation; FC = ffn (GELU) or 2 ffn (SwiGLU)
  real *fc_post;         // (rows, ffn)  after it
  real *keys, *values;   // (context, KV) cache, PURPOSE_SAMPLE only
} BlockActs;

enum { NO_LAYER = -1 };
typedef struct { const char *name; int layer; size_t offset, bytes; } Placement;   // for gpt_name_at

// The gradient of a tied embedding's lookup has rows for the tokens alone that a step looks up, in the order in which it meets them.
typedef struct {
  acc *grad;               // (room, C)  += from 0; NULL: the embedding is not tied
  int32_t *rows;           // (rows)     of each token of the micro-batch its row of grad
  int32_t *ids;            // (room)     which token each row is of
  int32_t *row_of;         // (V) on the host, as are the next two; NO_ROW: not looked up yet
  int32_t *host_rows, *host_ids;
  size_t count, room;      // rows in use, and at most
} Lookup;
enum { NO_ROW = -1 };

// Of a BUCKET (a block, what stands before the blocks, what stands behind) the elements that this rank updates, and where their moments are.
typedef struct { size_t bucket, size /* all of it */, first, n /* of this rank */, at /* in m and v */; } Shard;

struct Gpt {
  GptOptions o;
  GptConfig config;
  Device *d;
  TensorTable table;
  size_t rows, QKV, KV, FC;       // rows = B*T
  size_t chunk, logits_stride;    // rows of logits held at once; padded vocabulary
  size_t unit;                    // sums over rows are cut at its multiples: all rows, or those of a sequence

  char *arena;
  size_t arena_bytes;
  Placement *places;
  size_t place_count;

  real *params;                   // (table.total)
  acc *master;                    // (table.total) or NULL where params are the master copy
  acc *grads;                     // (table.total)
  acc *m, *v;                     // (table.total), or of this rank's shard alone
  Shard *shards;                  // (layers + 2) which elements these are
  Part gathered;                  // PART_M or PART_V: of all ranks they lie in grads
  bool masters_differ;            // sharded: each rank's master weights are up to date in its own parts only
  Lookup lookup;                  // tied only: the lookup's accumulator; the head's is grads itself
  scalar *stats;                    // (STAT_COUNT)
  Reducer reducer;                // of gradients and losses over ranks

  Block *blocks;                  // (layers)
  BlockActs *acts;                // (layers)
  Norm normf;
  Linear head;
  real *wte, *wpe;
  acc *dwte, *dwpe;
  acc *rope;                      // (context, HS/2, 2), llama only

  int32_t *ids, *targets;         // (rows) on the device
  real *branch;                   // (rows, C)   what a branch adds to the residual stream; also a gradient scratch
  real *final;                    // (rows, C)   last residual
  real *norm_out;                 // (rows, C)   after the last norm
  acc *meanf, *rstdf;             // (rows)
  real *logits;                   // (chunk, logits_stride)
  acc *losses;                    // (rows)
  real *dresidual, *dbranch;      // (rows, C)   gradients, shared by all blocks; dbranch lies where branch does
  real *dqkv;                     // (rows, QKV) where it does not fit into a block's fc, else NULL
};

// ---- layout: the same pass counts (arena NULL) and places ----

typedef struct { Gpt *m; bool placing; size_t at; const char *kind; MemoryTable *table; } Layout;

static void *place(Layout *y, const char *name, int layer, size_t count, size_t element) {
  size_t bytes;
  if (!mul_size(count, element, &bytes) || bytes > PTRDIFF_MAX || y->at > PTRDIFF_MAX)
    fail(EXIT_REQUEST, "%s needs %zu x %zu bytes, more than an address can hold: choose a smaller model or --batch", name, count, element);
  bytes = round_up(bytes, 64);
  void *p = y->placing ? y->m->arena + y->at : NULL;
  if (y->placing) {
    y->m->places = xrealloc(y->m->places, y->m->place_count + 1, sizeof *y->m->places);
    y->m->places[y->m->place_count++] = (Placement){name, layer, y->at, bytes};
  }
  y->at += bytes;
  MemoryTable *t = y->table;
  if (!t->count || strcmp(t->line[t->count - 1].kind, y->kind)) t->line[t->count++] = (MemoryLine){y->kind, 0};
  t->line[t->count - 1].bytes += bytes;
  t->total += bytes;
  return p;
}

static real *place_real(Layout *y, const char *name, int layer, size_t n) { return place(y, name, layer, n, y->m->d->real_size); }
static acc *place_acc(Layout *y, const char *name, int layer, size_t n) { return place(y, name, layer, n, y->m->d->acc_size); }

static void layout_numbers(Layout *y) {
  Gpt *m = y->m;
  size_t n = m->table.total;
  bool train = m->o.purpose == PURPOSE_TRAIN;
  y->kind = "weights";
  if (m->o.shares_weights) m->params = y->placing ? m->o.weights_of->params : NULL;
  else m->params = place_real(y, "weights", NO_LAYER, n);
  if (train && !m->d->real_is_acc && !m->o.no_master) m->master = place_acc(y, "master weights", NO_LAYER, n);
  if (!train) return;
  y->kind = "gradients";
  m->grads = place_acc(y, "gradients", NO_LAYER, n);
  if (m->config.tie) {
    m->lookup.grad = place_acc(y, "gradient of the token lookup", NO_LAYER, m->lookup.room * (size_t)m->config.channels);
    m->lookup.rows = place(y, "rows of tokens in the lookup", NO_LAYER, m->rows, sizeof(int32_t));
    m->lookup.ids = place(y, "tokens looked up", NO_LAYER, m->lookup.room, sizeof(int32_t));
  }
  m->stats = place(y, "statistics", NO_LAYER, STAT_COUNT, sizeof(double));
  y->kind = "optimizer";
  const Shard *last = &m->shards[m->config.layers + 1];
  m->m = place_acc(y, "first moments", NO_LAYER, last->at + last->n);
  m->v = place_acc(y, "second moments", NO_LAYER, last->at + last->n);
}

// A buffer of a block: every block has its own if its backward pass reads it, else all blocks share the first one's.
static real *block_real(Layout *y, const char *name, int l, size_t n, bool own, const real *first) {
  return own || l == 0 ? place_real(y, name, l, n) : (real *)(uintptr_t)first;
}

static acc *block_acc(Layout *y, const char *name, int l, size_t n, bool own, const acc *first) {
  return own || l == 0 ? place_acc(y, name, l, n) : (acc *)(uintptr_t)first;
}

static void layout_block(Layout *y, int l) {
  Gpt *m = y->m;
  const GptConfig *c = &m->config;
  BlockActs *a = &m->acts[l], *first = &m->acts[0];
  size_t C = (size_t)c->channels, rows = m->rows;
  bool train = m->o.purpose == PURPOSE_TRAIN;
  bool heavy = train && m->o.recompute != RECOMPUTE_BLOCK;    // products and attention are kept
  bool light = train && m->o.recompute == RECOMPUTE_NONE;     // norms and activations are kept
  a->residual = block_real(y, "residual", l, rows * C, train, first->residual);
  a->norm1 = block_real(y, "norm 1", l, rows * C, light, first->norm1);
  a->mean1 = block_acc(y, "mean 1", l, rows, heavy, first->mean1);
  a->rstd1 = block_acc(y, "rstd 1", l, rows, heavy, first->rstd1);
  a->qkv = block_real(y, "qkv", l, rows * m->QKV, heavy, first->qkv);
  a->attention = block_real(y, "attention", l, rows * C, heavy, first->attention);
  a->lse = block_acc(y, "attention log-sum", l, rows * (size_t)c->heads, heavy, first->lse);
  a->middle = block_real(y, "residual after attention", l, rows * C, heavy, first->middle);
  a->norm2 = block_real(y, "norm 2", l, rows * C, light, first->norm2);
  a->mean2 = block_acc(y, "mean 2", l, rows, heavy, first->mean2);
  a->rstd2 = block_acc(y, "rstd 2", l, rows, heavy, first->rstd2);
  a->fc = block_real(y, "feed-forward", l, rows * m->FC, heavy, first->fc);
  a->fc_post = block_real(y, "activation", l, rows * (size_t)c->ffn, light, first->fc_post);
}

static void model_layout(Layout *y) {
  Gpt *m = y->m;
  const GptConfig *c = &m->config;
  size_t C = (size_t)c->channels, rows = m->rows;
  layout_numbers(y);
  y->kind = "activations";
  m->ids = place(y, "ids", NO_LAYER, rows, sizeof(int32_t));
  m->targets = place(y, "targets", NO_LAYER, rows, sizeof(int32_t));
  if (c->family == FAMILY_LLAMA) m->rope = place_acc(y, "rotations", NO_LAYER, (size_t)(c->context * config_head_size(c)));
  for (int l = 0; l < c->layers; l++) layout_block(y, l);
  m->branch = place_real(y, "branch", NO_LAYER, rows * C);
  const bool train = m->o.purpose == PURPOSE_TRAIN, kept = train && m->o.recompute != RECOMPUTE_BLOCK, norms_kept = train && m->o.recompute == RECOMPUTE_NONE;
  m->final = kept ? place_real(y, "last residual", NO_LAYER, rows * C) : m->acts[0].middle;   // in place of what it is added to, which is shared
  m->norm_out = norms_kept ? place_real(y, "last norm", NO_LAYER, rows * C) : m->acts[0].norm1;   // shared, and free when the last block is done
  m->meanf = place_acc(y, "last mean", NO_LAYER, rows);
  m->rstdf = place_acc(y, "last rstd", NO_LAYER, rows);
  m->losses = place_acc(y, "losses", NO_LAYER, rows);
  if (m->o.purpose == PURPOSE_EVALUATE) m->stats = place(y, "statistics", NO_LAYER, STAT_COUNT, sizeof(double));
  y->kind = "logits";
  m->logits = place_real(y, "logits", NO_LAYER, m->chunk * m->logits_stride);
  if (m->o.purpose == PURPOSE_SAMPLE) {
    y->kind = "key-value cache";
    for (int l = 0; l < c->layers; l++) {
      m->acts[l].keys = place_real(y, "keys", l, (size_t)c->context * m->KV);
      m->acts[l].values = place_real(y, "values", l, (size_t)c->context * m->KV);
    }
  }
  if (!train) return;
  y->kind = "activation gradients";
  m->dresidual = place_real(y, "gradient of the residual", NO_LAYER, rows * C);
  m->dbranch = m->branch;      // where one ends the other begins, in both passes
  if (m->QKV > m->FC) m->dqkv = place_real(y, "gradient of qkv", NO_LAYER, rows * m->QKV);
}

// ---- creation ----

// *gradient is set where there is one
static real *param_of(Gpt *m, Role role, int l, acc **gradient, const TensorRow **row) {
  const TensorRow *r = tensor_of(&m->table, role, l);
  if (row) *row = r;
  if (!r || r->size == 0) return NULL;
  if (m->grads) *gradient = m->d->acc_at(m->grads, r->offset);
  return m->d->real_at(m->params, r->offset);
}

static Linear linear_of(Gpt *m, Role weight, Role bias, int l, size_t OC) {
  Linear w = {.OC = OC};
  const TensorRow *row;
  w.weight = param_of(m, weight, l, &w.dweight, &row);
  w.IC = (size_t)row->cols;
  if (bias != ROLE_JOINED) w.bias = param_of(m, bias, l, &w.dbias, NULL);
  return w;
}

static Norm norm_of(Gpt *m, Role weight, Role bias, int l) {
  Norm n = {0};
  n.weight = param_of(m, weight, l, &n.dweight, NULL);
  n.bias = param_of(m, bias, l, &n.dbias, NULL);
  return n;
}

static void bind_parameters(Gpt *m) {
  const GptConfig *c = &m->config;
  for (int l = 0; l < c->layers; l++) {
    m->blocks[l] = (Block){
      .norm1 = norm_of(m, ROLE_NORM1_WEIGHT, ROLE_NORM1_BIAS, l),
      .norm2 = norm_of(m, ROLE_NORM2_WEIGHT, ROLE_NORM2_BIAS, l),
      .qkv = linear_of(m, ROLE_QKV_WEIGHT, ROLE_QKV_BIAS, l, m->QKV),
      .proj = linear_of(m, ROLE_PROJ_WEIGHT, ROLE_PROJ_BIAS, l, (size_t)c->channels),
      .fc = linear_of(m, ROLE_FC_WEIGHT, ROLE_FC_BIAS, l, m->FC),
      .down = linear_of(m, ROLE_DOWN_WEIGHT, ROLE_DOWN_BIAS, l, (size_t)c->channels)};
  }
  m->normf = norm_of(m, ROLE_NORMF_WEIGHT, ROLE_NORMF_BIAS, -1);
  m->wte = param_of(m, ROLE_WTE, -1, &m->dwte, NULL);
  m->wpe = param_of(m, ROLE_WPE, -1, &m->dwpe, NULL);
  m->head = linear_of(m, c->tie ? ROLE_WTE : ROLE_HEAD, ROLE_JOINED, -1, m->logits_stride);
  if (c->tie) m->dwte = m->lookup.grad;   // see gpt_finish_gradients
}

// Where the tensors of block l begin in the arena; l = layers: where the last block's end.
static size_t block_offset(const Gpt *m, int l) {
  return l < m->config.layers ? tensor_of(&m->table, ROLE_NORM1_WEIGHT, l)->offset : tensor_of(&m->table, ROLE_NORMF_WEIGHT, -1)->offset;
}

static void cut_shards(Gpt *m) {
  int layers = (int)m->config.layers;
  m->shards = xcalloc((size_t)layers + 2, sizeof *m->shards);
  for (int i = 0, l = -1; l <= layers; i++, l++) {    // l = -1: embeddings; layers: last norm, untied head
    size_t begin = l < 0 ? 0 : block_offset(m, l), end = l < layers ? block_offset(m, l + 1) : m->table.total;
    CommPart part = m->o.shards > 1 ? comm_part(end - begin, m->o.shards, m->o.shard_rank) : (CommPart){0, end - begin};
    m->shards[i] = (Shard){begin, end - begin, begin + part.first, part.n, i ? m->shards[i - 1].at + m->shards[i - 1].n : 0};
  }
}

static void prepare(Gpt *m, Device *d, const GptOptions *o) {
  *m = (Gpt){.o = *o, .config = o->config, .d = d};
  const GptConfig *c = &m->config;
  config_check(c);
  tensor_table_build(&m->table, c, d->row_multiple);
  if (!mul_size((size_t)o->B, (size_t)o->T, &m->rows)) fail(EXIT_REQUEST, "--batch %lld x --context %lld overflows", (long long)o->B, (long long)o->T);
  m->QKV = (size_t)config_qkv_width(c);
  m->KV = (size_t)(c->kv_heads * config_head_size(c));
  m->FC = (size_t)(c->family == FAMILY_LLAMA ? 2 * c->ffn : c->ffn);
  m->logits_stride = round_up((size_t)c->vocab, d->row_multiple);
  // Many rows make the head's product efficient; 1,024 bound its memory. The logits are the largest activation.
  // Where the device sums over rows in groups, those of a sequence begin with it: so neither the chunk nor the batch moves them.
  m->unit = (size_t)o->T % d->row_group == 0 ? m->rows : (size_t)o->T;
  m->chunk = round_up(o->classifier_rows > 0 ? (size_t)o->classifier_rows : 1024, d->row_group);
  m->chunk = MIN(m->chunk, o->purpose == PURPOSE_SAMPLE ? (size_t)1 : m->rows);
  m->blocks = xcalloc((size_t)c->layers, sizeof *m->blocks);
  m->acts = xcalloc((size_t)c->layers, sizeof *m->acts);
  size_t looked_up;                // by a step: at most its rows, and the vocabulary
  if (!mul_size(m->rows, (size_t)o->micro_batches, &looked_up) || o->micro_batches < 1) looked_up = SIZE_MAX;
  m->lookup.room = MIN(looked_up, (size_t)c->vocab);
  cut_shards(m);
}

static void prepared_free(Gpt *m) {
  tensor_table_free(&m->table);
  free(m->blocks);
  free(m->acts);
  free(m->shards);
  free(m->places);
  free(m->lookup.row_of);
  free(m->lookup.host_rows);
  free(m->lookup.host_ids);
}

void gpt_memory(MemoryTable *table, const Device *d, const GptOptions *options) {
  Gpt m;
  *table = (MemoryTable){0};
  prepare(&m, (Device *)(uintptr_t)d, options);   // counting calls nothing of the device
  Layout y = {.m = &m, .table = table};
  model_layout(&y);
  prepared_free(&m);
}

size_t gpt_scratch(const Device *d, const GptOptions *options) {
  Gpt m;
  prepare(&m, (Device *)(uintptr_t)d, options);
  const GptConfig *c = &m.config;
  size_t C = (size_t)c->channels, ffn = (size_t)c->ffn, most = 0;
  const struct { size_t rows, IC, OC; } products[] = {
    {m.rows, C, m.QKV}, {m.rows, C, C}, {m.rows, C, m.FC}, {m.rows, ffn, C}, {m.chunk, C, m.logits_stride}};
  for (size_t i = 0; i < ARRAY_LEN(products) && d->linear_scratch; i++) most = MAX(most, d->linear_scratch(d, products[i].rows, products[i].IC, products[i].OC));
  AttentionShape shape = {.B = (size_t)options->B, .T = (size_t)options->T, .S = (size_t)(options->purpose == PURPOSE_SAMPLE ? c->context : options->T),
                          .NH = (size_t)c->heads, .KVH = (size_t)c->kv_heads, .HS = (size_t)config_head_size(c), .dropout.p = c->dropout};
  const WantGradient gradient = options->purpose == PURPOSE_TRAIN ? WITH_GRADIENT : WITHOUT_GRADIENT;
  for (size_t i = 0; i < ARRAY_LEN(products) && d->weight_copies; i++)   // all but the last, the head, are there in each layer
    most += (i + 1 < ARRAY_LEN(products) ? (size_t)c->layers : 1) * d->weight_copies(d, products[i].OC, products[i].IC, gradient);
  if (d->attention_scratch) most += d->attention_scratch(d, &shape, gradient);
  prepared_free(&m);
  return d->scratch_bytes + most;
}

// One rank: every sum over ranks is the own number.
static void reduce_nothing(void *context, acc *x, size_t n) { (void)context; (void)x; (void)n; }
static void reduce_no_scalars(void *context, scalar *x, size_t n) { (void)context; (void)x; (void)n; }
static void wait_for_nothing(void *context) { (void)context; }
static void gather_nothing(void *context, void *x, size_t n, size_t size) { (void)context; (void)x; (void)n; (void)size; }

void gpt_set_reducer(Gpt *m, const Reducer *reducer) {
  static const Reducer alone = {reduce_nothing, reduce_no_scalars, wait_for_nothing, gather_nothing, NULL};
  m->reducer = reducer ? *reducer : alone;
}

Gpt *gpt_create(Device *d, const GptOptions *options) {
  MemoryTable table;
  gpt_memory(&table, d, options);
  Gpt *m = xcalloc(1, sizeof *m);
  prepare(m, d, options);
  gpt_set_reducer(m, NULL);
  m->arena_bytes = table.total;
  m->arena = d->allocate(d, table.total);
  if (!m->arena) fail(EXIT_MACHINE, "memory: the %s device refused %zu MiB for this model; use a smaller --batch or --context, or --recompute block", d->name, table.total >> 20);
  MemoryTable again = {0};
  Layout y = {.m = m, .placing = true, .table = &again};
  model_layout(&y);
  bind_parameters(m);
  if (m->lookup.grad) {
    m->lookup.row_of = xmalloc((size_t)m->config.vocab, sizeof *m->lookup.row_of);
    m->lookup.host_rows = xmalloc(m->rows, sizeof *m->lookup.host_rows);
    m->lookup.host_ids = xmalloc(m->lookup.room, sizeof *m->lookup.host_ids);
    for (int64_t id = 0; id < m->config.vocab; id++) m->lookup.row_of[id] = NO_ROW;
  }
  if (m->rope) d->rope_table(d, m->rope, (size_t)m->config.context, (size_t)config_head_size(&m->config), m->config.rope_theta);
  return m;
}

void gpt_destroy(Gpt *m) {
  if (!m) return;
  m->d->release(m->d, m->arena, m->arena_bytes);
  prepared_free(m);
  free(m);
}

// ---- the two building blocks ----

// Every matrix product of the model goes through here: the one place for biases, and later for LoRA, frozen weights
// and tensor parallelism. pre (rows,OC) =, post (rows, OC or OC/2) = or NULL, x (rows,IC).
static void linear(Gpt *m, real *pre, real *post, const real *x, const Linear *w, size_t rows, Activation activation) {
  m->d->linear_forward(m->d, pre, post, x, w->weight, w->bias, rows, w->IC, w->OC, activation);
}

static const real *const_real_at(const Device *d, const real *p, size_t i) { return d->real_at((real *)(uintptr_t)p, i); }

// dx (rows,IC) =; the gradients of w +=
// dx may be x: the weight's gradient comes first
static void linear_backward(Gpt *m, real *dx, const real *dout, const real *x, const Linear *w, size_t rows) {
  Device *d = m->d;
  for (size_t r = 0; r < rows; r += m->unit)
    d->linear_backward_weight(d, w->dweight, w->dbias, const_real_at(d, dout, r * w->OC), const_real_at(d, x, r * w->IC), MIN(m->unit, rows - r), w->IC, w->OC);
  d->linear_backward_input(d, dx, dout, w->weight, rows, w->IC, w->OC);
}

// residual = x + delta (delta NULL: x is normalised as it is), out = norm(residual); all (rows,C)
static void norm(Gpt *m, real *residual, real *out, acc *mean, acc *rstd, const real *x, const real *delta, const Norm *w) {
  const GptConfig *c = &m->config;
  size_t C = (size_t)c->channels;
  if (c->family == FAMILY_GPT2) m->d->layernorm_forward(m->d, residual, out, mean, rstd, x, delta, w->weight, w->bias, m->rows, C, c->norm_eps);
  else m->d->rmsnorm_forward(m->d, residual, out, rstd, x, delta, w->weight, m->rows, C, c->norm_eps);
}

// dx = dresidual + gradient through the norm; dx may be dresidual
static void norm_backward(Gpt *m, real *dx, const real *dout, const real *dresidual, const real *x, const acc *mean, const acc *rstd, const Norm *w) {
  size_t C = (size_t)m->config.channels;
  if (m->config.family == FAMILY_GPT2) m->d->layernorm_backward(m->d, dx, w->dweight, w->dbias, dout, dresidual, x, w->weight, mean, rstd, m->rows, C);
  else m->d->rmsnorm_backward(m->d, dx, w->dweight, dout, dresidual, x, w->weight, rstd, m->rows, C);
}

static Dropout dropout_at(const Gpt *m, const MicroBatch *place, const char *use, int layer) {
  char name[48];
  snprintf(name, sizeof name, "dropout.%s.%d", use, layer);
  bool active = m->o.purpose == PURPOSE_TRAIN && place;
  return (Dropout){active ? m->config.dropout : 0, active ? place->seed : 0, active ? place->step : 0, rng_site(name), active ? place->row0 : 0};
}

static void drop(Gpt *m, real *x, const MicroBatch *place, const char *use, int layer) {
  Dropout dropout = dropout_at(m, place, use, layer);
  if (dropout.p > 0) m->d->dropout(m->d, x, m->rows, (size_t)m->config.channels, &dropout);
}

static AttentionShape attention_shape(const Gpt *m, size_t position, const MicroBatch *place, int layer) {
  const GptConfig *c = &m->config;
  size_t T = (size_t)m->o.T;
  AttentionShape s = {
    .B = (size_t)m->o.B, .T = T, .S = T, .position = position,
    .NH = (size_t)c->heads, .KVH = (size_t)c->kv_heads, .HS = (size_t)config_head_size(c),
    .q_stride = m->QKV, .kv_stride = m->QKV, .out_stride = (size_t)c->channels,
    .q_batch = T * m->QKV, .kv_batch = T * m->QKV, .out_batch = T * (size_t)c->channels,
    .mask = c->mask, .dropout = dropout_at(m, place, "attention", layer), .scale = 1 / sqrt((double)config_head_size(c))};
  if (m->o.purpose == PURPOSE_SAMPLE) { s.S = position + T; s.kv_stride = m->KV; }   // of one sequence
  return s;
}

// ---- one transformer block ----

static void attention(Gpt *m, BlockActs *a, size_t position, const MicroBatch *place, int l) {
  Device *d = m->d;
  size_t C = (size_t)m->config.channels, T = (size_t)m->o.T;
  if (m->rope)
    d->rope(d, a->qkv, m->rope, (size_t)m->o.B, T, position, (size_t)(m->config.heads + m->config.kv_heads), (size_t)config_head_size(&m->config), m->QKV, +1);
  const real *keys = d->real_at(a->qkv, C), *values = d->real_at(a->qkv, C + m->KV);
  if (a->keys) {
    d->copy_rows(d, d->real_at(a->keys, position * m->KV), m->KV, keys, m->QKV, T, m->KV);
    d->copy_rows(d, d->real_at(a->values, position * m->KV), m->KV, values, m->QKV, T, m->KV);
    keys = a->keys;
    values = a->values;
  }
  AttentionShape shape = attention_shape(m, position, place, l);
  d->attention_forward(d, a->attention, a->lse, a->qkv, keys, values, &shape);
}

// x + delta (delta may be NULL) is the residual stream that enters; afterwards the stream is acts.middle + m->branch.
static void forward_block(Gpt *m, int l, const real *x, const real *delta, size_t position, const MicroBatch *place) {
  const Block *w = &m->blocks[l];
  BlockActs *a = &m->acts[l];
  norm(m, a->residual, a->norm1, a->mean1, a->rstd1, x, delta, &w->norm1);
  linear(m, a->qkv, NULL, a->norm1, &w->qkv, m->rows, ACTIVATION_NONE);
  attention(m, a, position, place, l);
  linear(m, m->branch, NULL, a->attention, &w->proj, m->rows, ACTIVATION_NONE);
  drop(m, m->branch, place, "attention branch", l);
  norm(m, a->middle, a->norm2, a->mean2, a->rstd2, a->residual, m->branch, &w->norm2);
  linear(m, a->fc, a->fc_post, a->norm2, &w->fc, m->rows, m->config.family == FAMILY_GPT2 ? ACTIVATION_GELU : ACTIVATION_SWIGLU);
  linear(m, m->branch, NULL, a->fc_post, &w->down, m->rows, ACTIVATION_NONE);
  drop(m, m->branch, place, "feed-forward branch", l);
}

// What the forward pass did not keep is computed again, with the same bits.
static void recompute_block(Gpt *m, int l, const MicroBatch *place) {
  const Block *w = &m->blocks[l];
  BlockActs *a = &m->acts[l];
  if (m->o.recompute == RECOMPUTE_BLOCK) forward_block(m, l, a->residual, NULL, 0, place);
  if (m->o.recompute != RECOMPUTE_LIGHT) return;
  norm(m, a->residual, a->norm1, a->mean1, a->rstd1, a->residual, NULL, &w->norm1);
  norm(m, a->middle, a->norm2, a->mean2, a->rstd2, a->middle, NULL, &w->norm2);
  m->d->activation_forward(m->d, a->fc_post, a->fc, m->rows, m->FC, m->config.family == FAMILY_GPT2 ? ACTIVATION_GELU : ACTIVATION_SWIGLU);
}

// m->dresidual: in, the gradient of the stream that leaves the block; out, of the stream that enters.
static void backward_block(Gpt *m, int l, const MicroBatch *place) {
  Device *d = m->d;
  const Block *w = &m->blocks[l];
  BlockActs *a = &m->acts[l];
  size_t C = (size_t)m->config.channels, bytes = m->rows * C * d->real_size;
  bool drops = dropout_at(m, place, "", l).p > 0;
  real *dbranch = drops ? m->dbranch : m->dresidual;   // the branch's gradient is the stream's, but for its dropout
  // Gradients take the places of what they are gradients of, once it has been read for the last time; that of q, k, v follows in fc's.
  real *dfc_post = a->fc_post, *dfc = a->fc, *dqkv = m->dqkv ? m->dqkv : a->fc;
  recompute_block(m, l, place);

  if (drops) { d->copy(d, dbranch, m->dresidual, bytes); drop(m, dbranch, place, "feed-forward branch", l); }
  linear_backward(m, dfc_post, dbranch, a->fc_post, &w->down, m->rows);
  d->activation_backward(d, dfc, dfc_post, a->fc, m->rows, m->FC, m->config.family == FAMILY_GPT2 ? ACTIVATION_GELU : ACTIVATION_SWIGLU);
  linear_backward(m, m->dbranch, dfc, a->norm2, &w->fc, m->rows);
  norm_backward(m, m->dresidual, m->dbranch, m->dresidual, a->middle, a->mean2, a->rstd2, &w->norm2);

  if (drops) { d->copy(d, dbranch, m->dresidual, bytes); drop(m, dbranch, place, "attention branch", l); }
  real *dattention = a->norm2;                         // read for the last time
  linear_backward(m, dattention, dbranch, a->attention, &w->proj, m->rows);
  AttentionShape shape = attention_shape(m, 0, place, l);
  d->attention_backward(d, dqkv, d->real_at(dqkv, C), d->real_at(dqkv, C + m->KV), dattention,
                        a->qkv, d->real_at(a->qkv, C), d->real_at(a->qkv, C + m->KV), a->attention, a->lse, &shape);
  if (m->rope)
    d->rope(d, dqkv, m->rope, (size_t)m->o.B, (size_t)m->o.T, 0, (size_t)(m->config.heads + m->config.kv_heads), (size_t)config_head_size(&m->config), m->QKV, -1);
  linear_backward(m, m->dbranch, dqkv, a->norm1, &w->qkv, m->rows);
  norm_backward(m, m->dresidual, m->dbranch, m->dresidual, a->residual, a->mean1, a->rstd1, &w->norm1);
}

// ---- the whole model ----

// ids on the device -> m->norm_out, the last norm's output
static void forward_trunk(Gpt *m, size_t position, const MicroBatch *place) {
  Device *d = m->d;
  const GptConfig *c = &m->config;
  // the first block normalises the embedding itself; it then is that block's residual
  real *x = m->acts[0].residual;
  d->embedding_forward(d, x, m->ids, m->wte, m->wpe, (size_t)m->o.B, (size_t)m->o.T, (size_t)c->channels, position);
  drop(m, x, place, "embedding", -1);
  forward_block(m, 0, x, NULL, position, place);
  for (int l = 1; l < c->layers; l++) forward_block(m, l, m->acts[l - 1].middle, m->branch, position, place);
  norm(m, m->final, m->norm_out, m->meanf, m->rstdf, m->acts[c->layers - 1].middle, m->branch, &m->normf);
}

// Logits, losses and their gradients, a bounded chunk of rows at a time; the result does not depend on the bound.
// WITH_GRADIENT: m->norm_out becomes its own gradient, m->dbranch.
static void classifier(Gpt *m, double loss_scale, WantGradient want) {
  Device *d = m->d;
  size_t C = (size_t)m->config.channels;
  for (size_t r = 0, rows; r < m->rows; r += rows) {
    rows = MIN(m->chunk, m->unit - r % m->unit);
    const real *x = d->real_at(m->norm_out, r * C);
    linear(m, m->logits, NULL, x, &m->head, rows, ACTIVATION_NONE);
    d->crossentropy(d, m->logits, d->acc_at(m->losses, r), m->targets + r, rows, (size_t)m->config.vocab, m->logits_stride, loss_scale, want);
    if (want == WITH_GRADIENT) linear_backward(m, d->real_at(m->dbranch, r * C), m->logits, x, &m->head, rows);
  }
}

void gpt_begin_step(Gpt *m) {
  m->d->zero(m->d, m->stats, STAT_COUNT * sizeof(double));
  if (!m->grads) return;
  m->gathered = PART_GRADIENT;
  m->d->zero(m->d, m->grads, m->table.total * m->d->acc_size);
  for (size_t i = 0; i < m->lookup.count; i++) m->lookup.row_of[m->lookup.host_ids[i]] = NO_ROW;
  m->lookup.count = 0;
}

// Gives each token of the micro-batch its row of the lookup's gradient; rows that the step has not used before are 0.
static void find_lookup_rows(Gpt *m, const int32_t *ids) {
  Lookup *l = &m->lookup;
  Device *d = m->d;
  const size_t before = l->count, C = (size_t)m->config.channels;
  for (size_t r = 0; r < m->rows; r++) {
    int32_t *row = &l->row_of[ids[r]];
    if (*row == NO_ROW) {
      if (l->count == l->room) fail(EXIT_FAILURE, "a step of more than %lld micro-batches", (long long)m->o.micro_batches);
      l->host_ids[l->count] = ids[r];
      *row = (int32_t)l->count++;
    }
    l->host_rows[r] = *row;
  }
  d->zero(d, d->acc_at(l->grad, before * C), (l->count - before) * C * d->acc_size);
  d->upload_ids(d, l->rows, l->host_rows, m->rows);
  d->upload_ids(d, l->ids + before, l->host_ids + before, l->count - before);
}

void gpt_forward(Gpt *m, const int32_t *ids, const int32_t *targets, const MicroBatch *place, WantGradient want) {
  m->d->upload_ids(m->d, m->ids, ids, m->rows);
  m->d->upload_ids(m->d, m->targets, targets, m->rows);
  if (m->lookup.grad && want == WITH_GRADIENT) find_lookup_rows(m, ids);
  forward_trunk(m, 0, want == WITH_GRADIENT ? place : NULL);
  classifier(m, place->loss_scale, want);
  m->d->sum(m->d, m->d->stat_at(m->stats, STAT_LOSS), m->losses, m->rows);
}

static void reduce_bucket(Gpt *m, const Shard *s) {
  m->reducer.gradients(m->reducer.context, m->d->acc_at(m->grads, s->bucket), s->size);
}

void gpt_backward(Gpt *m, const MicroBatch *place) {
  Device *d = m->d;
  const GptConfig *c = &m->config;
  norm_backward(m, m->dresidual, m->dbranch, NULL, m->final, m->meanf, m->rstdf, &m->normf);
  for (int l = (int)c->layers - 1; l >= 0; l--) {
    backward_block(m, l, place);
    if (place->last) reduce_bucket(m, &m->shards[l + 1]);
  }
  drop(m, m->dresidual, place, "embedding", -1);
  const Lookup *l = &m->lookup;
  d->embedding_backward(d, m->dwte, m->dwpe, m->dresidual, l->grad ? l->rows : m->ids, (size_t)m->o.B, (size_t)m->o.T, (size_t)c->channels, l->grad ? l->count : (size_t)c->vocab);
}

// Elements first..first+n-1 of a tensor that lie in this rank's shard: all of them, if nothing is sharded.
typedef struct { size_t first, n /* in the arena */, at /* in m and v */; } Owned;
static Owned owned(const Gpt *m, const TensorRow *row, size_t first, size_t n) {
  if (row->size == 0) return (Owned){0};   // it may lie behind all
  const Shard *s = m->shards;
  while (row->offset >= s->bucket + s->size) s++;
  size_t begin = MAX(row->offset + first, s->first), end = MIN(row->offset + first + n, s->first + s->n);
  return begin < end ? (Owned){begin, end - begin, s->at + begin - s->first} : (Owned){0};
}

void gpt_finish_gradients(Gpt *m) {
  Device *d = m->d;
  const TensorRow *wte = tensor_of(&m->table, ROLE_WTE, -1);
  // A tied embedding has two accumulators: were there one, its additions would come in the order head, lookup, head, lookup
  // of the micro-batches, and the bits would depend on how a step is cut.
  const Lookup *l = &m->lookup;
  if (l->grad) d->add_rows(d, d->acc_at(m->grads, wte->offset), l->grad, l->ids, l->count, (size_t)wte->cols, (size_t)m->config.vocab);
  reduce_bucket(m, &m->shards[0]);                            // embeddings
  reduce_bucket(m, &m->shards[m->config.layers + 1]);         // last norm and an untied head
  m->reducer.scalars(m->reducer.context, d->stat_at(m->stats, STAT_LOSS), 1);
  m->reducer.wait(m->reducer.context);
  for (size_t i = 0; i < m->table.count; i++) {
    Owned own = owned(m, &m->table.rows[i], 0, m->table.rows[i].size);
    if (m->table.rows[i].trainable && own.n) d->sumsq(d, d->stat_at(m->stats, STAT_GRAD_SUMSQ), d->acc_at(m->grads, own.first), own.n);
  }
  if (m->o.shards <= 1) return;
  m->reducer.scalars(m->reducer.context, d->stat_at(m->stats, STAT_GRAD_SUMSQ), 1);
  m->reducer.wait(m->reducer.context);
}

// x (table.total), of `size` bytes an element: every bucket's parts from the ranks that own them.
static void gather_all(Gpt *m, void *x, size_t size) {
  for (int i = 0; i < m->config.layers + 2; i++) m->reducer.gather(m->reducer.context, (char *)x + m->shards[i].bucket * size, m->shards[i].size, size);
}

void gpt_gather(Gpt *m, Part part) {
  if (m->o.shards <= 1) return;
  if (part == PART_WEIGHT) {
    if (m->masters_differ) gather_all(m, m->master, m->d->acc_size);
    m->masters_differ = false;
    return;
  }
  for (int i = 0; i < m->config.layers + 2 && part != PART_GRADIENT; i++) {
    const Shard *s = &m->shards[i];
    m->d->copy(m->d, m->d->acc_at(m->grads, s->first), m->d->acc_at(part == PART_M ? m->m : m->v, s->at), s->n * m->d->acc_size);
  }
  gather_all(m, m->grads, m->d->acc_size);
  m->gathered = part;
}

void gpt_update(Gpt *m, const AdamWSettings *settings, double weight_decay) {
  Device *d = m->d;
  AdamWTensor *tensors = xcalloc(m->table.count, sizeof *tensors);
  size_t count = 0;
  for (size_t i = 0; i < m->table.count; i++) {
    const TensorRow *row = &m->table.rows[i];
    Owned own = owned(m, row, 0, row->size);
    if (!row->trainable || !own.n) continue;
    tensors[count++] = (AdamWTensor){
      .param = d->real_at(m->params, own.first), .master = m->master ? d->acc_at(m->master, own.first) : NULL,
      .grad = d->acc_at(m->grads, own.first), .m = d->acc_at(m->m, own.at), .v = d->acc_at(m->v, own.at),
      .n = own.n, .site = rng_site(row->name), .weight_decay = row->decays ? weight_decay : 0};
  }
  d->adamw(d, tensors, count, settings, m->stats);
  if (m->o.shards > 1) gather_all(m, m->params, m->d->real_size);
  m->masters_differ = m->o.shards > 1 && m->master;
  d->refresh(d, m->params, m->table.total);
  free(tensors);
}

double gpt_loss_sum(Gpt *m) {
  double stats[STAT_COUNT];
  m->d->download_stat(m->d, stats, m->stats, STAT_COUNT);
  return stats[STAT_LOSS];
}

double gpt_grad_norm(Gpt *m) {
  double stats[STAT_COUNT];
  m->d->download_stat(m->d, stats, m->stats, STAT_COUNT);
  return sqrt(stats[STAT_GRAD_SUMSQ]);
}

void gpt_token_losses(Gpt *m, double *losses) {
  m->d->download_acc(m->d, losses, m->losses, m->rows);
}

void gpt_logits(Gpt *m, const int32_t *ids, double *logits) {
  Device *d = m->d;
  size_t C = (size_t)m->config.channels, V = (size_t)m->config.vocab;
  d->upload_ids(d, m->ids, ids, m->rows);
  forward_trunk(m, 0, NULL);
  for (size_t r = 0; r < m->rows; r += m->chunk) {
    size_t rows = MIN(m->chunk, m->rows - r);
    linear(m, m->logits, NULL, d->real_at(m->norm_out, r * C), &m->head, rows, ACTIVATION_NONE);
    for (size_t i = 0; i < rows; i++) d->download_real(d, logits + (r + i) * V, d->real_at(m->logits, i * m->logits_stride), V);
  }
}

void gpt_decode(Gpt *m, const int32_t *ids, size_t n, size_t position, double *logits) {
  Device *d = m->d;
  const size_t most = (size_t)m->o.T;
  for (size_t i = 0; i < n;) {
    // The buffers hold `most` rows; a shorter piece uses their first rows
    size_t rows = MIN(most, n - i);
    m->o.T = (int64_t)rows;
    m->rows = rows;
    d->upload_ids(d, m->ids, ids + i, rows);
    forward_trunk(m, position + i, NULL);
    i += rows;
    if (i == n) linear(m, m->logits, NULL, d->real_at(m->norm_out, (rows - 1) * (size_t)m->config.channels), &m->head, 1, ACTIVATION_NONE);
  }
  m->o.T = (int64_t)most;
  d->download_real(d, logits, m->logits, (size_t)m->config.vocab);
}

// ---- numbers, by tensor ----

static bool sharded(const Gpt *m, Part part) { return m->o.shards > 1 && (part == PART_M || part == PART_V); }

static acc *part_of(Gpt *m, Part part) {
  return part == PART_GRADIENT ? m->grads : part == PART_M ? m->m : part == PART_V ? m->v : m->master;   // NULL: params are the master copy
}

void gpt_read(Gpt *m, Part part, const TensorRow *row, size_t first, size_t n, double *values) {
  if ((sharded(m, part) && m->gathered != part) || (part == PART_WEIGHT && m->masters_differ)) gpt_gather(m, part);
  acc *from = part_of(m, sharded(m, part) ? PART_GRADIENT : part);
  if (from) m->d->download_acc(m->d, values, m->d->acc_at(from, row->offset + first), n);
  else m->d->download_real(m->d, values, m->d->real_at(m->params, row->offset + first), n);
}

void gpt_write(Gpt *m, Part part, const TensorRow *row, size_t first, size_t n, const double *values) {
  if (sharded(m, part)) {
    Owned own = owned(m, row, first, n);
    if (own.n) m->d->upload_acc(m->d, m->d->acc_at(part_of(m, part), own.at), values + (own.first - row->offset - first), own.n);
    return;
  }
  acc *to = part_of(m, part);
  if (to) m->d->upload_acc(m->d, m->d->acc_at(to, row->offset + first), values, n);
  if (part == PART_WEIGHT) m->d->upload_real(m->d, m->d->real_at(m->params, row->offset + first), values, n);
}

void gpt_refresh(Gpt *m) { m->d->refresh(m->d, m->params, m->table.total); }

void gpt_init(Gpt *m, uint64_t seed) {
  enum { PIECE = 1 << 18 };
  double *values = xmalloc(PIECE, sizeof *values);
  for (size_t i = 0; i < m->table.count; i++) {
    const TensorRow *row = &m->table.rows[i];
    for (size_t first = 0, n; first < tensor_values(row); first += n) {
      n = MIN((size_t)PIECE, tensor_values(row) - first);
      tensor_init(row, seed, first, n, values);
      gpt_write(m, PART_WEIGHT, row, first, n, values);
    }
  }
  free(values);
  gpt_refresh(m);
}

const TensorTable *gpt_table(const Gpt *m) { return &m->table; }
const GptConfig *gpt_config(const Gpt *m) { return &m->config; }
const GptOptions *gpt_options(const Gpt *m) { return &m->o; }
Device *gpt_device(const Gpt *m) { return m->d; }
void gpt_set_device(Gpt *m, Device *d) { m->d = d; }

const char *gpt_name_at(const Gpt *m, const void *p) {
  static char text[160];
  size_t at = (uintptr_t)p - (uintptr_t)m->arena;   // before the arena: a large number
  const Placement *found = NULL;
  for (size_t i = 0; i < m->place_count; i++) if (m->places[i].offset <= at && at < m->places[i].offset + m->places[i].bytes) found = &m->places[i];
  if (!found) return "?";
  bool weights = !strcmp(found->name, "weights"), gradients = !strcmp(found->name, "gradients");
  if (found->layer >= 0) snprintf(text, sizeof text, "layer %d %s", found->layer, found->name);
  else snprintf(text, sizeof text, "%s", found->name);
  if (!weights && !gradients) return text;
  size_t element = (at - found->offset) / (weights ? m->d->real_size : m->d->acc_size);
  for (size_t i = 0; i < m->table.count; i++) {
    const TensorRow *row = &m->table.rows[i];
    if (element >= row->offset && element < row->offset + row->size) snprintf(text, sizeof text, "%s%s", gradients ? "gradient of " : "", row->name);
  }
  return text;
}
