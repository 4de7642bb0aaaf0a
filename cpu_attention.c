// cpu_attention.c: owns attention on the CPU, forward and backward: blocks of queries against all of their keys.
//
// It promises bits, and that a step with a key-value cache gives the very bits of the full forward pass. The rules:
//   score[s] = (scale q) . k[s]       one chain of fma over d from 0, with scale * q rounded first
//   e[s] = exp(score[s] - largest)    sum of e: key s in lane s mod 16, in order, then the fixed tree (s is the absolute key)
//   out = (chain of fma over s of e[s] v[s]) * (1/sum);  lse = largest + log(sum)
//   backward: p[s] = exp(score[s] - lse), each element of dq one chain over keys, of dk and dv one chain over queries, heads of
//   a group one after the other; one thread owns a key head of a sequence.
// None of them mentions a block, so blocks, threads and the number of queries in a call change nothing. Keys that a query
// does not see have e = +0: adding them is no change but that -0 may become +0, and so every result ends with "+ 0".
//
// In bf16 q, k, v, out and their gradients are stored in 16 bits; between them everything is float.
//
// How it is fast: a tile of scores, QUERIES rows by all keys, stays in the level-2 cache (no T x T, no online rescaling), and the five
// products are all done by one routine, tile(): c (rows x 16 or 32) += a b in registers. Keys are packed with positions across (so a
// vector is 16 keys) and values with channels across. Blocks wholly behind the causal mask are never computed.
// Dao et al. 2022 (FlashAttention) for the backward pass from lse; Milakov & Gimelshein 2018 is what we do not need.
// Compiled once per instruction set (CPU_ISA, see cpu.h). Tests: tests/test_attention.c
#include "cpu.h"        // CPU_NAME, CpuState, cpu_scratch
#include "simd.h"       // vec and its operations
#include "util.h"       // MIN, MAX, round_up
#include <math.h>       // INFINITY
#include <string.h>     // memset

enum {
  ROWS = VEC_TILE_ROWS,               // rows of a register tile
  PANEL = VEC_TILE_VECS * LANES,      // its columns
  QUERIES = 64 / VEC_TILE_ROWS * VEC_TILE_ROWS,   // queries in a block: a whole number of tiles
};

// ---- the register tile ----

// c (rows, 16 vectors) = a b or += a b: each element one chain over k that begins at 0 or at c.
// a[r,k] = a[r*a_row + k*a_step]; b[k,j] = b[k*b_step + j]
ALWAYS_INLINE void tile_body(const int rows, const int vectors, float *c, size_t c_row, bool accumulate, const float *a, size_t a_row,
                             size_t a_step, const float *b, size_t b_step, size_t k) {
  vec sum[ROWS][VEC_TILE_VECS];
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int j = 0; j < vectors; j++) sum[r][j] = accumulate ? vec_load(c + (size_t)r * c_row + LANES * j) : vec_zero();
  }
  for (size_t i = 0; i < k; i++, a += a_step, b += b_step) {
    vec column[VEC_TILE_VECS];
    UNROLL for (int j = 0; j < vectors; j++) column[j] = vec_load(b + LANES * j);
    UNROLL for (int r = 0; r < rows; r++) {
      vec factor = vec_set(a[(size_t)r * a_row]);
      UNROLL for (int j = 0; j < vectors; j++) sum[r][j] = vec_fma(factor, column[j], sum[r][j]);
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    UNROLL for (int j = 0; j < vectors; j++) vec_store(c + (size_t)r * c_row + LANES * j, sum[r][j]);
  }
}

typedef struct { float *data; size_t row; } Matrix;   // element (r,c) is data[r*row + c]
static const float *at(const Matrix *m, size_t r, size_t c) { return m->data + r * m->row + c; }

// So many columns fit into one vector: the others of a wide tile would be multiplied for nothing.
static bool is_narrow(size_t columns) { return columns <= LANES; }

// c (ROWS or 1, up to PANEL columns) = a b, a's rows are the tile's rows.
static void tile_rows(float *c, size_t c_row, bool one_row, bool narrow, const float *a, size_t a_row, const float *b, size_t b_step, size_t k) {
  if (one_row && narrow) tile_body(1, 1, c, c_row, false, a, a_row, 1, b, b_step, k);
  else if (one_row) tile_body(1, VEC_TILE_VECS, c, c_row, false, a, a_row, 1, b, b_step, k);
  else if (narrow) tile_body(ROWS, 1, c, c_row, false, a, a_row, 1, b, b_step, k);
  else tile_body(ROWS, VEC_TILE_VECS, c, c_row, false, a, a_row, 1, b, b_step, k);
}

