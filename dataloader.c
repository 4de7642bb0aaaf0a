// dataloader.c: owns reading tokens: shards, the order of samples. See dataloader.h.
#include "dataloader.h"
#include "rng.h"        // philox, rng_below, rng_site
#include <errno.h>      // errno
#include <fcntl.h>      // open
#include <glob.h>       // glob
#include <stdlib.h>     // free
#include <string.h>     // memcpy, strerror
#include <sys/stat.h>   // fstat
#include <unistd.h>     // close

// ---- shards ----

static const char OUR_MAGIC[4] = {'G', 'P', 'T', 'C'};
enum { OUR_FORMAT = 1 };

void shard_header(const Shard *s, uint8_t header[SHARD_HEADER_BYTES]) {
  memset(header, 0, SHARD_HEADER_BYTES);
  store_u32le(header, s->width == 2 ? SHARD_MAGIC_U16 : SHARD_MAGIC_U32);
  store_u32le(header + 4, s->width == 2 ? SHARD_VERSION_U16 : SHARD_VERSION_U32);
  store_u32le(header + 8, s->count > INT32_MAX ? (uint32_t)-1 : (uint32_t)s->count);
  memcpy(header + SHARD_AT_OURS, OUR_MAGIC, sizeof OUR_MAGIC);
  store_u32le(header + SHARD_AT_FORMAT, OUR_FORMAT);
  store_u64le(header + SHARD_AT_COUNT, (uint64_t)s->count);
  store_u64le(header + SHARD_AT_DOCUMENTS, (uint64_t)s->documents);
  store_u32le(header + SHARD_AT_VOCAB, (uint32_t)s->vocab);
  store_u32le(header + SHARD_AT_EOT, (uint32_t)s->eot);
  for (int i = 0; i < 32; i++) {
    unsigned byte = 0;
    if (s->tokenizer[0]) sscanf(s->tokenizer + 2 * i, "%2x", &byte);
    header[SHARD_AT_TOKENIZER + i] = (uint8_t)byte;
  }
  store_u32le(header + SHARD_AT_CRC, s->crc);
}

// Our words of header h. Each returns a reason, or NULL: all is well.
static char *read_our_words(Shard *s, const uint8_t *h, int *code) {
  int64_t plain = s->count;
  uint32_t format_version = load_u32le(h + SHARD_AT_FORMAT);
  if (format_version != OUR_FORMAT) {
    *code = EXIT_REQUEST;
    return format("byte %d: shard format version %u, this program reads version %d; use a newer gpt", SHARD_AT_FORMAT,
                  format_version, OUR_FORMAT);
  }
  s->ours = true;
  s->count = (int64_t)load_u64le(h + SHARD_AT_COUNT);
  s->documents = (int64_t)load_u64le(h + SHARD_AT_DOCUMENTS);
  s->vocab = (int64_t)load_u32le(h + SHARD_AT_VOCAB);
  s->eot = (int32_t)load_u32le(h + SHARD_AT_EOT);
  sha256_hex(h + SHARD_AT_TOKENIZER, s->tokenizer);
  s->crc = load_u32le(h + SHARD_AT_CRC);
  if (plain != (s->count > INT32_MAX ? -1 : s->count))
    return format("byte 8: count %lld, but byte %d says %lld", (long long)plain, SHARD_AT_COUNT, (long long)s->count);
  if (s->documents < 0 || s->documents > s->count)
    return format("byte %d: %lld documents in %lld tokens", SHARD_AT_DOCUMENTS, (long long)s->documents, (long long)s->count);
  if (s->vocab < 1 || s->vocab > INT32_MAX)
    return format("byte %d: a vocabulary of %lld, it must be 1 to %d", SHARD_AT_VOCAB, (long long)s->vocab, INT32_MAX);
  if (s->eot >= s->vocab || s->eot < -1)
    return format("byte %d: end-of-text id %lld, the vocabulary has %lld", SHARD_AT_EOT, (long long)s->eot, (long long)s->vocab);
  return NULL;
}

