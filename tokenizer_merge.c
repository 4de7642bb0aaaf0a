// tokenizer_merge.c: owns the merging of one word's bytes to tokens: always the pair with the least rank, of equal ranks the leftmost.
//
// Three ways to the same ids. A short word: look through all pairs again and again (the plain one, and the fastest up to some fifty
// bytes). A long one: a heap of pairs. A very long one, kilobytes and more without a blank: by rising ranks, which walks through
// memory in order where a heap jumps about. What is longer than a block is merged block by block (dev/LOG.md has the speeds).
// Tests: tests/test_pieces.c (each against the other)
#include "tokenizer_internal.h"
#include <stdlib.h>      // free, qsort

// ---- a short word ----

// Its rank << 32 | at, by which the next pair to merge is chosen.
static inline uint64_t pair_order(const Tokenizer *t, int32_t left, int32_t right, size_t at) { return (uint64_t)(uint32_t)tokenizer_merge_rank(t, left, right) << 32 | at; }

// The rank of the merge of the two bytes at p, by table: half of all look-ups are for these.
static inline int32_t byte_rank(const Tokenizer *t, const char *p) { return t->byte_ranks[(size_t)(uint8_t)p[0] << 8 | (uint8_t)p[1]]; }

// A short word: looks through all pairs for the least rank again and again, and has hardly a branch that depends on what it finds: the
// processor would guess half of them wrongly. A part stays where its first byte is, byte i at i + 1, between two that merge with nothing.
size_t tokenizer_merge_short(const Tokenizer *t, const char *word, size_t n, int32_t ids[SHORT_WORD]) {
  enum { AT_ONCE = 4, PLACES = SHORT_WORD + 2 + AT_ONCE };
  int32_t parts[PLACES];
  uint64_t order[PLACES];                   // of the pair that begins here: its rank << 32 | here
  const uint64_t none = (uint64_t)NO_RANK << 32;
  uint64_t alive = ((uint64_t)4 << n) - 1;  // bit i: a part begins here
  parts[0] = parts[n + 1] = -1;
  for (size_t i = 1; i <= n; i++) parts[i] = t->byte_id[(uint8_t)word[i - 1]];
  for (size_t i = 1; i < n; i++) order[i] = (uint64_t)(uint32_t)byte_rank(t, word + i - 1) << 32 | i;
  for (size_t i = n; i < n + AT_ONCE; i++) order[i] = none;
  for (;;) {
    uint64_t a = order[1], b = order[2], c = order[3], d = order[4];   // four at once: each comparison waits for the one before it
    for (size_t i = 1 + AT_ONCE; i < n; i += AT_ONCE) a = MIN(a, order[i]), b = MIN(b, order[i + 1]), c = MIN(c, order[i + 2]), d = MIN(d, order[i + 3]);
    a = MIN(a, b), c = MIN(c, d);
    const uint64_t least = MIN(a, c);
    if (least >= none) break;
    size_t at = (uint32_t)least, previous = 63 - (size_t)__builtin_clzll(alive & (((uint64_t)1 << at) - 1));
    uint64_t behind = alive & ~(((uint64_t)2 << at) - 1);
    size_t right = (size_t)__builtin_ctzll(behind), next = (size_t)__builtin_ctzll(behind & (behind - 1));
    alive &= ~((uint64_t)1 << right);
    order[right] = none;
    parts[at] = t->rank_result[least >> 32];
    order[at] = pair_order(t, parts[at], parts[next], at);
    order[previous] = pair_order(t, parts[previous], parts[at], previous);
  }
  size_t count = 0;
  for (alive &= ((uint64_t)2 << n) - 2; alive; alive &= alive - 1) ids[count++] = parts[__builtin_ctzll(alive)];
  return count;
}

// ---- whether a token is whole: what its own bytes merge to ----
// A token is made of two parts by one merge. If both parts are whole, its bytes merge to the two, and then to it, unless something merges across the
// border of the parts before. What stands left of the border is, in turn, a byte and whatever the last parts of the left part's last parts make; right
// of it likewise. So two walks down the making of the parts meet all pairs that ever stand at the border, the last first. 50,000 tokens of GPT-2: 4 ms,
// where merging the bytes of each took 11. dev/LOG.md, 2026-11-29.

typedef struct { int32_t left, right, rank; } Making;   // of a token; rank -1: a byte, or nothing makes it