// c (ROWS, up to PANEL columns) += a^T b: a's columns are the tile's rows.
static void tile_columns(float *c, size_t c_row, bool narrow, const float *a, size_t a_step, const float *b, size_t b_step, size_t k) {
  if (narrow) tile_body(ROWS, 1, c, c_row, true, a, 1, a_step, b, b_step, k);
  else tile_body(ROWS, VEC_TILE_VECS, c, c_row, true, a, 1, a_step, b, b_step, k);
}

// ---- working memory of one thread ----

// Every array's rows are whole vectors; what is behind the end of a row or of the rows is zero wherever a tile reads it.
typedef struct {
  size_t depth;            // HS rounded up to whole vectors
  size_t span;             // keys of a score row: S rounded up to whole panels, and room for a tile that begins before S
  Matrix q, dout, result;  // (QUERIES, depth): scale * q; dout; out or dq
  Matrix score, dscore;    // (QUERIES, span)
  Matrix keys, values;     // (span, depth)
  Matrix dkeys, dvalues;   // (span, depth)
  float *keys_across, *values_across;   // panels (HS, PANEL): element d of key s is at s / PANEL * PANEL * HS + d * PANEL + s % PANEL
  float *largest, *sum;    // (QUERIES), whole vectors
  uint32_t *word;          // random words of a row of dropout
} Work;

// Memory that is being divided: base NULL only counts.
typedef struct { float *base; size_t used; } Arena;
static float *take(Arena *a, size_t n) {
  size_t begin = a->used;
  a->used += round_up(n, LANES);
  return a->base ? a->base + begin : NULL;
}
static Matrix take_matrix(Arena *a, size_t rows, size_t row) { return (Matrix){take(a, rows * row), row}; }

// Lays the arrays out from `start`; returns the floats that they take. backward: those of the backward pass too.
static size_t work_layout(Work *w, float *start, const AttentionShape *s, bool backward) {
  Arena a = {.base = start};
  w->depth = round_up(s->HS, LANES);
  w->span = round_up(s->S, PANEL) + round_up(ROWS, LANES);
  w->q = take_matrix(&a, QUERIES, w->depth);
  w->result = take_matrix(&a, QUERIES, w->depth);
  w->score = take_matrix(&a, QUERIES, w->span);
  w->keys_across = take(&a, w->span * s->HS);
  w->values = take_matrix(&a, w->span, w->depth);
  w->largest = take(&a, QUERIES);
  w->sum = take(&a, QUERIES);
  w->word = (uint32_t *)take(&a, w->span + PHILOX_ROOM);   // the span has room for the three words before a row's first
  if (backward) {
    w->dout = take_matrix(&a, QUERIES, w->depth);
    w->dscore = take_matrix(&a, QUERIES, w->span);
    w->keys = take_matrix(&a, w->span, w->depth);
    w->values_across = take(&a, w->span * s->HS);
    w->dkeys = take_matrix(&a, w->span, w->depth);
    w->dvalues = take_matrix(&a, w->span, w->depth);
  }
  return a.used;
}

// One layout for each thread, 64-byte aligned and a page apart.
static size_t work_floats(const AttentionShape *s, bool backward) {
  Work w;
  return round_up(work_layout(&w, NULL, s, backward), 1024);
}

static float *work_memory(Device *d, const AttentionShape *s, bool backward, size_t *floats_each) {
  *floats_each = work_floats(s, backward);
  return cpu_scratch(cpu_state(d), CPU_SCRATCH_ATTENTION, *floats_each * sizeof(float) * (size_t)cpu_state(d)->threads);
}

static size_t cpu_attention_scratch(const Device *d, const AttentionShape *s, WantGradient gradient) {
  return work_floats(s, gradient == WITH_GRADIENT) * sizeof(float) * (size_t)cpu_state(d)->threads;
}

// ---- packing ----

