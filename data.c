// data.c: owns `gpt data check` and `gpt data info`: whether shards are whole, and what a model will see in them.
//
// check: every byte of every shard and of its index of documents; --order on proves by counting that every token but the first is a target exactly once an
// epoch, and that each stands behind the token that the stream has before it. Exit 1 and the byte where something is wrong;
// exit 2 for a file that is no shard.
// Tests: tests/test_data.c, tests/test_index.c
#include "data.h"
#include "dataloader.h"  // Shard, Dataloader
#include "json.h"        // json_write_string
#include "tokenizer.h"   // tokenizer_decode
#include <errno.h>       // errno
#include <math.h>        // ceil
#include <stdlib.h>      // qsort, free
#include <string.h>      // strerror

enum { PIECE = 1 << 16 };   // tokens read at once

// The paths of all patterns named, in that order.
static char **all_paths(const Options *o, size_t *count) {
  if (!o->arg_count) fail(EXIT_REQUEST, "this needs a PATTERN of shards, such as 'shards/train_*.bin' (0 were named)");
  char **paths = NULL;
  *count = 0;
  for (size_t i = 0; i < o->arg_count; i++) {
    size_t n;
    char **some = shard_glob(o->args[i], &n);
    paths = xrealloc(paths, *count + n, sizeof *paths);
    memcpy(paths + *count, some, n * sizeof *paths);
    *count += n;
    free(some);
  }
  return paths;
}

// tokenizer.json in the folder of path, or NULL.
static Tokenizer *tokenizer_beside(const char *path, char **where) {
  const char *slash = strrchr(path, '/');
  *where = slash ? format("%.*s/tokenizer.json", (int)(slash - path), path) : xstrdup("tokenizer.json");
  return file_exists(*where) ? tokenizer_open(*where) : NULL;
}

// ---- check: one shard ----

// Checksum of the payload, end-of-text tokens in it, the last token; and beside them the starts of documents that the index has.
typedef struct {
  uint32_t crc;
  int64_t ends;
  uint32_t last;
  IndexWalk walk;
  int64_t start, number;     // the next one that is not yet met, -1: none; how many were met
  char *why;                 // what is wrong with the index, or NULL
} Scan;

static void next_start(Scan *scan) {
  if (shard_index_next(&scan->walk, &scan->start)) return;
  scan->start = -1;
  if (scan->walk.code == EXIT_MACHINE) fail(EXIT_MACHINE, "%s", scan->walk.why);
  scan->why = scan->walk.why;
}

static char *wrong_start(const Shard *s, const Scan *scan) {
  return format("%s: byte %lld: a document begins at token %lld, where %s has no end-of-text token", scan->walk.index->path,
                (long long)INDEX_HEADER_BYTES + 8 * scan->number, (long long)scan->start, s->path);
}

// An end-of-text token stands at `at`: a document begins there. Whether there are as many of both is for check_against_header to say, as
// the index has as many as the header.
static void meet_end_of_text(const Shard *s, Scan *scan, int64_t at) {
  if (!scan->walk.index || scan->why) return;
  if (scan->start == at) {
    next_start(scan);
    scan->number++;
  } else if (scan->start >= 0 && scan->start < at) {
    scan->why = wrong_start(s, scan);
  } else if (scan->start >= 0) {
    scan->why = format("%s: byte %lld: no document begins at token %lld, where %s has an end-of-text token", scan->walk.index->path,
                       (long long)INDEX_HEADER_BYTES + 8 * scan->number, (long long)at, s->path);
  }
}

// A reason, or NULL.
static char *scan_payload(const Shard *s, Scan *scan) {
  uint8_t *raw = xmalloc(PIECE, 4);
  char *why = NULL;
  if (scan->walk.index) next_start(scan);
  for (int64_t at = 0; at < s->count && !why; at += PIECE) {
    int64_t n = MIN((int64_t)PIECE, s->count - at), offset = s->payload + at * s->width;
    if (!pread_all(s->fd, raw, (size_t)(n * s->width), offset))
      fail(EXIT_MACHINE, "%s: byte %lld: reading %lld bytes failed: the file became shorter or the disk failed", s->path,
           (long long)offset, (long long)(n * s->width));
    scan->crc = crc32c(scan->crc, raw, (size_t)(n * s->width));
    for (int64_t i = 0; i < n && !why; i++) {
      uint32_t id = s->width == 2 ? (uint32_t)(raw[2 * i] | raw[2 * i + 1] << 8) : load_u32le(raw + 4 * i);
      if (id == (uint32_t)s->eot) { scan->ends++; meet_end_of_text(s, scan, at + i); }
      scan->last = id;
      if (s->vocab >= 0 && id >= (uint64_t)s->vocab)
        why = format("%s: byte %lld: id %u, the vocabulary has %lld", s->path, (long long)(offset + i * s->width), id,
                     (long long)s->vocab);
    }
  }
  while (scan->walk.index && s->eot < 0 && scan->start >= 0) next_start(scan);      // no token tells where a document begins
  free(raw);
  return why;
}

