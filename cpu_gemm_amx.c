// cpu_gemm_amx.c: owns the CPU device's matrix products in bf16 by matrix tiles (Intel AMX), in place of cpu_gemm.c's, which is the plain idea.
//
//   forward          out (rows,OC) = bias + x weight^T     A = x         B = weight^T   k = IC
//   backward_input   dx (rows,IC)  = dout weight           A = dout      B = weight     k = OC
//   backward_weight  dweight (OC,IC) += dout^T x           A = dout^T    B = x          k = rows
//
// It promises bits of its own: every output element goes through k in GROUPS of 32, in order. A group's sum is made by one instruction, from zero and as
// tiles.h says, and is then added to what there is: at first bias, zero or the stored gradient. Behind the last k stand zeros. So a result
// does not depend on block, thread, or how many rows there are; but a gradient's rows are grouped from the first row of a call, so that only
// cuts of the rows at multiples of 32 change nothing (Device.row_group). A bf16 result is rounded once. No denormals.
//
// How it is fast. One instruction does in 16 cycles what takes AVX-512 thirty times as many; so it is all about bringing numbers. (Every figure
// here is from a prototype on a Xeon with two cores, 2 MiB of level-2 cache each; THIS FILE HAS NOT RUN ON SUCH A PROCESSOR, only on a stand-in.)
// Two tiles of A, two of B, four of C:
//
//                 B: two tiles, 32 k each         A step goes over 32 k: four loads, four products.
//                 +--------+--------+             Rows of A: 32 numbers side by side, read where they are
//                 | tile 6 | tile 7 |             where that is possible. B is packed in panels of 32
//                 +--------+--------+             columns: panel[step][2 tiles][16 pairs of k][16 columns]
//   +--------+    +--------+--------+             [the pair], 2 KiB a step, what two loads take. A pair
//   | tile 4 |    | sums 0 | sums 1 | rows 0-15   is one word of 32 bits, so packing either factor is at
//   +--------+    +--------+--------+             most the transpose of 16 x 16 words.
//   | tile 5 |    | sums 2 | sums 3 | rows 16-31
//   +--------+    +--------+--------+
//     A: two        C: a block of 32 x 32
//
// - A block of A of 900 KB stays in level 2 while the panels of B pass. A is loaded once (TILE_LOAD_ONCE), so that the first 16 steps of the
//   panel, 32 KB, stay in level 1 for all rows of the block; the rest of the panel is loaded once as well: 97 % of the peak, plain loads 53 %.
// - Rows of A lie an odd number of cache lines apart, so that 16 of them fall into different sets (3,200 GFLOP/s; 2,800 with an even number). Rows
//   that straddle lines cost two thirds: such are copied.
// - Results go to memory two rows a step of the NEXT block (1,450 GFLOP/s without, 2,050 to 2,280 with); gradients come from there in the same way.
// - Beyond 1,024 k, k is cut into passes, and the sums of a task of 256 x 768 wait in level 2 (20 % faster than one long pass).
// - Weights are packed once after each update (Device.refresh), for forward and for dx, and kept: 4 bytes a weight. Packing in each product cost 7 % of the
//   time of both with 4,096 rows, 25 % with 1,024.
// - Large results that no one reads soon, the logits, go past the caches.
// Which size a product must have for tiles to pay was measured from 256 rows on (there 6 times AVX-512 BF16); below, nothing was. Tiles are taken
// for all, because a row's result may not depend on how many other rows there are: decoding gives the bits of the whole pass.
//
// Compiled for the set `amx`, and for the tests with a stand-in for tiles (CPU_EMULATES_TILES). Tests: tests/test_gemm_bf16.c, tests/test_tiles.c
#include "cpu.h"        // CPU_NAME, CpuState, cpu_scratch, the prototypes
#include "simd.h"       // vec: transposing, expanding and rounding bf16
#include "tiles.h"      // the instructions
#include "util.h"       // MIN, MAX, round_up, seconds_now
#include <string.h>     // memcpy

enum {
  TILE = 16,                       // rows of a tile
  STEP = CPU_ROW_GROUP,            // 32: elements of k in a tile
  BLOCK = 32,                      // rows, and columns, of C that are made at a time
  SUMS = BLOCK * BLOCK,
  STEP_WORDS = STEP / 2 * BLOCK,   // of a panel of B
  LINE = 64,                       // bytes of a cache line, and of a row of a tile
};