// Rows of HS numbers, `stride` apart, times factor, into whole vectors; rows [n, padded) become zero.
static void pack_rows(Matrix *m, const stored *src, size_t stride, size_t n, size_t padded, size_t HS, float factor) {
  for (size_t r = 0; r < n; r++)
    for (size_t c = 0; c < HS; c += LANES)
      vec_store(m->data + r * m->row + c, vec_mul(vec_load_row(src + r * stride + c, HS - c), vec_set(factor)));
  memset(m->data + n * m->row, 0, (padded - n) * m->row * sizeof(float));
}

// Panels of PANEL keys: 16 x 16 blocks are transposed in registers; keys [n, whole panels) become zero.
static void pack_across(float *dst, const stored *src, size_t stride, size_t n, size_t HS) {
  for (size_t s = 0; s < round_up(n, PANEL); s += LANES) {
    float *panel = dst + s / PANEL * PANEL * HS + s % PANEL;
    for (size_t c = 0; c < HS; c += LANES) {
      vec block[LANES];
      UNROLL for (size_t i = 0; i < LANES; i++)
        block[i] = s + i < n ? vec_load_row(src + (s + i) * stride + c, HS - c) : vec_zero();
      vec_transpose(block);
      UNROLL for (size_t i = 0; i < LANES; i++)
        if (c + i < HS) vec_store(panel + (c + i) * PANEL, block[i]);
    }
  }
}

// ---- a block of queries ----

typedef struct {
  const AttentionShape *shape;
  size_t b, h;             // sequence, query head
  size_t first, n;         // query rows [first, first + n)
  size_t padded;           // n rounded up to tiles
  bool alone;              // one query, as in decoding: tiles of one row
  size_t begin[QUERIES], end[QUERIES];   // keys that each row sees
  size_t key_begin;        // smallest begin, rounded down to panels: no product looks at earlier keys. Ends rise by one or not at all
                           // from row to row, so a tile looks at fewer than ROWS keys behind a row's own end
} Block;

static Block make_block(const AttentionShape *s, size_t b, size_t h, size_t first) {
  Block k = {.shape = s, .b = b, .h = h, .first = first, .n = MIN((size_t)QUERIES, s->T - first), .key_begin = s->S};
  k.padded = round_up(k.n, ROWS);
  k.alone = k.n == 1;
  for (size_t r = 0; r < k.n; r++) {
    size_t t = first + r;
    k.end[r] = s->mask == MASK_CAUSAL ? MIN(s->position + t + 1, s->S) : s->S;
    k.begin[r] = s->first_key ? MIN((size_t)s->first_key[b * s->T + t], k.end[r]) : 0;
    k.key_begin = MIN(k.key_begin, k.begin[r]);
  }
  k.key_begin -= k.key_begin % PANEL;
  return k;
}

// End of the keys that any row of the tile beginning at row r sees.
static size_t tile_end(const Block *k, size_t r) { return k->end[MIN(r + ROWS, k->n) - 1]; }

// score (or dscore) = rows of a times all keys (or values) across, where a tile sees any
static void products_with_keys(Matrix *score, const Matrix *a, const float *across, const Block *k) {
  const size_t HS = k->shape->HS;
  for (size_t s = k->key_begin; s < k->end[k->n - 1]; s += PANEL)
    for (size_t r = 0; r < k->padded; r += ROWS)
      if (s < tile_end(k, r))
        tile_rows(score->data + r * score->row + s, score->row, k->alone, is_narrow(tile_end(k, r) - s), at(a, r, 0), a->row, across + s * HS, PANEL, HS);
}

// result (rows, depth) = score times values (or dscore times keys): one chain over keys
static void weighted_sum(Matrix *result, const Matrix *score, const Matrix *rows, const Block *k) {
  for (size_t c = 0; c < rows->row; c += PANEL)
    for (size_t r = 0; r < k->padded; r += ROWS) {
      size_t end = tile_end(k, r);   // never before key_begin
      tile_rows(result->data + r * result->row + c, result->row, k->alone, is_narrow(rows->row - c), at(score, r, k->key_begin), score->row,
                at(rows, k->key_begin, c), rows->row, end - k->key_begin);
    }
}

// Lanes of keys s .. s+15 (s < end) that lie in [begin, end) keep x, the others get `other`.
ALWAYS_INLINE vec visible(vec x, size_t s, size_t begin, size_t end, vec other) {
  if (s + LANES > end) x = vec_head(x, end - s, other);
  if (s < begin) x = vec_head(other, MIN(begin - s, (size_t)LANES), x);
  return x;
}