// The words of our header that hold nothing must be 0.
static char *check_empty_words(const Shard *s) {
  uint8_t h[SHARD_HEADER_BYTES];
  if (!pread_all(s->fd, h, sizeof h, 0)) fail(EXIT_MACHINE, "%s: reading the header failed: %s", s->path, strerror(errno));
  for (int i = 12; i < SHARD_HEADER_BYTES; i++) {
    if (i == SHARD_AT_OURS) i = SHARD_AT_END;
    if (h[i]) return format("%s: byte %d: %d, it must be 0", s->path, i, h[i]);
  }
  return NULL;
}

static char *check_against_header(const Shard *s, const Scan *scan) {
  if (scan->crc != s->crc)
    return format("%s: bytes %lld to %lld: checksum %08x, byte %d says %08x", s->path, (long long)s->payload,
                  (long long)(s->payload + s->count * s->width - 1), scan->crc, SHARD_AT_CRC, s->crc);
  // one end-of-text token stands before each document, and one more behind the last of the split
  bool final = scan->last == (uint32_t)s->eot && scan->ends == s->documents + 1;
  if (s->eot >= 0 && scan->ends != s->documents && !final)
    return format("%s: byte %d: %lld documents, but %lld end-of-text tokens", s->path, SHARD_AT_DOCUMENTS, (long long)s->documents,
                  (long long)scan->ends);
  return NULL;
}

static char *check_shard(const Shard *s, const Shard *first, const ShardIndex *x) {
  Scan scan = {.walk = {.index = x->path ? x : NULL}};
  char *why = first->path ? shard_mismatch(first, s) : NULL;
  if (!why && s->ours) why = check_empty_words(s);
  if (!why) why = scan_payload(s, &scan);
  if (!why && s->ours) why = check_against_header(s, &scan);
  if (!why) return scan.why;
  free(scan.why);
  return why;
}

static char *check_tokenizer_beside(const Shard *s) {
  char *where, hash[65], *why = NULL;
  Tokenizer *t = tokenizer_beside(s->path, &where);
  if (t) {
    tokenizer_sha256(t, hash);
    if (strcmp(hash, s->tokenizer) || tokenizer_vocab_size(t) != s->vocab)
      why = format("%s: byte %d: made with tokenizer %.12s (%lld entries), %s is %.12s (%d entries)", s->path,
                   SHARD_AT_TOKENIZER, s->tokenizer, (long long)s->vocab, where, hash, tokenizer_vocab_size(t));
  }
  tokenizer_free(t);
  free(where);
  return why;
}

// ---- check: the order ----

// Depends on every bit of all three; summed over a set it does not depend on the order.
static uint64_t mix(int64_t position, int32_t input, int32_t target) {
  return mix_bits(mix_bits(mix_bits((uint64_t)position) ^ (uint64_t)input) ^ (uint64_t)target);
}

static uint64_t sum_of_stream(const Dataloader *l) {
  int32_t *ids = xmalloc(PIECE + 1, sizeof *ids);
  int64_t n = dataloader_tokens(l);
  uint64_t sum = 0;
  for (int64_t at = 1; at < n; at += PIECE) {
    int64_t take = MIN((int64_t)PIECE, n - at);
    dataloader_read(l, at - 1, take + 1, ids);
    for (int64_t i = 0; i < take; i++) sum += mix(at + i, ids[i], ids[i + 1]);
  }
  free(ids);
  return sum;
}