// ---- block sizes; none of them changes a bit of the result ----
enum {
  K_PASS = 1024,                   // most k from zero sums to the end without storing them
  A_BYTES = 900 << 10,             // of A that stay in level 2
  NEAR_STEPS = 16,                 // of a panel that stay in level 1
  PASS_ROWS = 256,                 // rows of C of a task whose sums wait between passes
  TASK_COLUMNS = 768,              // of C of a task for which A is copied, or whose sums wait
  DIRECT_COLUMNS = 192,            // where A is read in place there is nothing to repeat
  COPY_COLUMNS = 1536,             // a copy of A, for rows an odd number of lines apart, costs 2/n of the work: pays from here (reckoned, not measured)
  PAST_CACHES = 16 << 20,          // bytes of a result that goes past them
  SMALLEST_TEAM_WORK = 512 * 1024, // multiply-adds; below it waking a team costs more than it saves
};

// ---- packing: the only place where the two factors' forms in memory matter ----
// "Outer" is the dimension that is not summed: m of A, n of B.
typedef enum { ALONG_K, ACROSS_K } Order;   // element (outer, k) is data[outer*stride + k], or data[k*stride + outer]
typedef struct { const bf16 *data; size_t stride; Order order; } Factor;
typedef enum { ROWS_ARE_OUTER, ROWS_ARE_PAIRS } TileForm;   // as A wants it; as B wants it

static const bf16 *element(const Factor *f, size_t outer, size_t k) {
  return f->data + (f->order == ALONG_K ? outer * f->stride + k : k * f->stride + outer);
}

// 16 words: n (<= 32) elements, then zeros.
ALWAYS_INLINE vec load_words(const bf16 *p, size_t n) {
  bf16 room[STEP] = {0};
  if (n >= STEP) return vec_load((const float *)(const void *)p);
  memcpy(room, p, n * sizeof *p);
  return vec_load((const float *)(const void *)room);
}

// The 16 vectors of a tile from src, which lies along k: `lines` outer elements of `depth` k, the rest zeros.
ALWAYS_INLINE void load_along(vec v[TILE], const bf16 *src, size_t stride, size_t lines, size_t depth) {
  if (lines == TILE && depth == STEP) {
    UNROLL for (size_t i = 0; i < TILE; i++) v[i] = vec_load((const float *)(const void *)(src + i * stride));
  } else {
    for (size_t i = 0; i < TILE; i++) v[i] = i < lines ? load_words(src + i * stride, depth) : vec_zero();
  }
}

// The same, from a src that lies across k: a vector is 16 pairs of k.
ALWAYS_INLINE void load_across(vec v[TILE], const bf16 *src, size_t stride, size_t lines, size_t depth) {
  if (lines == TILE && depth == STEP) {
    UNROLL for (size_t p = 0; p < TILE; p++) {
      const bf16 *even = src + 2 * p * stride, *odd = even + stride;
      __builtin_prefetch(even + STEP * stride);   // the next step's
      __builtin_prefetch(odd + STEP * stride);
      v[p] = vec_pair_bf16(vec_load_bf16(even), vec_load_bf16(odd));
    }
  } else {
    for (size_t p = 0; p < TILE; p++) {
      const size_t even = 2 * p < depth ? lines : 0, odd = 2 * p + 1 < depth ? lines : 0;
      v[p] = vec_pair_bf16(vec_load_bf16_tail(even ? src + 2 * p * stride : src, even), vec_load_bf16_tail(odd ? src + (2 * p + 1) * stride : src, odd));
    }
  }
}

// dst (16 rows of 16 words, dst_row floats apart) = outer [at, at + 16) x k [k0, k0 + 32) of f, of which there are those below `outer` and `k`.
static void pack_tile(float *dst, size_t dst_row, TileForm form, const Factor *f, size_t at, size_t outer, size_t k0, size_t k) {
  vec v[TILE];
  const size_t lines = outer > at ? MIN(outer - at, (size_t)TILE) : 0, depth = MIN(k - k0, (size_t)STEP);
  const bf16 *src = element(f, lines ? at : 0, k0);
  if (f->order == ALONG_K) load_along(v, src, f->stride, lines, depth);
  else load_across(v, src, f->stride, lines, depth);
  if ((f->order == ALONG_K) != (form == ROWS_ARE_OUTER)) vec_transpose(v);
  UNROLL for (size_t i = 0; i < TILE; i++) vec_store(dst + i * dst_row, v[i]);
}

