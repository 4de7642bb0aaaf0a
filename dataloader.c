// dataloader.c: owns reading tokens: shards, the order of samples. See dataloader.h.
#include "dataloader.h"
#include "rng.h"        // rng_below, rng_u32
#include <errno.h>      // errno
#include <fcntl.h>      // open
#include <glob.h>       // glob
#include <stdlib.h>     // free
#include <string.h>     // memcpy, strerror
#include <sys/stat.h>   // fstat
#include <unistd.h>     // close

// ---- shards ----

// Offsets of our words in the header, in bytes.
enum { AT_OURS = 32, AT_FORMAT = 36, AT_COUNT = 40, AT_DOCUMENTS = 48, AT_VOCAB = 56, AT_EOT = 60, AT_TOKENIZER = 64, AT_CRC = 96 };
static const char OUR_MAGIC[4] = {'G', 'P', 'T', 'C'};
enum { OUR_FORMAT = 1 };

void shard_header(const Shard *s, uint8_t header[SHARD_HEADER_BYTES]) {
  memset(header, 0, SHARD_HEADER_BYTES);
  store_u32le(header, s->width == 2 ? SHARD_MAGIC_U16 : SHARD_MAGIC_U32);
  store_u32le(header + 4, s->width == 2 ? SHARD_VERSION_U16 : SHARD_VERSION_U32);
  store_u32le(header + 8, s->count > INT32_MAX ? (uint32_t)-1 : (uint32_t)s->count);
  memcpy(header + AT_OURS, OUR_MAGIC, sizeof OUR_MAGIC);
  store_u32le(header + AT_FORMAT, OUR_FORMAT);
  store_u64le(header + AT_COUNT, (uint64_t)s->count);
  store_u64le(header + AT_DOCUMENTS, (uint64_t)s->documents);
  store_u32le(header + AT_VOCAB, (uint32_t)s->vocab);
  store_u32le(header + AT_EOT, (uint32_t)s->eot);
  for (int i = 0; i < 32; i++) {
    unsigned byte = 0;
    if (s->tokenizer[0]) sscanf(s->tokenizer + 2 * i, "%2x", &byte);
    header[AT_TOKENIZER + i] = (uint8_t)byte;
  }
  store_u32le(header + AT_CRC, s->crc);
}

static void read_our_words(Shard *s, const uint8_t *h) {
  if (memcmp(h + AT_OURS, OUR_MAGIC, sizeof OUR_MAGIC)) return;
  if (load_u32le(h + AT_FORMAT) != OUR_FORMAT)
    fail(EXIT_REQUEST, "%s: byte %d: shard format version %u, this program reads version %d; use a newer gpt", s->path, AT_FORMAT, load_u32le(h + AT_FORMAT), OUR_FORMAT);
  s->ours = true;
  s->count = (int64_t)load_u64le(h + AT_COUNT);
  s->documents = (int64_t)load_u64le(h + AT_DOCUMENTS);
  s->vocab = (int64_t)load_u32le(h + AT_VOCAB);
  s->eot = (int32_t)load_u32le(h + AT_EOT);
  sha256_hex(h + AT_TOKENIZER, s->tokenizer);
  s->crc = load_u32le(h + AT_CRC);
}