// Reads every sample of an epoch as `ranks` ranks do that take `batch` samples of a step each, one rank after the other. What stands in the rows must be
// what the stream has at the places they claim, and none may be read twice or left out: *read = how many were.
static uint64_t sum_of_samples(Dataloader *l, int64_t T, int64_t epoch, int64_t ranks, int64_t batch, int64_t *read) {
  int32_t *inputs = xmalloc((size_t)T, sizeof *inputs), *targets = xmalloc((size_t)T, sizeof *targets);
  const int64_t windows = dataloader_windows(l);
  uint64_t sum = 0;
  *read = 0;
  for (int64_t rank = 0; rank < ranks; rank++)
    for (int64_t first = rank * batch; first < windows; first += ranks * batch)      // of the rank's samples of a step
      for (int64_t i = first; i < MIN(first + batch, windows); i++, (*read)++) {
        const int64_t k = epoch * windows + i;
        int64_t position;
        dataloader_targets(l, k, &position);
        dataloader_sample(l, k, inputs, targets);
        for (int64_t t = 0; t < T; t++) if (targets[t] != IGNORED_TARGET) sum += mix(position++, inputs[t], targets[t]);
      }
  free(inputs);
  free(targets);
  return sum;
}

// Counts how often each token is a target in an epoch; bounded memory: a range of tokens at a time.
static void count_targets(const Dataloader *l, int64_t epoch) {
  enum { RANGE = 1 << 28 };
  int64_t n = dataloader_tokens(l), windows = dataloader_windows(l);
  uint8_t *counts = xmalloc((size_t)MIN(n, (int64_t)RANGE), 1);
  for (int64_t first = 0; first < n; first += RANGE) {
    int64_t last = MIN(first + RANGE, n);
    memset(counts, 0, (size_t)(last - first));
    for (int64_t k = epoch * windows; k < (epoch + 1) * windows; k++) {
      int64_t from, count = dataloader_targets(l, k, &from), to = MIN(from + count, last);
      for (int64_t i = MAX(from, first); i < to; i++) counts[i - first] += counts[i - first] < 255;
    }
    for (int64_t i = first; i < last; i++)
      if (counts[i - first] != (i > 0))
        fail(EXIT_NO, "order: token %lld is a target %d times in epoch %lld, %d is right", (long long)i, counts[i - first],
             (long long)epoch, i > 0);
  }
  free(counts);
}

static void check_order(const Options *o, char *const *paths, size_t count) {
  int64_t T = o->context == AUTO_INT ? 1024 : o->context, batch = o->batch == AUTO_INT ? 8 : o->batch;
  int64_t epochs = o->epochs == AUTO_REAL ? 2 : MAX(1, (int64_t)ceil(o->epochs));
  Shard first = shard_open(paths[0], (ShardKind)o->raw);
  Dataloader *l = dataloader_open_paths(paths, count, (ShardKind)o->raw, first.ours ? 0 : INT32_MAX);   // those of others do not say their vocabulary
  shard_close(&first);
  int32_t start;
  dataloader_read(l, 0, 1, &start);
  DataOrder last = start == dataloader_eot(l) ? ORDER_DOCUMENTS : ORDER_STREAM;
  for (DataOrder order = ORDER_STREAM; order <= last; order++) {
    dataloader_arrange(l, T, order, (uint64_t)o->seed);
    uint64_t expected = sum_of_stream(l);
    for (int64_t e = 0; e < epochs; e++) {
      count_targets(l, e);
      int64_t read;
      if (sum_of_samples(l, T, e, o->ranks, batch, &read) != expected || read != dataloader_windows(l))
        fail(EXIT_NO, "order: a row of epoch %lld does not hold what the stream has there", (long long)e);
    }
    double windows = (double)dataloader_windows(l);
    printf("order of %s: context %lld, batch %lld, %lld rank%s, seed %lld: %.0f samples, %.1f steps an epoch; ",
           order == ORDER_STREAM ? "windows" : "documents", (long long)T, (long long)batch, (long long)o->ranks, o->ranks > 1 ? "s" : "", (long long)o->seed, windows,
           windows / (double)(batch * o->ranks));
    printf("in each of %lld epochs every one of %lld targets once\n", (long long)epochs, (long long)dataloader_tokens(l) - 1);
  }
  dataloader_close(l);
}

// What has been seen of the shards so far: the first that is whole, whether it has an index.
typedef struct { Shard first; bool indexed; int64_t tokens; } Checked;