// B's columns [first, end) x k [k0, end_k) into panels, `panel` floats from one to the next. first is a multiple of BLOCK. All columns of a step
// together, so that rows of B are read whole.
static void pack_panels(float *dst, size_t panel, const Factor *b, size_t first, size_t end, size_t k0, size_t end_k) {
  for (size_t k = k0; k < end_k; k += STEP)
    for (size_t j = first; j < round_up(end, BLOCK); j += TILE)
      pack_tile(dst + (j - first) / BLOCK * panel + (k - k0) / STEP * STEP_WORDS + (j % BLOCK ? STEP_WORDS / 2 : 0), TILE, ROWS_ARE_PAIRS, b, j, end, k, end_k);
}

// A's rows [first, end) x k [k0, end_k), rows `row` elements apart; zeros up to whole blocks and steps.
static void pack_rows(bf16 *dst, size_t row, const Factor *a, size_t first, size_t end, size_t k0, size_t end_k) {
  for (size_t k = k0; k < end_k; k += STEP)
    for (size_t i = first; i < round_up(end, BLOCK); i += TILE)
      pack_tile((float *)(void *)(dst + (i - first) * row + (k - k0)), row / 2, ROWS_ARE_OUTER, a, i, end, k, end_k);
}

// ---- a block of C: its sums, and its rows in memory, which come and go while tiles work on other blocks ----
typedef struct {
  float *sums;             // (BLOCK,BLOCK)
  char *c;                 // its first row
  size_t c_row;            // bytes from one row to the next
  size_t rows, columns;    // what there is of it in C
  bool floats;             // C's are floats, else bf16
  bool adds;               // sums begin with C's, which are still in memory
  bool past_caches;
  size_t fetched, stored;  // rows so far
} Block;

// The next row of C into the sums; or, where nothing is added to it, the wish for it: many stores that miss the caches at once would stop everything.
static void fetch_row(Block *b) {
  const size_t row = b->fetched++;
  const char *c = b->c + row * b->c_row;
  float *sums = b->sums + row * BLOCK;
  if (b->adds) {
    vec_store(sums, vec_load_row((const float *)(const void *)c, b->columns));
    if (b->columns > LANES) vec_store(sums + LANES, vec_load_row((const float *)(const void *)c + LANES, b->columns - LANES));
  } else if (!b->past_caches) {
    __builtin_prefetch(c, 1);
    if (b->floats) __builtin_prefetch(c + LINE, 1);
  }
}

static void store_row(Block *b) {
  const size_t row = b->stored++;
  char *c = b->c + row * b->c_row;
  const vec left = vec_load(b->sums + row * BLOCK), right = vec_load(b->sums + row * BLOCK + LANES);
  if (b->floats) {
    vec_store_row((float *)(void *)c, left, b->columns);
    if (b->columns > LANES) vec_store_row((float *)(void *)c + LANES, right, b->columns - LANES);
#if defined(__AVX512F__)
  } else if (b->past_caches) {
    _mm512_stream_si512((__m512i *)(void *)c, _mm512_inserti64x4(_mm512_castsi256_si512(vec_round(left)), vec_round(right), 1));
#endif
  } else {
    vec_store_row((bf16 *)(void *)c, left, b->columns);
    if (b->columns > LANES) vec_store_row((bf16 *)(void *)c + LANES, right, b->columns - LANES);
  }
}

static void fetch_rest(Block *b) { while (b->fetched < b->rows) fetch_row(b); }
static void store_rest(Block *b) { while (b->stored < b->rows) store_row(b); }

// ---- the product of 32 rows of A and a panel of B: where nearly all of the time is spent ----
typedef struct {
  const bf16 *a;
  size_t a_row;            // elements from one row to the next
  const float *b;          // the panel
  size_t steps;
  const float *start;      // what the sums begin with: (BLOCK,BLOCK) floats, or one row (BLOCK) for all where start_row is 0; NULL: zero
  size_t start_row;        // bytes
  const char *ahead;       // a part of the next panel, ahead_lines cache lines of it for each step; it is asked for
  size_t ahead_lines;
} Work;