static char *read_header(Shard *s, int64_t size, int *code) {
  uint8_t h[SHARD_HEADER_BYTES];
  *code = EXIT_REQUEST;
  if (size < SHARD_HEADER_BYTES)
    return format("%lld bytes, a shard has at least %d of header; a file of raw ids is read with --raw u16 or u32",
                  (long long)size, SHARD_HEADER_BYTES);
  if (!pread_all(s->fd, h, sizeof h, 0)) {
    *code = EXIT_MACHINE;
    return format("reading the header failed: %s", strerror(errno));
  }
  uint32_t magic = load_u32le(h), version = load_u32le(h + 4);
  if (magic != SHARD_MAGIC_U16 && magic != SHARD_MAGIC_U32)
    return format("byte 0: magic number %u, a shard has %d or %d; make one with gpt data build, or read raw ids with --raw",
                  magic, SHARD_MAGIC_U16, SHARD_MAGIC_U32);
  s->width = magic == SHARD_MAGIC_U16 ? 2 : 4;
  uint32_t wanted = s->width == 2 ? SHARD_VERSION_U16 : SHARD_VERSION_U32;
  if (version != wanted) return format("byte 4: version %u, %u is needed with magic number %u", version, wanted, magic);
  *code = EXIT_NO;
  s->count = (int32_t)load_u32le(h + 8);
  s->payload = SHARD_HEADER_BYTES;
  return memcmp(h + SHARD_AT_OURS, OUR_MAGIC, sizeof OUR_MAGIC) ? NULL : read_our_words(s, h, code);
}

// Tokens against bytes. The place is where the count stands, or where the file ends.
static char *check_size(const Shard *s, int64_t size) {
  int at_count = s->ours ? SHARD_AT_COUNT : 8;
  int64_t needed;
  if (s->count < 1)
    return format("byte %d: %lld tokens, at least 1 is needed", s->payload ? at_count : 0, (long long)s->count);
  if (__builtin_mul_overflow(s->count, (int64_t)s->width, &needed) || __builtin_add_overflow(needed, s->payload, &needed))
    return format("byte %d: %lld tokens, more than a file can hold", at_count, (long long)s->count);
  if (size < needed)
    return format("byte %lld: the file ends, %lld tokens need %lld bytes: it was cut off", (long long)size,
                  (long long)s->count, (long long)needed);
  if (size > needed)
    return format("byte %lld: %lld tokens end here, the file has %lld bytes: something stands behind them", (long long)needed,
                  (long long)s->count, (long long)size);
  return NULL;
}

static char *open_and_look(const char *path, ShardKind kind, Shard *s, int *code) {
  struct stat st;
  *code = EXIT_REQUEST;
  s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);   // not blocking: a named pipe must not stop us here
  if (s->fd < 0) {
    if (is_machine_errno(errno)) *code = EXIT_MACHINE;
    return format("cannot open shard: %s", strerror(errno));
  }
  if (fstat(s->fd, &st) || !S_ISREG(st.st_mode)) return format("is no regular file, a shard is needed");
  int64_t size = (int64_t)st.st_size;
  if (kind == SHARD_HEADER) {
    char *why = read_header(s, size, code);
    return why ? why : check_size(s, size);
  }
  s->width = kind == SHARD_RAW_U16 ? 2 : 4;
  s->count = size / s->width;
  if (size % s->width) return format("%lld bytes are no whole number of %d-byte ids", (long long)size, s->width);
  return check_size(s, size);
}

int shard_try_open(const char *path, ShardKind kind, Shard *s, char **why) {
  int code = EXIT_REQUEST;
  *s = (Shard){.path = xstrdup(path), .vocab = -1, .eot = -1, .documents = -1};
  char *reason = open_and_look(path, kind, s, &code);
  if (!reason) return 0;
  *why = format("%s: %s", path, reason);
  free(reason);
  shard_close(s);
  return code;
}

Shard shard_open(const char *path, ShardKind kind) {
  Shard s;
  char *why;
  int code = shard_try_open(path, kind, &s, &why);
  if (code) fail(code == EXIT_MACHINE ? EXIT_MACHINE : EXIT_REQUEST, "%s", why);
  return s;
}