static char *check_file(const Options *o, const char *path, Checked *c) {
  Shard s;
  ShardIndex x;
  char *why, *index_why = NULL;
  int code = shard_try_open(path, (ShardKind)o->raw, &s, &why);
  if (code && code != EXIT_NO) fail(code, "%s", why);
  if (code) return why;
  code = shard_index_try_open(&s, &x, &index_why);
  const bool first = !c->first.path, indexed = x.path;
  why = check_shard(&s, &c->first, &x);
  if (!why && first && s.ours) why = check_tokenizer_beside(&s);
  if (!why && code && code != EXIT_NO) fail(code, "%s", index_why);
  if (!why) why = index_why;
  else free(index_why);
  if (!why && !first && indexed != c->indexed)
    why = format("%s: has an index of its documents, %s has none: make the shards again, or remove every index",
                 indexed ? s.path : c->first.path, indexed ? c->first.path : s.path);
  c->tokens += s.count;
  if (!why) {
    printf("%s: whole: %lld tokens of %d bytes, %s", s.path, (long long)s.count, s.width,
           s.ours ? "ids and checksum right" : "no checksum, no vocabulary to check ids against");
    if (indexed) printf(", index of %lld documents right\n", (long long)x.count);
    else printf(", no index of documents\n");
  }
  shard_index_close(&x);
  if (!why && first) { c->first = s; c->indexed = indexed; }
  else shard_close(&s);
  return why;
}

static int data_check(const Options *o) {
  size_t count, damaged = 0;
  char **paths = all_paths(o, &count), *reason = NULL;
  Checked c = {0};
  for (size_t i = 0; i < count; i++) {
    char *why = check_file(o, paths[i], &c);
    if (!why) continue;
    printf("damaged: %s\n", why);
    if (!damaged++) reason = why;
    else free(why);
  }
  if (damaged) fail(EXIT_NO, "%s (%zu of %zu shards damaged)", reason, damaged, count);
  printf("%zu shards, %lld tokens: all whole\n", count, (long long)c.tokens);
  shard_close(&c.first);
  if (o->order) check_order(o, paths, count);
  free_names(paths, count);
  return 0;
}

// ---- info ----

enum { BUCKETS = 64 };
typedef struct {
  Dataloader *loader;
  Tokenizer *tokenizer;
  int32_t eot;
  size_t shards;
  int64_t tokens, bytes;              // bytes of the text they stand for; 0: not known
  int64_t ends;                       // end-of-text tokens
  int64_t *counts;                    // (vocab)
  int64_t vocab;
  int64_t documents, document_tokens, longest;
  int64_t before;                     // tokens, at the beginning, of a document that begins before these shards
  int64_t histogram[BUCKETS];         // documents of 2^i .. 2^(i+1)-1 tokens
} Info;

static void add_length(Info *in, int64_t length) {
  if (length <= 0) return;            // between two end-of-text tokens, or behind the last
  int bucket = 0;
  while (length >> (bucket + 1)) bucket++;
  in->histogram[bucket]++;
  in->documents++;
  in->document_tokens += length;
  in->longest = MAX(in->longest, length);
}

// Where documents begin by the index, one after the other; behind the last a place that no token has.
typedef struct { const Dataloader *loader; int64_t documents, given, starts[512]; } Beginnings;

static int64_t next_beginning(Beginnings *b) {
  const int64_t room = (int64_t)ARRAY_LEN(b->starts), at = b->given++;
  if (at >= b->documents) return -1;
  if (at % room == 0) dataloader_document_starts(b->loader, at, MIN(room, b->documents - at), b->starts);
  return b->starts[at % room];
}

// Tokens up to here: of a document, or of the end of one that begins before these shards.
static void end_document(Info *in, int64_t *length, bool *begun) {
  if (*begun) add_length(in, *length);
  else in->before = *length;
  *begun = true;
  *length = 0;
}

// A document begins where the index says; without an index an end-of-text token ends it. Validation may begin inside a document: with the
// shards to train on before it this one goes on, alone it is the end of one that does not begin here, and not counted.
static void scan_documents(Info *in) {
  int32_t *ids = xmalloc(PIECE, sizeof *ids);
  Beginnings b = {.loader = in->loader, .documents = dataloader_documents(in->loader)};
  const bool indexed = b.documents >= 0;
  int64_t length = 0, beginning = indexed ? next_beginning(&b) : -1;
  bool begun = !indexed;
  for (int64_t at = 0; at < in->tokens; at += PIECE) {
    int64_t n = MIN((int64_t)PIECE, in->tokens - at);
    dataloader_read(in->loader, at, n, ids);
    for (int64_t i = 0; i < n; i++) {
      in->counts[ids[i]]++;
      for (; at + i == beginning; beginning = next_beginning(&b)) end_document(in, &length, &begun);
      if (ids[i] != in->eot) length++;
      else if (!indexed) end_document(in, &length, &begun);
    }
  }
  end_document(in, &length, &begun);
  free(ids);
}