ALWAYS_INLINE void step(const Work *w, size_t s, const bool near, Block *before, Block *after) {
  const bf16 *a = w->a + s * STEP;
  const float *b = w->b + s * STEP_WORDS;
  const size_t a_row = w->a_row * sizeof *a;
  TILE_LOAD_ONCE(4, a, a_row);
  if (near) TILE_LOAD(6, b, LINE);
  else TILE_LOAD_ONCE(6, b, LINE);
  TILE_DOT(0, 4, 6);
  for (size_t line = 0; line < w->ahead_lines; line++) __builtin_prefetch(w->ahead + (s * w->ahead_lines + line) * LINE, 0, 2);
  if (near) TILE_LOAD(7, b + STEP_WORDS / 2, LINE);
  else TILE_LOAD_ONCE(7, b + STEP_WORDS / 2, LINE);
  TILE_DOT(1, 4, 7);
  for (int i = 0; i < 2; i++) {   // in this order: the place may be the same
    if (before->stored < before->rows) store_row(before);
    if (after->fetched < after->rows) fetch_row(after);
  }
  TILE_LOAD_ONCE(5, a + TILE * w->a_row, a_row);
  TILE_DOT(2, 5, 6);
  TILE_DOT(3, 5, 7);
}

// sums (BLOCK,BLOCK) = start + A B. Meanwhile the rows of the block before go to memory and those of the one after come from there.
static void multiply_block(float *sums, const Work *w, Block *before, Block *after) {
  if (w->start) {
    const char *lower = (const char *)w->start + TILE * w->start_row;
    TILE_LOAD(0, w->start, w->start_row);
    TILE_LOAD(1, w->start + TILE, w->start_row);
    TILE_LOAD(2, lower, w->start_row);
    TILE_LOAD(3, lower + LINE, w->start_row);
  } else {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
  }
  size_t s = 0;
  for (; s < w->steps && s < NEAR_STEPS; s++) step(w, s, true, before, after);
  for (; s < w->steps; s++) step(w, s, false, before, after);
  store_rest(before);
  fetch_rest(after);
  TILE_STORE(0, sums, BLOCK * sizeof *sums);
  TILE_STORE(1, sums + TILE, BLOCK * sizeof *sums);
  TILE_STORE(2, sums + TILE * BLOCK, BLOCK * sizeof *sums);
  TILE_STORE(3, sums + TILE * BLOCK + TILE, BLOCK * sizeof *sums);
}

// ---- a product: how it is cut, and who computes what ----
typedef struct {
  size_t m, n, k;
  Factor a, b;             // a: (m,k); b: (n,k)
  void *c;                 // (m,n), rows densely: floats that are added to, or bf16 that are set
  bool floats;
  const bf16 *bias;        // (n) or NULL
  const CpuEpilogue *epilogue;
} Product;

// Cuts. None of them changes a bit of the result.
typedef struct {
  bool copy_a;             // each task copies its rows; else they are read in place
  bool keep_b;             // B is a weight, whose panels are kept from one product to the next (cpu_kept_copy)
  bool share_b;            // all threads pack B before, or it is kept; else each task packs its columns
  bool one_pass;           // sums need not wait
  bool past_caches;
  size_t k_pass;           // k of a pass, a multiple of STEP
  size_t rows, columns;    // of C of a task, multiples of BLOCK
  size_t row_blocks, column_blocks;
  size_t a_row;            // elements from one copied row to the next
  size_t sum_floats, a_floats, b_floats;   // of a thread
  size_t shared_floats;
} Plan;

enum { IN_TURN = 2 };      // places of sums: one block is made while in the other place a row goes and then one of the block after comes

static size_t panel_floats(size_t n, size_t k) { return round_up(n, BLOCK) / BLOCK * divide_up(k, STEP) * STEP_WORDS; }