// Row numbers of dropout: see Dropout and AttentionShape. Fills work->word so that key s has word[s - from + result], from a multiple of 16.
static size_t dropout_words(const Work *w, const Block *k, size_t r, size_t from, size_t end) {
  const AttentionShape *s = k->shape;
  uint64_t row = (s->dropout.row0 + k->b * s->T + k->first + r) * s->NH + k->h, first = row * s->S + from;
  size_t skip = first % 4;
  philox_words(w->word, s->dropout.seed, s->dropout.step, s->dropout.site, first - skip, skip + round_up(end - from, LANES));
  return skip;
}

// x after dropout by these words
ALWAYS_INLINE vec dropped(vec x, const Dropout *dropout, const uint32_t *word) {
  return vec_keep(vec_mul(x, vec_set((float)(1 / (1 - dropout->p)))), word, (uint32_t)(dropout->p * 0x1p32));
}

static void clear(float *row, size_t begin, size_t end) {   // begin is a multiple of 16, and so becomes end
  for (size_t s = begin; s < end; s += LANES) vec_store(row + s, vec_zero());
}

// ---- forward ----

// Row r of scores becomes e = exp(score - largest), times the dropout; zero where the row sees nothing.
static void softmax_row(const Work *w, const Block *k, size_t r) {
  float *row = w->score.data + r * w->score.row;
  const size_t begin = k->begin[r], end = k->end[r], from = begin - begin % LANES;
  const Dropout *dropout = &k->shape->dropout;
  vec largest = vec_set(-INFINITY), sum = vec_zero();
  for (size_t s = from; s < end; s += LANES)
    largest = vec_max(largest, visible(vec_load(row + s), s, begin, end, vec_set(-INFINITY)));
  const float max = vec_largest(largest);
  const size_t skip = dropout->p > 0 ? dropout_words(w, k, r, from, end) : 0;
  clear(row, k->key_begin, from);
  for (size_t s = from; s < end; s += LANES) {
    vec e = visible(vec_exp(vec_sub(vec_load(row + s), vec_set(max))), s, begin, end, vec_zero());
    sum = vec_add(sum, e);
    if (dropout->p > 0) e = dropped(e, dropout, w->word + skip + (s - from));
    vec_store(row + s, e);
  }
  clear(row, round_up(end, LANES), end + ROWS);
  w->largest[r] = max;
  w->sum[r] = vec_sum(sum);
}

static void forward_block(const Work *w, const Block *k, stored *out, float *lse, const stored *q) {
  const AttentionShape *s = k->shape;
  Matrix query = w->q, score = w->score, result = w->result;
  pack_rows(&query, q + k->b * s->q_batch + k->first * s->q_stride + k->h * s->HS, s->q_stride, k->n, k->padded, s->HS, (float)s->scale);
  products_with_keys(&score, &query, w->keys_across, k);
  for (size_t r = 0; r < k->n; r++) softmax_row(w, k, r);
  weighted_sum(&result, &score, &w->values, k);
  for (size_t r = 0; r < k->n; r++) {
    stored *row = out + k->b * s->out_batch + (k->first + r) * s->out_stride + k->h * s->HS;
    const vec inverse = vec_set(w->sum[r] == 0 ? 0 : 1 / w->sum[r]);   // a query that sees nothing: zeros
    for (size_t c = 0; c < s->HS; c += LANES)
      vec_store_row(row + c, vec_fma(vec_load(at(&result, r, c)), inverse, vec_zero()), s->HS - c);
  }
  if (!lse) return;
  float *row = lse + (k->b * s->NH + k->h) * s->T + k->first;
  for (size_t r = 0; r < k->n; r += LANES)
    vec_store_row(row + r, vec_add(vec_load(w->largest + r), vec_log(vec_load(w->sum + r))), k->n - r);
}