// makings: (t->size), those of the parts are known, and the parts are whole.
static bool crosses_no_border(const Tokenizer *t, const Making *makings, const Merge *m) {
  int32_t left = m->left, right = m->right;             // what stands at the border
  int32_t left_until = m->rank, right_until = m->rank;  // the ranks of the merges that take them away
  for (;;) {
    const Making *l = &makings[left], *r = &makings[right];
    const int32_t rank = tokenizer_merge_rank(t, left, right);
    if (rank < left_until && rank <= right_until) return false;   // of equal ranks the leftmost merges first
    if (l->rank < 0 && r->rank < 0) return true;
    if (l->rank > r->rank) left_until = l->rank, left = l->right;
    else right_until = r->rank, right = r->left;        // of equal ones either: what was made before them does not merge so late
  }
}

bool *tokenizer_whole_tokens(const Tokenizer *t) {
  if (!t->ordered) return NULL;
  Making *makings = xmalloc((size_t)t->size, sizeof makings[0]);
  bool *whole = xcalloc((size_t)t->size, sizeof whole[0]);
  for (int32_t id = 0; id < t->size; id++) makings[id].rank = -1;
  for (int byte = 0; byte < 256; byte++) whole[t->byte_id[byte]] = true;
  for (size_t i = 0; i < t->merge_count; i++) {         // its parts were made before it
    const Merge *m = &t->merges[i];
    if (makings[m->result].rank >= 0 || whole[m->result]) { free(whole); free(makings); return NULL; }
    makings[m->result] = (Making){m->left, m->right, m->rank};
    whole[m->result] = whole[m->left] && whole[m->right] && crosses_no_border(t, makings, m);
  }
  free(makings);
  return whole;
}

// ---- a long word, by a heap ----

typedef struct Symbol { int32_t id; uint32_t previous, next; } Symbol;  // a part of the word; id -1: merged into the one before

void merge_scratch_free(MergeScratch *s) {
  free(s->symbols);
  free(s->heap);
  *s = (MergeScratch){0};
}

// Takes the least from the top. The last takes its place and sinks; while it does it stands behind the others as well, where it is
// compared as a sibling that does not come first.
static uint64_t heap_pop(MergeScratch *c) {
  uint64_t *heap = c->heap, top = heap[0];
  size_t count = --c->heap_count, at = 0;
  uint64_t value = heap[count];
  for (size_t child; (child = 2 * at + 1) < count; at = child) {
    child += heap[child + 1] < heap[child];
    if (value <= heap[child]) break;
    heap[at] = heap[child];
  }
  heap[at] = value;
  return top;
}

static void heap_push(MergeScratch *c, uint64_t value) {
  c->heap = xgrow(c->heap, c->heap_count, &c->heap_capacity, sizeof c->heap[0]);
  size_t at = c->heap_count++;
  for (; at > 0 && value < c->heap[(at - 1) / 2]; at = (at - 1) / 2) c->heap[at] = c->heap[(at - 1) / 2];
  c->heap[at] = value;
}

enum { NOWHERE = UINT32_MAX };

// Puts the pair that begins at symbol `at` on the heap, if there is one that merges.
static void push_pair(const Tokenizer *t, MergeScratch *c, uint32_t at) {
  uint32_t next = c->symbols[at].next;
  int32_t rank = next == NOWHERE ? NO_RANK : tokenizer_merge_rank(t, c->symbols[at].id, c->symbols[next].id);
  if (rank != NO_RANK) heap_push(c, (uint64_t)(uint32_t)rank << 32 | at);
}

// A word of any length: a linked list of parts and a heap of the pairs that may merge; n log n. A pair on the heap
// whose parts have changed since is seen by its rank and dropped. Appends to out.
void tokenizer_merge_heap(const Tokenizer *t, const char *word, size_t n, MergeScratch *c, TokenBuffer *out) {
  Symbol *symbols = c->symbols = xrealloc(c->symbols, n, sizeof c->symbols[0]);
  for (size_t i = 0; i < n; i++)
    symbols[i] = (Symbol){t->byte_id[(uint8_t)word[i]], i ? (uint32_t)i - 1 : NOWHERE, i + 1 < n ? (uint32_t)i + 1 : NOWHERE};
  for (size_t i = 0; i + 1 < n; i++) {   // the heap is empty: whoever used it before has taken all
    int32_t rank = byte_rank(t, word + i);
    if (rank != NO_RANK) heap_push(c, (uint64_t)(uint32_t)rank << 32 | i);
  }
  while (c->heap_count > 0) {
    uint64_t top = heap_pop(c);
    uint32_t at = (uint32_t)top, next = symbols[at].next;
    if (symbols[at].id < 0 || next == NOWHERE) continue;
    const int32_t rank = (int32_t)(top >> 32);
    if (tokenizer_merge_rank(t, symbols[at].id, symbols[next].id) != rank) continue;
    symbols[at].id = t->rank_result[rank];
    symbols[at].next = symbols[next].next;
    symbols[next].id = -1;
    if (symbols[at].next != NOWHERE) symbols[symbols[at].next].previous = at;
    if (symbols[at].previous != NOWHERE) push_pair(t, c, symbols[at].previous);
    push_pair(t, c, at);
  }
  for (uint32_t at = 0; at != NOWHERE; at = symbols[at].next) token_buffer_append(out, symbols[at].id);
}