static Plan make_plan(const Product *g, size_t threads, bool keep_b) {
  const size_t lines = g->a.stride * sizeof(bf16) / LINE;
  Plan p = { .keep_b = keep_b, .one_pass = g->k <= K_PASS, .k_pass = even_part(g->k, K_PASS, STEP) };
  const bool whole = g->a.order == ALONG_K && g->k % STEP == 0 && g->m % BLOCK == 0 && (uintptr_t)g->a.data % LINE == 0;
  p.copy_a = !whole || (lines % 2 == 0 && g->n >= COPY_COLUMNS);
  p.rows = p.one_pass ? MAX(A_BYTES / (p.k_pass * sizeof(bf16)) / BLOCK * BLOCK, (size_t)BLOCK) : (size_t)PASS_ROWS;
  p.columns = MIN((size_t)(p.copy_a || !p.one_pass ? TASK_COLUMNS : DIRECT_COLUMNS), round_up(g->n, BLOCK));
  p.row_blocks = divide_up(g->m, p.rows);
  if (p.copy_a) p.row_blocks = round_up(p.row_blocks, threads);   // a copy wants one owner
  p.rows = round_up(divide_up(g->m, p.row_blocks), BLOCK);
  p.row_blocks = divide_up(g->m, p.rows);
  while (p.columns > BLOCK && p.row_blocks * divide_up(g->n, p.columns) < 2 * threads && p.row_blocks % threads) p.columns = round_up(p.columns / 2, BLOCK);
  p.column_blocks = divide_up(g->n, p.columns);
  p.share_b = keep_b || p.row_blocks > 1;
  p.past_caches = !g->floats && g->m * g->n * sizeof(bf16) >= PAST_CACHES && g->n % BLOCK == 0 && (uintptr_t)g->c % LINE == 0 && !(g->epilogue && g->epilogue->run);
  p.a_row = p.k_pass / STEP % 2 ? p.k_pass : p.k_pass + STEP;
  p.sum_floats = p.one_pass ? (size_t)IN_TURN * SUMS : p.rows * p.columns;
  p.a_floats = p.copy_a ? p.rows * p.a_row / 2 : 0;
  p.b_floats = p.share_b ? 0 : p.columns * p.k_pass / 2;
  p.shared_floats = p.share_b && !keep_b ? panel_floats(g->n, g->k) : 0;
  return p;
}

static size_t thread_floats(const Plan *p) { return round_up(p->sum_floats + p->a_floats + p->b_floats, LINE); }

// A thread's working memory, and what of it is in use.
typedef struct {
  float *sums, *b;
  bf16 *a;
  const float *shared;     // panels of all of B, where they are shared
  size_t held_row, held_k; // of the copy of A
  bool held;
  Block last;              // not yet all in memory
  size_t turn;
} Worker;

static Block block_at(const Product *g, const Plan *p, float *sums, size_t row, size_t col, bool first, bool last) {
  const size_t size = g->floats ? sizeof(float) : sizeof(bf16);
  const size_t rows = MIN(g->m - row, (size_t)BLOCK);
  const bool adds = g->floats && first;
  return (Block){ .sums = sums, .c = (char *)g->c + (row * g->n + col) * size, .c_row = g->n * size, .rows = rows, .columns = MIN(g->n - col, (size_t)BLOCK),
                  .floats = g->floats, .adds = adds, .past_caches = p->past_caches, .fetched = adds || last ? 0 : rows, .stored = last ? 0 : rows };
}