// A unit of work is a key head of a sequence and, where those are too few for the team, a part of its queries.
static void cpu_attention_forward(Device *d, real *out, acc *lse, const real *q, const real *k, const real *v, const AttentionShape *shape) {
  const AttentionShape s = *shape;
  const size_t heads = s.B * s.KVH;
  if (heads == 0) return;
  const size_t group = s.NH / s.KVH, blocks = round_up(s.T, QUERIES) / QUERIES;
  const size_t wanted = 2 * (size_t)cpu_state(d)->threads;
  const size_t parts = MIN(blocks, round_up(wanted, heads) / heads);
  size_t floats_each;
  float *memory = work_memory(d, &s, false, &floats_each);
  #pragma omp parallel num_threads(heads * parts == 1 || heads * s.T * s.S * s.HS < 16384 ? 1 : cpu_state(d)->threads)
  {
    cpu_flush_denormals();
    Work w;
    work_layout(&w, memory + (size_t)omp_get_thread_num() * floats_each, &s, false);
    #pragma omp for schedule(dynamic, 1)
    for (size_t unit = 0; unit < heads * parts; unit++) {
      const size_t b = unit / parts / s.KVH, head = unit / parts % s.KVH, part = parts - 1 - unit % parts;   // the longest part first
      const size_t first = blocks * part / parts, last = blocks * (part + 1) / parts;   // blocks of queries, without the last
      const size_t keys = s.mask == MASK_CAUSAL ? MIN(s.position + last * QUERIES, s.S) : s.S;
      pack_across(w.keys_across, const_reals(k) + b * s.kv_batch + head * s.HS, s.kv_stride, keys, s.HS);
      pack_rows(&w.values, const_reals(v) + b * s.kv_batch + head * s.HS, s.kv_stride, keys, keys, s.HS, 1.0f);
      for (size_t h = head * group; h < (head + 1) * group; h++)
        for (size_t i = first; i < last; i++) {
          Block block = make_block(&s, b, h, i * QUERIES);
          forward_block(&w, &block, reals(out), acc_floats(lse), const_reals(q));
        }
    }
  }
}

// ---- backward ----

// Row r: score becomes p times the dropout factor f, dscore (dout.v) becomes p (f dout.v - dout.out); zero where the row sees nothing.
static void backward_row(const Work *w, const Block *k, size_t r, float lse, float dout_out) {
  float *score = w->score.data + r * w->score.row, *dscore = w->dscore.data + r * w->dscore.row;
  const size_t begin = k->begin[r], end = k->end[r], from = begin - begin % LANES;
  const Dropout *dropout = &k->shape->dropout;
  const size_t skip = dropout->p > 0 ? dropout_words(w, k, r, from, end) : 0;
  clear(score, k->key_begin, from), clear(dscore, k->key_begin, from);
  for (size_t s = from; s < end; s += LANES) {
    vec p = visible(vec_exp(vec_sub(vec_load(score + s), vec_set(lse))), s, begin, end, vec_zero());
    vec dp = visible(vec_load(dscore + s), s, begin, end, vec_zero()), kept = p;
    if (dropout->p > 0) {
      kept = dropped(p, dropout, w->word + skip + (s - from));
      dp = dropped(dp, dropout, w->word + skip + (s - from));
    }
    vec_store(score + s, kept);
    vec_store(dscore + s, vec_mul(p, vec_sub(dp, vec_set(dout_out))));
  }
  clear(score, round_up(end, LANES), end + ROWS), clear(dscore, round_up(end, LANES), end + ROWS);
}

// dkeys (or dvalues) += score^T rows: for each tile of keys, the queries of the block that may see any of them, in order
static void add_to_keys(Matrix *dkeys, const Matrix *score, const Matrix *rows, const Block *k) {
  const size_t key_end = k->end[k->n - 1];
  for (size_t s = k->key_begin; s < key_end; s += ROWS) {
    size_t r = 0;
    while (k->end[r] <= s) r++;   // causal: the first query that sees key s
    for (size_t c = 0; c < rows->row; c += PANEL)
      tile_columns(dkeys->data + s * dkeys->row + c, dkeys->row, is_narrow(rows->row - c), at(score, r, s), score->row, at(rows, r, c), rows->row, k->n - r);
  }
}

typedef struct { stored *dq; const stored *dout, *q, *out; const float *lse; } Backward;