// ---- a very long word, by rising ranks ----
// The pairs wait in one list a rank. A pair that a merge makes has a higher rank (t->ordered), so that one walk over the ranks
// meets all; within a rank from left to right. The parts lie where their bytes lie: the id at the first byte of a part, minus its
// length at the last (if that is another byte), something negative between: 4 bytes a byte, and the neighbours are found without links.

enum { CHUNK = 30 };
typedef struct { uint32_t next, count, at[CHUNK]; } Chunk;   // part of a rank's list; next: index of the one before it, or NOWHERE
typedef struct {
  const Tokenizer *t;
  int32_t *parts;
  size_t n;
  uint32_t *heads;          // (rank_end) the last chunk of each rank's list
  Chunk *chunks;
  uint32_t chunk_count, free_chunk;
  size_t chunk_capacity;
} Sweep;

static size_t token_length(const Tokenizer *t, int32_t id) { return t->starts[id + 1] - t->starts[id]; }

static void wait_for_rank(Sweep *s, int32_t rank, size_t at) {
  uint32_t head = s->heads[rank];
  if (head == NOWHERE || s->chunks[head].count == CHUNK) {
    uint32_t new = s->free_chunk;
    if (new != NOWHERE) s->free_chunk = s->chunks[new].next;
    else {
      s->chunks = xgrow(s->chunks, s->chunk_count, &s->chunk_capacity, sizeof s->chunks[0]);
      new = s->chunk_count++;
    }
    s->chunks[new].next = head;
    s->chunks[new].count = 0;
    s->heads[rank] = head = new;
  }
  Chunk *c = &s->chunks[head];
  c->at[c->count++] = (uint32_t)at;
}

// The pair of the parts that begin at `left` and `right`.
static void wait_as_pair(Sweep *s, size_t left, size_t right) {
  int32_t rank = tokenizer_merge_rank(s->t, s->parts[left], s->parts[right]);
  if (rank != NO_RANK) wait_for_rank(s, rank, left);
}