// Rows [row, row_end) x columns [col, col_end) of C, over k [k0, k_end): a pass of a task.
static void run_pass(const Product *g, const Plan *p, Worker *w, size_t row, size_t row_end, size_t col, size_t col_end, size_t k0, size_t k_end) {
  const size_t steps = divide_up(k_end - k0, STEP), panel = (p->share_b ? divide_up(g->k, STEP) : steps) * STEP_WORDS;
  const size_t tall = divide_up(row_end - row, BLOCK), blocks = tall * divide_up(col_end - col, BLOCK);
  const bool first = k0 == 0, last = k_end == g->k;
  const float *b = p->share_b ? w->shared + col / BLOCK * panel + k0 / STEP * STEP_WORDS : w->b;
  Work work = { .a_row = p->copy_a ? p->a_row : g->a.stride, .steps = steps };
  float bias[BLOCK] = {0};
  if (p->copy_a && !(w->held && w->held_row == row && w->held_k == k0)) {
    pack_rows(w->a, p->a_row, &g->a, row, row_end, k0, k_end);
    w->held = true, w->held_row = row, w->held_k = k0;
  }
  if (!p->share_b) pack_panels(w->b, panel, &g->b, col, col_end, k0, k_end);
  const bf16 *a = p->copy_a ? w->a : element(&g->a, row, k0);
  Block next = {0};
  for (size_t i = 0; i <= blocks; i++) {   // columns of blocks; `next` is one ahead
    Block now = next;
    next = (Block){0};
    if (i < blocks) {
      const size_t turn = p->one_pass ? w->turn++ % IN_TURN : i;
      next = block_at(g, p, w->sums + turn * SUMS, row + i % tall * BLOCK, col + i / tall * BLOCK, first, last);
    }
    if (i == 0) { fetch_rest(&next); continue; }
    const size_t here = (i - 1) % tall, across = (i - 1) / tall, at = col + across * BLOCK;
    for (size_t j = 0; here == 0 && first && g->bias && j < now.columns; j += LANES)
      vec_store_row(bias + j, vec_load_row(g->bias + at + j, now.columns - j), now.columns - j);
    const bool stored_sums = !first || g->floats;
    work.start = stored_sums ? now.sums : g->bias ? bias : NULL;
    work.start_row = stored_sums ? BLOCK * sizeof(float) : 0;
    work.a = a + here * BLOCK * work.a_row;
    work.b = b + across * panel;
    work.ahead_lines = p->share_b && at + BLOCK < col_end ? divide_up(BLOCK, tall) : 0;
    work.ahead = (const char *)(work.b + panel) + here * work.ahead_lines * steps * LINE;
    multiply_block(now.sums, &work, &w->last, &next);
    w->last = now;
  }
}

static void run_task(const Product *g, const Plan *p, Worker *w, size_t row_block, size_t column_block) {
  const size_t row = row_block * p->rows, row_end = MIN(row + p->rows, g->m), col = column_block * p->columns, col_end = MIN(col + p->columns, g->n);
  for (size_t k0 = 0; k0 < g->k; k0 += p->k_pass) run_pass(g, p, w, row, row_end, col, col_end, k0, MIN(k0 + p->k_pass, g->k));
  const bool run = g->epilogue && g->epilogue->run;
  if (run || !p->one_pass) store_rest(&w->last);   // the epilogue reads it; the place of its sums is used again
  if (run) g->epilogue->run(g->epilogue->arg, row, row_end, col, col_end);
}

// Every thread of the team calls it. shared: panels of B, if all threads use them; they are made first, unless they are `current`.
static void multiply_in_team(const Product *g, const Plan *p, float *shared, bool current, float *own) {
  static const TileConfig config = TILES_WHOLE;
  Worker w = { .sums = own, .a = (bf16 *)(void *)(own + p->sum_floats), .b = own + p->sum_floats + p->a_floats, .shared = shared };
  TILE_CONFIGURE(&config);
  if (p->share_b && !current) {
    const size_t panel = divide_up(g->k, STEP) * STEP_WORDS;
    enum { PIECE = 6 * BLOCK };   // columns
    #pragma omp for schedule(static)
    for (size_t j = 0; j < g->n; j += PIECE) pack_panels(shared + j / BLOCK * panel, panel, &g->b, j, MIN(j + PIECE, g->n), 0, g->k);
  }
  // Few blocks of rows: the threads, side by side, each keep one. Many: a block's columns follow each other.
  const bool keep_rows = p->row_blocks <= (size_t)omp_get_num_threads();
  #pragma omp for schedule(dynamic, 1) nowait
  for (size_t task = 0; task < p->row_blocks * p->column_blocks; task++) {
    if (keep_rows) run_task(g, p, &w, task % p->row_blocks, task / p->row_blocks);
    else run_task(g, p, &w, task / p->column_blocks, task % p->column_blocks);
  }
  store_rest(&w.last);
#if defined(__AVX512F__)
  _mm_sfence();   // what went past the caches is there for other threads
#endif
  TILE_RELEASE();
}

static size_t plan_floats(const Plan *p, size_t threads) { return round_up(p->shared_floats, LINE) + threads * thread_floats(p); }