static void read_header(Shard *s, int64_t size) {
  uint8_t h[SHARD_HEADER_BYTES];
  if (size < SHARD_HEADER_BYTES)
    fail(EXIT_REQUEST, "%s: %lld bytes, a shard has at least %d of header; a file of raw ids is read with --raw u16 or u32", s->path, (long long)size, SHARD_HEADER_BYTES);
  if (!pread_all(s->fd, h, sizeof h, 0)) fail(EXIT_MACHINE, "%s: reading the header failed: %s", s->path, strerror(errno));
  uint32_t magic = load_u32le(h), version = load_u32le(h + 4);
  if (magic != SHARD_MAGIC_U16 && magic != SHARD_MAGIC_U32)
    fail(EXIT_REQUEST, "%s: byte 0: magic number %u, a shard has %d or %d; make one with gpt data build, or read raw ids with --raw", s->path, magic, SHARD_MAGIC_U16, SHARD_MAGIC_U32);
  s->width = magic == SHARD_MAGIC_U16 ? 2 : 4;
  uint32_t wanted = s->width == 2 ? SHARD_VERSION_U16 : SHARD_VERSION_U32;
  if (version != wanted) fail(EXIT_REQUEST, "%s: byte 4: version %u, %u is needed with magic number %u", s->path, version, wanted, magic);
  s->count = (int32_t)load_u32le(h + 8);
  int64_t plain = s->count;
  read_our_words(s, h);
  if (s->ours && plain != (s->count > INT32_MAX ? -1 : s->count))
    fail(EXIT_REQUEST, "%s: byte 8: count %lld disagrees with %lld at byte %d", s->path, (long long)plain, (long long)s->count, AT_COUNT);
  s->payload = SHARD_HEADER_BYTES;
  if (s->ours && (s->documents < 0 || s->documents > s->count)) fail(EXIT_REQUEST, "%s: byte %d: %lld documents in %lld tokens", s->path, AT_DOCUMENTS, (long long)s->documents, (long long)s->count);
  if (s->ours && (s->vocab < 1 || s->eot >= s->vocab || s->eot < -1))
    fail(EXIT_REQUEST, "%s: byte %d: end-of-text id %lld does not fit a vocabulary of %lld", s->path, AT_EOT, (long long)s->eot, (long long)s->vocab);
}

Shard shard_open(const char *path, ShardKind kind) {
  Shard s = {.path = xstrdup(path), .vocab = -1, .eot = -1, .documents = -1};
  struct stat st;
  s.fd = open(path, O_RDONLY | O_CLOEXEC);
  if (s.fd < 0) fail(EXIT_REQUEST, "%s: cannot open shard: %s", path, strerror(errno));
  if (fstat(s.fd, &st) || !S_ISREG(st.st_mode)) fail(EXIT_REQUEST, "%s: is no regular file; a shard is needed", path);
  int64_t size = (int64_t)st.st_size;
  if (kind == SHARD_HEADER) read_header(&s, size);
  else {
    s.width = kind == SHARD_RAW_U16 ? 2 : 4;
    s.count = size / s.width;
    if (size % s.width) fail(EXIT_REQUEST, "%s: %lld bytes are no whole number of %d-byte ids", path, (long long)size, s.width);
  }
  if (s.count < 1) fail(EXIT_REQUEST, "%s: holds %lld tokens, at least 1 is needed", path, (long long)s.count);
  int64_t needed;
  if (__builtin_mul_overflow(s.count, (int64_t)s.width, &needed) || __builtin_add_overflow(needed, s.payload, &needed) || needed != size)
    fail(EXIT_REQUEST, "%s: %lld bytes, but %lld tokens need %lld; the file is cut off or has something behind it", path, (long long)size, (long long)s.count,
         (long long)(s.count <= (INT64_MAX - s.payload) / s.width ? s.count * s.width + s.payload : INT64_MAX));
  return s;
}

void shard_close(Shard *s) {
  if (s->fd >= 0) close(s->fd);
  free(s->path);
  *s = (Shard){.fd = -1};
}

bool shard_read(const Shard *s, int64_t first, size_t n, int32_t *ids) {
  // uint16 ids are read into the upper half of the int32 array and widened from the front
  uint8_t *raw = (uint8_t *)ids + (s->width == 2 ? 2 * n : 0);
  if (!pread_all(s->fd, raw, n * (size_t)s->width, s->payload + first * s->width)) return false;
  for (size_t i = 0; i < n; i++) ids[i] = s->width == 2 ? raw[2 * i] | raw[2 * i + 1] << 8 : (int32_t)load_u32le(raw + 4 * i);
  return true;
}

char **shard_glob(const char *pattern, size_t *count) {
  glob_t g;
  if (glob(pattern, 0, NULL, &g) || g.gl_pathc == 0) fail(EXIT_REQUEST, "%s: no file matches; make shards with gpt data build", pattern);
  char **paths = xmalloc(g.gl_pathc, sizeof *paths);
  *count = g.gl_pathc;
  for (size_t i = 0; i < *count; i++) paths[i] = xstrdup(g.gl_pathv[i]);
  globfree(&g);
  return paths;
}

// ---- the reader ----