static void scan_stream(Info *in) {
  scan_documents(in);
  in->ends = in->eot >= 0 ? in->counts[in->eot] : 0;
  for (int64_t id = 0; in->tokenizer && id < in->vocab; id++) {
    size_t length;
    if (tokenizer_decode_one(in->tokenizer, id, &length) && !tokenizer_is_special(in->tokenizer, id))
      in->bytes += in->counts[id] * (int64_t)length;
  }
}

typedef struct { int64_t id, count; size_t length; } Entry;
static int order_of(int64_t a, int64_t b) { return (a > b) - (a < b); }
static int by_count(const void *a, const void *b) {   // the largest first, of equal ones the smaller id
  const Entry *x = a, *y = b;
  int order = order_of(y->count, x->count);
  return order ? order : order_of(x->id, y->id);
}
static int by_length(const void *a, const void *b) {
  const Entry *x = a, *y = b;
  int order = order_of((int64_t)y->length, (int64_t)x->length);
  return order ? order : by_count(a, b);
}

static void print_entries(const Info *in, const char *title, const Entry *e, size_t n) {
  printf("%s\n", title);
  for (size_t i = 0; i < n; i++) {
    Buffer text = {0};
    size_t length;
    const char *bytes = in->tokenizer ? tokenizer_decode_one(in->tokenizer, e[i].id, &length) : NULL;
    if (bytes) json_write_string(&text, bytes, MIN(length, (size_t)100));
    printf("  %7lld  %12lld  %6.3f %%  %s\n", (long long)e[i].id, (long long)e[i].count,
           100 * (double)e[i].count / (double)in->tokens, text.data ? text.data : "");
    buffer_free(&text);
  }
}

static void print_tokens(const Info *in) {
  enum { MOST = 15, LONGEST = 8 };
  Entry *e = xcalloc((size_t)in->vocab, sizeof *e);
  size_t used = 0;
  for (int64_t id = 0; id < in->vocab; id++) {
    if (!in->counts[id]) continue;
    e[used] = (Entry){.id = id, .count = in->counts[id]};
    if (in->tokenizer) tokenizer_decode_one(in->tokenizer, id, &e[used].length);
    used++;
  }
  printf("used       %zu of %lld ids\n", used, (long long)in->vocab);
  qsort(e, used, sizeof *e, by_count);
  print_entries(in, "most frequent: id, count, share, text", e, MIN(used, (size_t)MOST));
  qsort(e, used, sizeof *e, by_length);
  if (in->tokenizer) print_entries(in, "longest", e, MIN(used, (size_t)LONGEST));
  free(e);
}

static void print_lengths(const Info *in) {
  static const char widest[] = "##################################################";
  const int64_t width = sizeof widest - 1;
  int64_t most = 1;
  int low = BUCKETS, high = -1;
  for (int i = 0; i < BUCKETS; i++)
    if (in->histogram[i]) { most = MAX(most, in->histogram[i]); low = MIN(low, i); high = i; }
  printf("tokens of a document: mean %.1f, longest %lld\n",
         (double)in->document_tokens / (double)MAX(in->documents, (int64_t)1), (long long)in->longest);
  for (int i = low; i <= high; i++) {
    printf("  %10lld .. %-10lld  %10lld  %.*s\n", 1LL << i, (2LL << i) - 1, (long long)in->histogram[i],
           (int)((in->histogram[i] * width + most - 1) / most), widest);
  }
}