static void multiply(CpuState *state, const Product *g) {
  if (g->m == 0 || g->n == 0 || g->k == 0) return;
  const int threads = g->m * g->n * g->k < SMALLEST_TEAM_WORK ? 1 : state->threads;
  bool current = false;
  float *kept = g->floats ? NULL : cpu_kept_copy(state, g->b.data, g->n, g->k, g->b.order == ACROSS_K, panel_floats(g->n, g->k) * sizeof(float), &current);
  const Plan plan = make_plan(g, (size_t)threads, kept != NULL);
  float *shared = cpu_scratch(state, CPU_SCRATCH_GEMM, plan_floats(&plan, (size_t)threads) * sizeof(float));
  float *own = shared + round_up(plan.shared_floats, LINE);
  #pragma omp parallel num_threads(threads)
  {
    cpu_flush_denormals();
    multiply_in_team(g, &plan, kept ? kept : shared, current, own + (size_t)omp_get_thread_num() * thread_floats(&plan));
  }
}

static Product forward_product(bf16 *out, const bf16 *x, const bf16 *weight, size_t rows, size_t IC, size_t OC) {
  return (Product){ .m = rows, .n = OC, .k = IC, .a = { x, IC, ALONG_K }, .b = { weight, IC, ALONG_K }, .c = out };
}
static Product input_product(bf16 *dx, const bf16 *dout, const bf16 *weight, size_t rows, size_t IC, size_t OC) {
  return (Product){ .m = rows, .n = IC, .k = OC, .a = { dout, OC, ALONG_K }, .b = { weight, IC, ACROSS_K }, .c = dx };
}
static Product weight_product(float *dweight, const bf16 *dout, const bf16 *x, size_t rows, size_t IC, size_t OC) {
  return (Product){ .m = OC, .n = IC, .k = rows, .a = { dout, OC, ACROSS_K }, .b = { x, IC, ACROSS_K }, .c = dweight, .floats = true };
}

size_t CPU_NAME(gemm_copies)(size_t OC, size_t IC, WantGradient gradient) {
  return cpu_mapped_size(panel_floats(OC, IC) * sizeof(float)) + (gradient == WITH_GRADIENT ? cpu_mapped_size(panel_floats(IC, OC) * sizeof(float)) : 0);
}

size_t CPU_NAME(gemm_scratch)(const CpuState *state, size_t rows, size_t IC, size_t OC) {
  const Product products[] = { forward_product(NULL, NULL, NULL, rows, IC, OC), input_product(NULL, NULL, NULL, rows, IC, OC), weight_product(NULL, NULL, NULL, rows, IC, OC) };
  size_t most = 0;
  for (size_t i = 0; i < ARRAY_LEN(products); i++) {
    if (products[i].m == 0 || products[i].n == 0 || products[i].k == 0) continue;
    const Plan plan = make_plan(&products[i], (size_t)state->threads, !products[i].floats);
    most = MAX(most, plan_floats(&plan, (size_t)state->threads));
  }
  return most * sizeof(float);
}

void CPU_NAME(gemm_forward)(CpuState *state, stored *out, const stored *x, const stored *weight, const stored *bias,
                            size_t rows, size_t IC, size_t OC, const CpuEpilogue *epilogue) {
  Product g = forward_product(out, x, weight, rows, IC, OC);
  g.bias = bias;
  g.epilogue = epilogue;
  multiply(state, &g);
}

void CPU_NAME(gemm_backward_input)(CpuState *state, stored *dx, const stored *dout, const stored *weight, size_t rows, size_t IC, size_t OC) {
  const Product g = input_product(dx, dout, weight, rows, IC, OC);
  multiply(state, &g);
}

void CPU_NAME(gemm_backward_weight)(CpuState *state, float *dweight, const stored *dout, const stored *x, size_t rows, size_t IC, size_t OC) {
  const Product g = weight_product(dweight, dout, x, rows, IC, OC);
  multiply(state, &g);
}

// ---- the peak: the products' instruction on registers alone ----
double CPU_NAME(fma_rate)(double seconds) {
  enum { ROUNDS = 50 };
  static const TileConfig config = TILES_WHOLE;
  const double start = seconds_now();
  double elapsed = 0, flops = 0;
  TILE_CONFIGURE(&config);   // zeros: numbers cost 2 to 8 % of the peak
  while (elapsed < seconds) {
    for (int round = 0; round < ROUNDS; round++) {
      TILE_DOT(0, 4, 6);
      TILE_DOT(1, 4, 7);
      TILE_DOT(2, 5, 6);
      TILE_DOT(3, 5, 7);
    }
    flops += 4.0 * ROUNDS * 2 * TILE * TILE * STEP;
    elapsed = seconds_now() - start;
  }
  TILE_RELEASE();
  return flops / elapsed;
}