struct Dataloader {
  void *memory;              // tokens in memory: uint16_t or int32_t (n); NULL: shards
  bool narrow;               // memory holds uint16_t
  Shard *shards;
  int64_t *starts;           // (shard_count + 1) number of the first token of each shard in the stream
  size_t shard_count;
  int64_t n, vocab;
  int32_t eot;
  char tokenizer[65];
  // arranged:
  int64_t T;
  DataOrder order;
  uint64_t seed;
  int64_t windows;           // of an epoch
  int64_t slack;             // windows * T - (n - 1), where windows is the least number that holds all targets
  bool extra;                // one window more than that: shifts are drawn from slack+1 .. T-1, else from 0 .. slack
  int64_t *rows;             // ORDER_DOCUMENTS: (windows + 1) position of each row's first input; ...
  int64_t *row_ends;         // ... and of its last target
};

Dataloader *dataloader_open_tokens(const int32_t *tokens, int64_t n, int64_t vocab, int32_t eot) {
  Dataloader *l = xcalloc(1, sizeof *l);
  *l = (Dataloader){.n = n, .vocab = vocab, .eot = eot, .narrow = vocab <= 65536};
  l->memory = xmalloc((size_t)n, l->narrow ? 2 : 4);
  for (int64_t i = 0; i < n; i++) {
    if (l->narrow) ((uint16_t *)l->memory)[i] = (uint16_t)tokens[i];
    else ((int32_t *)l->memory)[i] = tokens[i];
  }
  return l;
}

// All shards of a split are the work of one tokenizer.
static void check_same(const Shard *a, const Shard *b) {
  if (a->ours != b->ours || a->width != b->width)
    fail(EXIT_REQUEST, "%s has %d-byte ids, %s has %d-byte ids%s: one split cannot mix them", a->path, a->width, b->path, b->width, a->ours != b->ours ? ", and only one names its tokenizer" : "");
  if (a->ours && (strcmp(a->tokenizer, b->tokenizer) || a->vocab != b->vocab))
    fail(EXIT_REQUEST, "%s was made with tokenizer %.12s (vocabulary %lld), %s with %.12s (%lld): one split cannot mix them", a->path, a->tokenizer, (long long)a->vocab, b->path, b->tokenizer, (long long)b->vocab);
}

Dataloader *dataloader_open_shards(const char *pattern, ShardKind kind, int64_t vocab) {
  Dataloader *l = xcalloc(1, sizeof *l);
  char **paths = shard_glob(pattern, &l->shard_count);
  l->shards = xcalloc(l->shard_count, sizeof *l->shards);
  l->starts = xcalloc(l->shard_count + 1, sizeof *l->starts);
  for (size_t i = 0; i < l->shard_count; i++) {
    l->shards[i] = shard_open(paths[i], kind);
    check_same(&l->shards[0], &l->shards[i]);
    if (__builtin_add_overflow(l->starts[i], l->shards[i].count, &l->starts[i + 1])) fail(EXIT_REQUEST, "%s: the shards hold more tokens than can be counted", pattern);
  }
  free_names(paths, l->shard_count);
  const Shard *first = &l->shards[0];
  l->n = l->starts[l->shard_count];
  l->vocab = vocab > 0 ? vocab : first->vocab;
  if (l->vocab < 1) fail(EXIT_REQUEST, "%s: these shards do not say their vocabulary; name their tokenizer with --tokenizer", first->path);
  if (vocab > 0 && first->ours && first->vocab > vocab)
    fail(EXIT_REQUEST, "%s: made for a vocabulary of %lld ids, the tokenizer named has %lld; they do not belong together", first->path, (long long)first->vocab, (long long)vocab);
  l->eot = (int32_t)first->eot;
  snprintf(l->tokenizer, sizeof l->tokenizer, "%s", first->tokenizer);
  return l;
}

void dataloader_close(Dataloader *l) {
  if (!l) return;
  for (size_t i = 0; i < l->shard_count; i++) shard_close(&l->shards[i]);
  free(l->shards);
  free(l->starts);
  free(l->memory);
  free(l->rows);
  free(l->row_ends);
  free(l);
}