static int by_place(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

// Takes a rank's list: its places, ascending, freed by the caller.
static uint32_t *take_places(Sweep *s, int32_t rank, size_t *count) {
  *count = 0;
  for (uint32_t c = s->heads[rank]; c != NOWHERE; c = s->chunks[c].next) *count += s->chunks[c].count;
  uint32_t *places = xmalloc(*count, sizeof places[0]);
  size_t end = *count;
  for (uint32_t c = s->heads[rank], next; c != NOWHERE; c = next) {   // the last chunk first
    next = s->chunks[c].next;
    end -= s->chunks[c].count;
    memcpy(places + end, s->chunks[c].at, s->chunks[c].count * sizeof places[0]);
    s->chunks[c].next = s->free_chunk;
    s->free_chunk = c;
  }
  s->heads[rank] = NOWHERE;
  bool ascending = true;
  uint32_t last = *places;
  for (size_t i = 0; i < *count; last = places[i++]) ascending &= last <= places[i];
  if (!ascending) qsort(places, *count, sizeof places[0], by_place);   // matters where two pairs of a rank share a part
  return places;
}

// Merges the part at `at` with the next one, if that pair has this rank still.
static void merge_at(Sweep *s, size_t at, int32_t rank) {
  if (s->parts[at] < 0) return;
  size_t right = at + token_length(s->t, s->parts[at]);
  if (right >= s->n) return;
  if (tokenizer_merge_rank(s->t, s->parts[at], s->parts[right]) != rank) return;
  const int32_t result = s->t->rank_result[rank];
  size_t length = token_length(s->t, result), end = at + length;
  s->parts[at] = result;
  s->parts[right] = -1;
  s->parts[end - 1] = -(int32_t)length;
  if (end < s->n) wait_as_pair(s, at, end);
  if (at > 0) wait_as_pair(s, s->parts[at - 1] >= 0 ? at - 1 : at - (size_t)-s->parts[at - 1], at);
}

void tokenizer_merge_sweep(const Tokenizer *t, const char *word, size_t n, TokenBuffer *out) {
  Sweep s = {.t = t, .n = n, .free_chunk = NOWHERE, .parts = xmalloc(n, sizeof s.parts[0]), .heads = xmalloc((size_t)t->rank_end, sizeof s.heads[0])};
  for (int32_t rank = 0; rank < t->rank_end; rank++) s.heads[rank] = NOWHERE;
  for (size_t i = 0; i < n; i++) s.parts[i] = t->byte_id[(uint8_t)word[i]];
  for (size_t i = 0; i + 1 < n; i++) {
    int32_t rank = byte_rank(t, word + i);
    if (rank != NO_RANK) wait_for_rank(&s, rank, i);
  }
  for (int32_t rank = 0; rank < t->rank_end; rank++) {
    if (s.heads[rank] == NOWHERE) continue;
    size_t count;
    uint32_t *places = take_places(&s, rank, &count);
    for (size_t i = 0; i < count; i++) merge_at(&s, places[i], rank);
    free(places);
  }
  for (size_t at = 0; at < n; at += token_length(t, s.parts[at])) token_buffer_append(out, s.parts[at]);
  free(s.parts);
  free(s.heads);
  free(s.chunks);
}

// ---- a word of any length, block by block ----
// Ids are what a text merges to if and only if each two neighbours are what the text of those two merges to: before a first merge across
// the border of two ids nothing that happens elsewhere touches them, so that the two alone would merge as well. So the ids of two texts
// that overlap may be joined behind any id that both have at the same place. Blocks fit the processor's cache: 64 MiB take as long a byte as 64 KiB.

static void merge_block(const Tokenizer *t, const char *word, size_t n, MergeScratch *scratch, TokenBuffer *out) {
  enum { VERY_LONG = 4096 };   // below, a heap fits the processor's cache, and the lists of all ranks would cost more than they save
  if (t->ordered && n >= VERY_LONG) tokenizer_merge_sweep(t, word, n, out);
  else tokenizer_merge_heap(t, word, n, scratch, out);
}

// `more` has the ids of a text that begins where out's id number `at` begins, and goes on behind the end of out's. Joins them behind the
// first id that both have at the same place; false: there is none, nothing is done.
static bool join(const Tokenizer *t, TokenBuffer *out, size_t at, const TokenBuffer *more) {
  size_t left = 0, right = 0;   // where both stand, from `begin` on
  for (size_t j = 0; at < out->count;) {   // `more` ends behind out's end, so that out's ids come to an end first
    if (left == right && out->ids[at] == more->ids[j]) {
      out->count = at + 1;
      for (j++; j < more->count; j++) token_buffer_append(out, more->ids[j]);
      return true;
    }
    if (left <= right) left += token_length(t, out->ids[at++]);
    else right += token_length(t, more->ids[j++]);
  }
  return false;
}

// overlap: how much of what is done is merged again with the next block; twice as much, and a larger block, each time that is too little.
void tokenizer_merge_blocks(const Tokenizer *t, const char *word, size_t n, size_t block, size_t overlap, MergeScratch *scratch, TokenBuffer *out) {
  size_t first = out->count, end = MIN(n, block);
  TokenBuffer more = {0};
  merge_block(t, word, end, scratch, out);
  while (end < n) {   // out has the ids of the first `end` bytes
    size_t at = out->count, begin = end;
    while (at > first && end - begin < overlap) begin -= token_length(t, out->ids[--at]);
    size_t next = MIN(n, end + block);
    more.count = 0;
    merge_block(t, word + begin, next - begin, scratch, &more);
    if (begin == 0) {   // the whole of it anew
      out->count = first;
      for (size_t j = 0; j < more.count; j++) token_buffer_append(out, more.ids[j]);
      end = next;
    } else if (join(t, out, at, &more)) {
      end = next;
    } else {
      overlap *= 2;
      block = MAX(block, 2 * overlap);
    }
  }
  token_buffer_free(&more);
}

void tokenizer_merge_long(const Tokenizer *t, const char *word, size_t n, MergeScratch *scratch, TokenBuffer *out) {
  enum { BLOCK = 64 << 10, OVERLAP = 2 << 10 };
  if (n >= NOWHERE)
    fail(EXIT_REQUEST, "one piece of text of %zu bytes, at most %u can be encoded: split it into documents", n, NOWHERE - 1);
  tokenizer_merge_blocks(t, word, n, BLOCK, OVERLAP, scratch, out);
}