void shard_close(Shard *s) {
  if (s->fd >= 0) close(s->fd);
  free(s->path);
  *s = (Shard){.fd = -1};
}

char *shard_mismatch(const Shard *a, const Shard *b) {
  if (a->ours != b->ours)
    return format("%s: names its tokenizer, %s does not: one split cannot mix them", a->ours ? a->path : b->path,
                  a->ours ? b->path : a->path);
  if (a->width != b->width)
    return format("%s: byte 0: %d-byte ids, %s has %d-byte ids: one split cannot mix them", b->path, b->width, a->path,
                  a->width);
  if (a->ours && strcmp(a->tokenizer, b->tokenizer))
    return format("%s: byte %d: made with tokenizer %.12s, %s with %.12s: one split cannot mix them", b->path,
                  SHARD_AT_TOKENIZER, b->tokenizer, a->path, a->tokenizer);
  if (a->ours && (a->vocab != b->vocab || a->eot != b->eot))
    return format("%s: byte %d: vocabulary %lld and end-of-text id %lld, %s has %lld and %lld: one split cannot mix them", b->path,
                  SHARD_AT_VOCAB, (long long)b->vocab, (long long)b->eot, a->path, (long long)a->vocab, (long long)a->eot);
  return NULL;
}

bool shard_read(const Shard *s, int64_t first, size_t n, int32_t *ids) {
  // uint16 ids are read into the upper half of the int32 array and widened from the front: what is written never
  // overtakes what is still to be read
  uint8_t *raw = (uint8_t *)ids + (s->width == 2 ? 2 * n : 0);
  if (!pread_all(s->fd, raw, n * (size_t)s->width, s->payload + first * s->width)) return false;
  for (size_t i = 0; i < n; i++)
    ids[i] = s->width == 2 ? raw[2 * i] | raw[2 * i + 1] << 8 : (int32_t)load_u32le(raw + 4 * i);
  return true;
}

bool shard_begins(const void *bytes, size_t n) {
  return n >= 4 && (load_u32le(bytes) == SHARD_MAGIC_U16 || load_u32le(bytes) == SHARD_MAGIC_U32);
}

// The directory's files SIDE*.bin, by name: its own name may hold what means something in a pattern.
static char **shards_of_folder(const char *dir, const char *side, size_t *count) {
  size_t all, n = strlen(side);
  char **names = list_directory(dir, &all);
  *count = 0;
  for (size_t i = 0; i < all; i++) {
    const size_t length = strlen(names[i]);
    const bool wanted = length > n + 4 && !strncmp(names[i], side, n) && !strcmp(names[i] + length - 4, ".bin") && *names[i] != '.';
    char *path = wanted ? format("%s/%s", dir, names[i]) : NULL;
    free(names[i]);
    if (wanted) names[(*count)++] = path;
  }
  return names;
}

bool shard_folder_has(const char *path, const char *side) {
  size_t count = 0;
  if (!is_directory(path)) return false;
  char *begin = format("%s_", side), **paths = shards_of_folder(path, begin, &count);
  free_names(paths, count);
  free(begin);
  return count > 0;
}

char **shard_glob_side(const char *pattern, const char *side, size_t *count) {
  if (!shard_folder_has(pattern, side)) return shard_glob(pattern, count);
  char *begin = format("%s_", side), **paths = shards_of_folder(pattern, begin, count);
  free(begin);
  return paths;
}

char **shard_glob(const char *pattern, size_t *count) {
  char **paths;
  if (is_directory(pattern)) {
    paths = shards_of_folder(pattern, "", count);
    if (*count == 0) fail(EXIT_REQUEST, "%s/*.bin: 0 files match, at least 1 shard is needed; make shards with gpt data build", pattern);
    return paths;
  }
  glob_t g = {0};
  if (glob(pattern, 0, NULL, &g) == 0) {
    paths = xmalloc(g.gl_pathc, sizeof *paths);
    *count = g.gl_pathc;
    for (size_t i = 0; i < *count; i++) paths[i] = xstrdup(g.gl_pathv[i]);
  } else if (file_exists(pattern)) {      // a name that holds [ or * itself
    paths = xmalloc(1, sizeof *paths);
    *count = 1;
    paths[0] = xstrdup(pattern);
  } else {
    fail(EXIT_REQUEST, "%s: 0 files match, at least 1 shard is needed; make shards with gpt data build", pattern);
  }
  globfree(&g);
  return paths;
}