int64_t dataloader_tokens(const Dataloader *l) { return l->n; }
int64_t dataloader_vocab(const Dataloader *l) { return l->vocab; }
int32_t dataloader_eot(const Dataloader *l) { return l->eot; }
const char *dataloader_tokenizer_hash(const Dataloader *l) { return l->tokenizer; }
int64_t dataloader_windows(const Dataloader *l) { return l->windows; }

static void read_shards(const Dataloader *l, int64_t at, int64_t n, int32_t *ids) {
  size_t low = 0, high = l->shard_count - 1;      // the shard that holds token `at`
  while (low < high) {
    size_t middle = (low + high + 1) / 2;
    if (l->starts[middle] <= at) low = middle; else high = middle - 1;
  }
  for (size_t s = low; n > 0; s++) {
    int64_t inside = at - l->starts[s], take = MIN(n, l->shards[s].count - inside);
    if (!shard_read(&l->shards[s], inside, (size_t)take, ids)) fail(EXIT_MACHINE, "%s: reading token %lld failed: the file was changed or the disk failed", l->shards[s].path, (long long)inside);
    for (int64_t i = 0; i < take; i++)
      if ((uint32_t)ids[i] >= (uint64_t)l->vocab)
        fail(EXIT_REQUEST, "%s: byte %lld: id %u, the vocabulary has %lld; the shard is damaged or made for another tokenizer", l->shards[s].path,
             (long long)(l->shards[s].payload + (inside + i) * l->shards[s].width), (uint32_t)ids[i], (long long)l->vocab);
    at += take;
    ids += take;
    n -= take;
  }
}

// ids = tokens at .. at+n-1 of the stream
static void read_tokens(const Dataloader *l, int64_t at, int64_t n, int32_t *ids) {
  if (!l->memory) { read_shards(l, at, n, ids); return; }
  for (int64_t i = 0; i < n; i++) ids[i] = l->narrow ? ((const uint16_t *)l->memory)[at + i] : ((const int32_t *)l->memory)[at + i];
}

enum { PIECE = 1 << 16 };   // tokens read at once when the whole stream is walked

void dataloader_hash(Dataloader *l, Sha256 *sha) {
  int32_t *ids = xmalloc(PIECE, sizeof *ids);
  for (int64_t at = 0; at < l->n; at += PIECE) {
    int64_t n = MIN((int64_t)PIECE, l->n - at);
    read_tokens(l, at, n, ids);
    sha256_update(sha, ids, (size_t)n * sizeof *ids);
  }
  free(ids);
}

// ---- documents ----

// Calls visit for each document: its end-of-text token stands at `first`, the next one (or the last token) at `last`.
static void each_document(Dataloader *l, void (*visit)(Dataloader *, int64_t first, int64_t last, int64_t *result), int64_t *result) {
  int32_t *ids = xmalloc(PIECE, sizeof *ids);
  int64_t first = -1;
  for (int64_t at = 0; at < l->n; at += PIECE) {
    int64_t n = MIN((int64_t)PIECE, l->n - at);
    read_tokens(l, at, n, ids);
    for (int64_t i = 0; i < n; i++) {
      bool end = ids[i] == l->eot;
      if (end && first >= 0) visit(l, first, at + i, result);
      if (end) first = at + i;
    }
  }
  if (first >= 0 && first < l->n - 1) visit(l, first, l->n - 1, result);
  free(ids);
}

static void keep_longest(Dataloader *l, int64_t first, int64_t last, int64_t *longest) { (void)l; *longest = MAX(*longest, last - first); }

int64_t dataloader_longest_document(Dataloader *l) {
  int64_t longest = 0;
  if (l->eot >= 0) each_document(l, keep_longest, &longest);
  return longest;
}

static void add_rows(Dataloader *l, int64_t first, int64_t last, int64_t *capacity) {
  for (int64_t at = first; at < last; at += l->T) {
    if (l->windows == *capacity) {
      *capacity = MAX((int64_t)1024, 2 * *capacity);
      l->rows = xrealloc(l->rows, (size_t)*capacity, sizeof *l->rows);
      l->row_ends = xrealloc(l->row_ends, (size_t)*capacity, sizeof *l->row_ends);
    }
    l->rows[l->windows] = at;
    l->row_ends[l->windows++] = MIN(last, at + l->T);
  }
}

// ---- order ----