// The first lines, as a model sees them.
static void print_beginning(const Info *in) {
  enum { TOKENS = 300, LINES = 12 };
  if (!in->tokenizer) { printf("no text: name the tokenizer with --tokenizer\n"); return; }
  int32_t ids[TOKENS];
  Buffer text = {0};
  int64_t n = MIN((int64_t)TOKENS, in->tokens);
  dataloader_read(in->loader, 0, n, ids);
  tokenizer_decode(in->tokenizer, ids, (size_t)n, &text);
  printf("it begins:\n");
  for (size_t i = 0, at = 0; i < LINES && at < text.len; i++) {   // a text may have zeros in it
    const char *newline = memchr(text.data + at, '\n', text.len - at);
    size_t length = (newline ? (size_t)(newline - text.data) : text.len) - at;
    printf("  | ");
    fwrite(text.data + at, 1, length, stdout);
    printf("\n");
    at += length + 1;
  }
  buffer_free(&text);
}

static double bytes_per_token(const Info *in) { return (double)in->bytes / (double)MAX(in->tokens - in->ends, (int64_t)1); }

static void print_json(const Info *in) {
  Buffer j = {0};
  buffer_printf(&j, "{\"shards\": %zu, \"tokens\": %lld, \"documents\": %lld, \"vocab\": %lld, \"eot\": %d, \"tokenizer\": ",
                in->shards, (long long)in->tokens, (long long)in->documents, (long long)in->vocab, in->eot);
  const char *hash = dataloader_tokenizer_hash(in->loader);
  json_write_string(&j, hash, strlen(hash));
  buffer_printf(&j, ", \"bytes\": %lld, \"bytes_per_token\": ", (long long)in->bytes);
  json_write_number(&j, bytes_per_token(in));
  buffer_printf(&j, ", \"longest_document\": %lld, \"indexed_documents\": %lld}", (long long)in->longest, (long long)dataloader_documents(in->loader));
  printf("%s\n", j.data);
  buffer_free(&j);
}

static void open_info(Info *in, const Options *o) {
  char **paths = all_paths(o, &in->shards), *where = NULL;
  Shard first = shard_open(paths[0], (ShardKind)o->raw);
  in->tokenizer = o->use_tokenizer ? tokenizer_open(o->use_tokenizer) : tokenizer_beside(paths[0], &where);
  free(where);
  int64_t vocab = first.ours ? 0 : in->tokenizer ? tokenizer_vocab_size(in->tokenizer) : first.width == 2 ? 65536 : 0;
  in->loader = dataloader_open_paths(paths, in->shards, (ShardKind)o->raw, vocab);
  in->tokens = dataloader_tokens(in->loader);
  in->vocab = dataloader_vocab(in->loader);
  in->eot = first.ours ? dataloader_eot(in->loader) : in->tokenizer ? tokenizer_eot(in->tokenizer) : -1;
  if (in->tokenizer && tokenizer_vocab_size(in->tokenizer) != in->vocab)
    fail(EXIT_REQUEST, "%s: made for a vocabulary of %lld ids, the tokenizer has %d; name the one they were made with by --tokenizer",
         paths[0], (long long)in->vocab, tokenizer_vocab_size(in->tokenizer));
  in->counts = xcalloc((size_t)in->vocab, sizeof *in->counts);
  shard_close(&first);
  free_names(paths, in->shards);
}

static int data_info(const Options *o) {
  Info in = {0};
  open_info(&in, o);
  scan_stream(&in);
  const char *hash = dataloader_tokenizer_hash(in.loader);
  printf("shards     %zu\ntokens     %lld\ndocuments  %lld", in.shards, (long long)in.tokens, (long long)in.documents);
  if (in.before) printf(", and the last %lld tokens of one that begins before", (long long)in.before);
  printf("\nvocabulary %lld, end-of-text id %d\ntokenizer  %s\n", (long long)in.vocab, in.eot, *hash ? hash : "not known");
  int64_t indexed = dataloader_documents(in.loader);
  if (indexed >= 0) printf("index      where %lld documents begin\n", (long long)indexed);
  else printf("index      of documents: none\n");
  if (in.tokenizer) printf("text       %lld bytes, %.3f bytes a token\n", (long long)in.bytes, bytes_per_token(&in));
  print_tokens(&in);
  if (in.eot >= 0 || indexed >= 0) print_lengths(&in);
  print_beginning(&in);
  if (o->json) print_json(&in);
  free(in.counts);
  tokenizer_free(in.tokenizer);
  dataloader_close(in.loader);
  return 0;
}

int data_command(const Options *o) {
  switch (o->command) {
    case COMMAND_DATA_BUILD: return data_build(o);
    case COMMAND_DATA_CHECK: return data_check(o);
    default: return data_info(o);
  }
}