// ---- the reader ----

struct Dataloader {
  void *memory;              // tokens in memory: uint16_t or int32_t (n); NULL: shards
  bool narrow;               // memory holds uint16_t
  Shard *shards;
  ShardKind kind;
  int64_t *starts;           // (shard_count + 1) number of the first token of each shard in the stream
  ShardIndex *indices;       // (shard_count)
  int64_t *documents;        // (shard_count + 1) number of the first document that begins in each shard; NULL: not every shard has an index
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
  int64_t *rows;             // ORDER_DOCUMENTS: (windows) position of each row's first input; ...
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

// Shards and indices past this many are opened for each read: a process may not have thousands of files open.
enum { KEPT_OPEN = 96 };   // of each loader, and its indices; two loaders are well below the usual limit of 1,024

static _Noreturn void index_failed(int code, const char *why) { fail(code == EXIT_MACHINE ? EXIT_MACHINE : EXIT_REQUEST, "%s", why); }

static void open_indices(Dataloader *l) {
  l->indices = xcalloc(l->shard_count, sizeof *l->indices);
  l->documents = xcalloc(l->shard_count + 1, sizeof *l->documents);
  size_t found = 0;
  for (size_t i = 0; i < l->shard_count; i++) {
    ShardIndex *x = &l->indices[i];
    char *why;
    int code = shard_index_try_open(&l->shards[i], x, &why);
    if (code) index_failed(code, why);
    l->documents[i + 1] = l->documents[i] + x->count;
    found += x->path != NULL;
    if (i < KEPT_OPEN || !x->path) continue;
    close(x->fd);
    x->fd = -1;
  }
  if (found == l->shard_count) return;
  free(l->documents);
  l->documents = NULL;
}

static void open_all(Dataloader *l, char *const *paths) {
  for (size_t i = 0; i < l->shard_count; i++) {
    Shard *s = &l->shards[i];
    *s = shard_open(paths[i], l->kind);
    char *why = shard_mismatch(&l->shards[0], s);
    if (why) fail(EXIT_REQUEST, "%s", why);
    // half of what fits, so that places in the stream and sums of them never overflow; nor does this one, for a token has two bytes at least
    l->starts[i + 1] = l->starts[i] + s->count;
    if (l->starts[i + 1] > INT64_MAX / 2)
      fail(EXIT_REQUEST, "%s: with this shard there are more tokens than can be counted (%lld)", s->path, (long long)INT64_MAX / 2);
    if (i < KEPT_OPEN) continue;
    close(s->fd);
    s->fd = -1;
  }
}

Dataloader *dataloader_open_shards(const char *pattern, ShardKind kind, int64_t vocab) {
  size_t count;
  char **paths = shard_glob(pattern, &count);
  Dataloader *l = dataloader_open_paths(paths, count, kind, vocab);
  free_names(paths, count);
  return l;
}

Dataloader *dataloader_open_paths(char *const *paths, size_t count, ShardKind kind, int64_t vocab) {
  Dataloader *l = xcalloc(1, sizeof *l);
  l->shard_count = count;
  l->kind = kind;
  l->shards = xcalloc(l->shard_count, sizeof *l->shards);
  l->starts = xcalloc(l->shard_count + 1, sizeof *l->starts);
  open_all(l, paths);
  open_indices(l);
  const Shard *first = &l->shards[0];
  l->n = l->starts[l->shard_count];
  l->vocab = vocab > 0 ? vocab : first->vocab;
  if (l->vocab < 1)
    fail(EXIT_REQUEST, "%s: these shards do not say their vocabulary; name their tokenizer with --tokenizer", first->path);
  if (vocab > 0 && first->ours && first->vocab > vocab)
    fail(EXIT_REQUEST, "%s: made for a vocabulary of %lld ids, this tokenizer or model has %lld; they do not belong together",
         first->path, (long long)first->vocab, (long long)vocab);
  l->eot = (int32_t)first->eot;
  snprintf(l->tokenizer, sizeof l->tokenizer, "%s", first->tokenizer);
  return l;
}

void dataloader_close(Dataloader *l) {
  if (!l) return;
  for (size_t i = 0; i < l->shard_count; i++) {
    shard_close(&l->shards[i]);
    shard_index_close(&l->indices[i]);
  }
  free(l->shards);
  free(l->indices);
  free(l->documents);
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

// ids = tokens first..first+n-1 of one shard, each checked
static void read_shard(const Dataloader *l, const Shard *s, int64_t first, int64_t n, int32_t *ids) {
  bool ok;
  if (s->fd >= 0) {
    ok = shard_read(s, first, (size_t)n, ids);
  } else {
    Shard again;
    char *why;
    if (shard_try_open(s->path, l->kind, &again, &why)) fail(EXIT_MACHINE, "%s; it was whole before", why);
    ok = again.count == s->count && again.width == s->width && shard_read(&again, first, (size_t)n, ids);
    shard_close(&again);
  }
  if (!ok)
    fail(EXIT_MACHINE, "%s: byte %lld: reading %lld tokens failed: the file became shorter or the disk failed", s->path,
         (long long)(s->payload + first * s->width), (long long)n);
  uint32_t vocab = (uint32_t)l->vocab, largest = 0;
  for (int64_t i = 0; i < n; i++) largest = MAX(largest, (uint32_t)ids[i]);
  if (largest < vocab) return;
  int64_t i = 0;
  while ((uint32_t)ids[i] < vocab) i++;
  fail(EXIT_REQUEST, "%s: byte %lld: id %u, the vocabulary has %u; the shard is damaged or made for another tokenizer",
       s->path, (long long)(s->payload + (first + i) * s->width), (uint32_t)ids[i], vocab);
}

// The last shard whose first token (or document) is number `at` or one before it.
static size_t shard_of(const Dataloader *l, const int64_t *firsts, int64_t at) {
  size_t low = 0, high = l->shard_count - 1;
  while (low < high) {
    size_t middle = (low + high + 1) / 2;
    if (firsts[middle] <= at) low = middle; else high = middle - 1;
  }
  return low;
}

static void read_shards(const Dataloader *l, int64_t at, int64_t n, int32_t *ids) {
  for (size_t s = shard_of(l, l->starts, at); n > 0; s++) {
    int64_t inside = at - l->starts[s], take = MIN(n, l->shards[s].count - inside);
    read_shard(l, &l->shards[s], inside, take, ids);
    at += take;
    ids += take;
    n -= take;
  }
}

void dataloader_read(const Dataloader *l, int64_t at, int64_t n, int32_t *ids) {
  if (!l->memory) { read_shards(l, at, n, ids); return; }
  for (int64_t i = 0; i < n; i++)
    ids[i] = l->narrow ? ((const uint16_t *)l->memory)[at + i] : ((const int32_t *)l->memory)[at + i];
}

enum { PIECE = 1 << 16 };   // tokens read at once when the whole stream is walked

static void hash_tokens(const Dataloader *l, int64_t first, int64_t last, Sha256 *sha) {
  int32_t *ids = xmalloc(PIECE, sizeof *ids);
  for (int64_t at = first; at < last; at += PIECE) {
    int64_t n = MIN((int64_t)PIECE, last - at);
    dataloader_read(l, at, n, ids);
    sha256_update(sha, ids, (size_t)n * sizeof *ids);
  }
  free(ids);
}

// A shard without a checksum: all of it, or pieces spread evenly from its first to its last token.
static void hash_foreign(const Dataloader *l, size_t s, Sha256 *sha) {
  enum { PIECES = 256 };
  int64_t count = l->shards[s].count, start = l->starts[s];
  sha256_update(sha, &count, sizeof count);
  if (count <= (int64_t)PIECES * PIECE) { hash_tokens(l, start, start + count, sha); return; }
  for (int64_t i = 0; i < PIECES; i++) {
    int64_t at = start + (int64_t)((__int128)(count - PIECE) * i / (PIECES - 1));
    hash_tokens(l, at, at + PIECE, sha);
  }
}

void dataloader_hash(Dataloader *l, Sha256 *sha) {
  if (l->memory) { hash_tokens(l, 0, l->n, sha); return; }
  for (size_t s = 0; s < l->shard_count; s++) {
    uint8_t header[SHARD_HEADER_BYTES];
    if (!l->shards[s].ours) { hash_foreign(l, s, sha); continue; }
    shard_header(&l->shards[s], header);
    sha256_update(sha, header, sizeof header);
  }
}

// ---- documents ----

// The index of shard s: as it is kept, or opened again into *again, to be closed.
static const ShardIndex *open_index(const Dataloader *l, size_t s, ShardIndex *again) {
  char *why;
  *again = (ShardIndex){.fd = -1};
  if (l->indices[s].fd >= 0) return &l->indices[s];
  int code = shard_index_try_open(&l->shards[s], again, &why);
  if (code) index_failed(code, why);
  if (!again->path) fail(EXIT_MACHINE, "%s: is gone, it was there when this process began", l->indices[s].path);
  return again;
}

int64_t dataloader_documents(const Dataloader *l) { return l->documents ? l->documents[l->shard_count] : -1; }

static void read_starts(const ShardIndex *x, int64_t first, int64_t n, int64_t *starts) {
  char *why;
  int code = shard_index_read(x, first, (size_t)n, -1, starts, NULL, &why);
  if (code) index_failed(code, why);
}

int64_t dataloader_document_at(const Dataloader *l, int64_t at) {
  size_t s = shard_of(l, l->starts, at);
  ShardIndex again;
  const ShardIndex *x = open_index(l, s, &again);
  int64_t low = 0, high = x->count, start;      // documents below low begin at `at` or before it, those from high on behind it
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    read_starts(x, middle, 1, &start);
    if (l->starts[s] + start <= at) low = middle + 1; else high = middle;
  }
  shard_index_close(&again);
  return l->documents[s] + low - 1;
}

void dataloader_document_starts(const Dataloader *l, int64_t first, int64_t n, int64_t *starts) {
  for (size_t s = shard_of(l, l->documents, first); n > 0; s++) {
    int64_t inside = first - l->documents[s], take = MIN(n, l->indices[s].count - inside);
    ShardIndex again;
    read_starts(open_index(l, s, &again), inside, take, starts);
    shard_index_close(&again);
    for (int64_t i = 0; i < take; i++) starts[i] += l->starts[s];
    first += take;
    starts += take;
    n -= take;
  }
}

typedef void DocumentFn(Dataloader *l, int64_t first, int64_t last, int64_t *result);

// each_document by the indices.
static void each_indexed_document(Dataloader *l, DocumentFn *visit, int64_t *result) {
  int64_t first = -1, start;
  for (size_t s = 0; s < l->shard_count; s++) {
    ShardIndex again;
    IndexWalk walk = {.index = open_index(l, s, &again)};
    for (; shard_index_next(&walk, &start); first = l->starts[s] + start)
      if (first >= 0) visit(l, first, l->starts[s] + start, result);
    if (walk.code) index_failed(walk.code, walk.why);
    shard_index_close(&again);
  }
  if (first >= 0) visit(l, first, l->n - 1, result);
}

// Calls visit for each document: its end-of-text token stands at `first`, the next one (or the last token) at `last`.
static void each_document(Dataloader *l, DocumentFn *visit, int64_t *result) {
  if (l->documents) { each_indexed_document(l, visit, result); return; }
  int32_t *ids = xmalloc(PIECE, sizeof *ids);
  int64_t first = -1;
  for (int64_t at = 0; at < l->n; at += PIECE) {
    int64_t n = MIN((int64_t)PIECE, l->n - at);
    dataloader_read(l, at, n, ids);
    for (int64_t i = 0; i < n; i++) {
      bool end = ids[i] == l->eot;
      if (end && first >= 0) visit(l, first, at + i, result);
      if (end) first = at + i;
    }
  }
  if (first >= 0) visit(l, first, l->n - 1, result);
  free(ids);
}

static void keep_longest(Dataloader *l, int64_t first, int64_t last, int64_t *longest) {
  (void)l;
  *longest = MAX(*longest, last - first);
}

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
  if (l->n < 2)
    fail(EXIT_REQUEST, "the data holds %lld token%s, at least 2 are needed: one to predict the other from", (long long)l->n,
         l->n == 1 ? "" : "s");
  l->T = T;
  l->order = order;
  l->seed = seed;
  l->windows = 0;
  free(l->rows);
  free(l->row_ends);
  l->rows = l->row_ends = NULL;
  if (order == ORDER_DOCUMENTS) {
    int64_t capacity = 0;
    if (l->eot >= 0) each_document(l, add_rows, &capacity);
    if (!l->windows || l->rows[0] != 0)
      fail(EXIT_REQUEST, "rows of whole documents need a text that begins with the end-of-text token");
    return;
  }
  int64_t least = (l->n - 1 + T - 1) / T;
  l->slack = least * T - (l->n - 1);
  l->extra = T - 1 - l->slack > l->slack + 1;     // whichever set of shifts is larger
  l->windows = least + l->extra;
}