void dataloader_arrange(Dataloader *l, int64_t T, DataOrder order, uint64_t seed) {
  l->T = T;
  l->order = order;
  l->seed = seed;
  l->windows = 0;
  if (order == ORDER_DOCUMENTS) {
    int64_t capacity = 0;
    free(l->rows);
    free(l->row_ends);
    l->rows = l->row_ends = NULL;
    if (l->eot >= 0) each_document(l, add_rows, &capacity);
    if (!l->windows || l->rows[0] != 0) fail(EXIT_REQUEST, "rows of whole documents need a text that begins with the end-of-text token");
    return;
  }
  int64_t least = (l->n - 1 + T - 1) / T;
  l->slack = least * T - (l->n - 1);
  l->extra = T - 1 - l->slack > l->slack + 1;     // whichever set of shifts is larger
  l->windows = least + l->extra;
}

// Feistel network over the smallest even number of bits that holds n; what falls outside is walked on until it falls inside.
int64_t data_permute(int64_t i, int64_t n, uint64_t seed, uint64_t epoch) {
  int half = 1;
  while (half < 31 && (int64_t)1 << (2 * half) < n) half++;
  uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)i;
  uint32_t site = rng_site("order of samples");
  do {
    uint64_t left = x >> half, right = x & mask;
    for (uint32_t round = 0; round < 4; round++) {
      uint32_t f = philox((uint32_t)right, (uint32_t)epoch, (uint32_t)(epoch >> 32), site + round, seed).v[0];
      uint64_t next = left ^ (f & mask);
      left = right;
      right = next;
    }
    x = left << half | right;
  } while (x >= (uint64_t)n);
  return (int64_t)x;
}

static int64_t shift_of(const Dataloader *l, int64_t epoch) {
  uint64_t choices = (uint64_t)(l->extra ? l->T - 1 - l->slack : MIN(l->slack, l->T - 1) + 1);
  int64_t shift = (int64_t)rng_below(choices, l->seed, (uint32_t)epoch, rng_site("shift of windows"), (uint64_t)epoch);
  return l->extra ? l->slack + 1 + shift : shift;
}

typedef struct { int64_t first, last, skip; } Window;   // targets first..last stand at positions skip.. of the row

static Window window_of(const Dataloader *l, int64_t window, int64_t shift) {
  if (l->order == ORDER_DOCUMENTS) return (Window){l->rows[window] + 1, l->row_ends[window], 0};
  int64_t first = 1 - shift + window * l->T, last = first + l->T - 1;
  return (Window){MAX(first, 1), MIN(last, l->n - 1), MAX(first, 1) - first};
}

static Window window_of_sample(const Dataloader *l, int64_t index) {
  int64_t epoch = index / l->windows;
  return window_of(l, data_permute(index % l->windows, l->windows, l->seed, (uint64_t)epoch), l->order == ORDER_STREAM ? shift_of(l, epoch) : 0);
}

static int64_t fill(Dataloader *l, Window w, int32_t *inputs, int32_t *targets) {
  int64_t count = w.last - w.first + 1;
  for (int64_t t = 0; t < l->T; t++) { inputs[t] = 0; targets[t] = IGNORED_TARGET; }
  if (count <= 0) return 0;
  read_tokens(l, w.first - 1, count, inputs + w.skip);
  memcpy(targets + w.skip, inputs + w.skip + 1, (size_t)(count - 1) * sizeof *targets);
  read_tokens(l, w.last, 1, targets + w.skip + count - 1);
  return count;
}

int64_t dataloader_sample(Dataloader *l, int64_t index, int32_t *inputs, int32_t *targets) { return fill(l, window_of_sample(l, index), inputs, targets); }

int64_t dataloader_counted(const Dataloader *l, int64_t first, int64_t count) {
  int64_t total = 0;
  for (int64_t k = 0; k < count; k++) {
    Window w = window_of_sample(l, first + k);
    total += MAX(w.last - w.first + 1, 0);
  }
  return total;
}

int64_t dataloader_sequential_count(const Dataloader *l) { return l->order == ORDER_DOCUMENTS ? l->windows : (l->n - 1 + l->T - 1) / l->T; }
int64_t dataloader_sequential(Dataloader *l, int64_t window, int32_t *inputs, int32_t *targets) { return fill(l, window_of(l, window, 0), inputs, targets); }