static void backward_block(const Work *w, const Block *k, const Backward *x) {
  const AttentionShape *s = k->shape;
  const size_t q_at = k->b * s->q_batch + k->first * s->q_stride + k->h * s->HS, out_at = k->b * s->out_batch + k->first * s->out_stride + k->h * s->HS;
  Matrix query = w->q, dout = w->dout, score = w->score, dscore = w->dscore, dq = w->result, dkeys = w->dkeys, dvalues = w->dvalues;
  pack_rows(&query, x->q + q_at, s->q_stride, k->n, k->padded, s->HS, (float)s->scale);
  pack_rows(&dout, x->dout + out_at, s->out_stride, k->n, k->padded, s->HS, 1.0f);
  products_with_keys(&score, &query, w->keys_across, k);
  products_with_keys(&dscore, &dout, w->values_across, k);
  for (size_t r = 0; r < k->n; r++) {
    vec sum = vec_zero();
    for (size_t c = 0; c < s->HS; c += LANES)
      sum = vec_fma(vec_load(at(&dout, r, c)), vec_load_row(x->out + out_at + r * s->out_stride + c, s->HS - c), sum);
    backward_row(w, k, r, x->lse[(k->b * s->NH + k->h) * s->T + k->first + r], vec_sum(sum));
  }
  weighted_sum(&dq, &dscore, &w->keys, k);
  for (size_t r = 0; r < k->n; r++)
    for (size_t c = 0; c < s->HS; c += LANES)
      vec_store_row(x->dq + q_at + r * s->q_stride + c, vec_fma(vec_load(at(&dq, r, c)), vec_set((float)s->scale), vec_zero()), s->HS - c);
  add_to_keys(&dkeys, &dscore, &query, k);     // query is scale * q
  add_to_keys(&dvalues, &score, &dout, k);
}

static void store_rows(stored *dst, size_t stride, const Matrix *m, size_t n, size_t HS) {
  for (size_t r = 0; r < n; r++)
    for (size_t c = 0; c < HS; c += LANES) vec_store_row(dst + r * stride + c, vec_add(vec_load(at(m, r, c)), vec_zero()), HS - c);
}

// A unit of work is a key head of a sequence: it owns dk and dv of the head and dq of its group.
static void cpu_attention_backward(Device *d, real *dq, real *dk, real *dv, const real *dout, const real *q, const real *k, const real *v,
                                   const real *out, const acc *lse, const AttentionShape *shape) {
  const AttentionShape s = *shape;
  const size_t heads = s.B * s.KVH, group = s.NH / s.KVH, blocks = round_up(s.T, QUERIES) / QUERIES;
  const Backward x = {reals(dq), const_reals(dout), const_reals(q), const_reals(out), const_acc_floats(lse)};
  size_t floats_each;
  float *memory = work_memory(d, &s, true, &floats_each);
  #pragma omp parallel num_threads(heads == 1 || heads * s.T * s.S * s.HS < 16384 ? 1 : cpu_state(d)->threads)
  {
    cpu_flush_denormals();
    Work w;
    work_layout(&w, memory + (size_t)omp_get_thread_num() * floats_each, &s, true);
    #pragma omp for schedule(dynamic, 1)
    for (size_t unit = 0; unit < heads; unit++) {
      const size_t b = unit / s.KVH, head = unit % s.KVH, kv_at = b * s.kv_batch + head * s.HS;
      pack_across(w.keys_across, const_reals(k) + kv_at, s.kv_stride, s.S, s.HS);
      pack_across(w.values_across, const_reals(v) + kv_at, s.kv_stride, s.S, s.HS);
      pack_rows(&w.keys, const_reals(k) + kv_at, s.kv_stride, s.S, s.S, s.HS, 1.0f);
      memset(w.dkeys.data, 0, w.span * w.depth * sizeof(float));
      memset(w.dvalues.data, 0, w.span * w.depth * sizeof(float));
      for (size_t h = head * group; h < (head + 1) * group; h++)
        for (size_t i = 0; i < blocks; i++) {
          Block block = make_block(&s, b, h, i * QUERIES);
          backward_block(&w, &block, &x);
        }
      store_rows(reals(dk) + kv_at, s.kv_stride, &w.dkeys, s.S, s.HS);
      store_rows(reals(dv) + kv_at, s.kv_stride, &w.dvalues, s.S, s.HS);
    }
  }
}

void CPU_NAME(attention)(Device *d) {
  d->attention_scratch = cpu_attention_scratch;
  d->attention_forward = cpu_attention_forward;
  d->attention_backward = cpu_attention_backward;
}