// Feistel network over the smallest even number of bits that holds n; what falls outside is walked on until it falls
// inside: at most four tries on average.
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
  uint64_t choices = (uint64_t)(l->extra ? l->T - 1 - l->slack : l->slack + 1);
  uint32_t site = rng_site("shift of windows");
  int64_t shift = (int64_t)rng_below(choices, l->seed, (uint32_t)epoch, site, (uint64_t)epoch);
  return l->extra ? l->slack + 1 + shift : shift;
}

typedef struct { int64_t first, last, skip; } Window;   // targets first..last stand at positions skip.. of the row

static Window window_of(const Dataloader *l, int64_t window, int64_t shift) {
  if (l->order == ORDER_DOCUMENTS) return (Window){l->rows[window] + 1, l->row_ends[window], 0};
  int64_t first = 1 - shift + window * l->T, last = first + l->T - 1;
  return (Window){MAX(first, 1), MIN(last, l->n - 1), MAX(first, 1) - first};
}

static Window window_of_sample(const Dataloader *l, int64_t index) {
  int64_t epoch = index / l->windows, place = data_permute(index % l->windows, l->windows, l->seed, (uint64_t)epoch);
  return window_of(l, place, shift_of(l, epoch));
}

// Every window holds at least one target: the grid begins less than a row before the first and ends less than one
// behind the last.
static int64_t fill(Dataloader *l, Window w, int32_t *inputs, int32_t *targets) {
  int64_t count = w.last - w.first + 1;
  for (int64_t t = 0; t < l->T; t++) { inputs[t] = 0; targets[t] = IGNORED_TARGET; }
  dataloader_read(l, w.first - 1, count, inputs + w.skip);
  memcpy(targets + w.skip, inputs + w.skip + 1, (size_t)(count - 1) * sizeof *targets);
  dataloader_read(l, w.last, 1, targets + w.skip + count - 1);
  return count;
}

int64_t dataloader_sample(Dataloader *l, int64_t index, int32_t *inputs, int32_t *targets) {
  return fill(l, window_of_sample(l, index), inputs, targets);
}

int64_t dataloader_targets(const Dataloader *l, int64_t index, int64_t *first_target) {
  Window w = window_of_sample(l, index);
  *first_target = w.first;
  return w.last - w.first + 1;
}

int64_t dataloader_counted(const Dataloader *l, int64_t first, int64_t count) {
  int64_t total = 0, place;
  for (int64_t k = 0; k < count; k++) total += dataloader_targets(l, first + k, &place);
  return total;
}

int64_t dataloader_sequential_count(const Dataloader *l) {
  return l->order == ORDER_DOCUMENTS ? l->windows : (l->n - 1 + l->T - 1) / l->T;
}

int64_t dataloader_sequential(Dataloader *l, int64_t window, int32_t *inputs, int32_t *targets) {
  return fill(l, window_of(l, window, 0), inputs, targets);
}
