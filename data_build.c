// data_build.c: owns `gpt data build`: texts to shards of ids, streamed.
//
// Texts are read twice where that is needed to know where validation begins (fewer than 100 documents), else once. Pieces of
// documents are gathered in batches, encoded by all threads, and written in order: the shards depend neither on the number of
// threads nor on how reading is cut. While a batch is encoded, the first thread writes the one before and reads the next. Where the tokenizer has an end-of-text token, one stands before each document and one
// after the last of a split, as in `gpt train TEXT`.
// What a folder is made of stands in its build.json first, as not finished; so a folder is never taken for whole that is not,
// and a build that was interrupted is continued by the same command: build.json says after each shard which job its last token
// came from, so that the jobs before it are read, for the division of documents, but not encoded again. A checksum of what is
// passed over tells a text that has changed meanwhile. A shard appears under its name when it is whole, just after the index of its documents;
// a refused request (exit 2) leaves nothing behind; after a full disk or a signal finished shards stay.
// Tests: tests/test_data.c, tests/test_index.c
#include "data.h"
#include "dataloader.h"  // Shard, shard_header
#include "documents.h"   // Documents
#include "json.h"        // build.json
#include "machine.h"     // machine_require_threads
#include "tokenizer.h"   // tokenizer_encode
#include "utf8.h"        // utf8_decode
#include <errno.h>       // errno
#include <fcntl.h>       // open
#include <fnmatch.h>     // fnmatch
#include <signal.h>      // sigaction
#include <stdlib.h>      // free
#include <string.h>      // strcmp
#include <unistd.h>      // unlink, rmdir

enum {
  PIECE_BYTES = 1 << 17,      // of a long document, encoded at once by one thread; the others wait so long at most at the end of a batch
  BATCH_BYTES = 4 << 20,      // of text, for each thread
  ROOM_BYTES = 1 << 16,       // of a shard, before it is written
  WAITING_BYTES = 4 << 20,    // of a shard; then the disk is asked to write them, while the next ones are encoded
  HASHED_FROM = 100,          // documents: from so many on validation is drawn by their content, below it is the tail
};

typedef enum { TRAIN, VALIDATION, SIDES } Side;
static const char *const side_names[SIDES] = {"train", "val"};

// Where a split stands: `shards` are whole and hold `done` tokens; the last of them came from job number `jobs` of the build or
// from one before it; in front of that job the split had so many tokens and documents, and with it a text of this checksum.
typedef struct { int64_t shards, done, jobs, tokens, documents, text_crc; } Progress;

// A file that is written piece by piece, after room for its header, and gets its name when it is whole.
typedef struct {
  int fd;                              // -1: none
  char *path, *temporary;              // its name, and the one until then; NULL: none
  uint8_t *room;                       // (ROOM_BYTES)
  size_t used;                         // of it, not written yet
  uint32_t crc;                        // of all behind the header
  size_t waiting;                      // bytes that the disk was not yet asked to write
} Output;

// The shards of one split, written one after another.
typedef struct {
  const char *dir, *name;
  int64_t shard_tokens;
  int64_t shards, tokens, documents;   // of the whole split, so far
  uint32_t text_crc;                   // of its jobs' text, so far
  Progress found;                      // by an interrupted build of the same request: tokens below found.done are not written again
  Progress at, last;                   // in front of the job at hand; when the last shard was finished, as build.json has it
  Output ids, index;                   // of the shard that is being written
  Shard header;                        // of it
} Writer;

// A piece of a document in the batch.
typedef struct {
  size_t begin, n;            // in the batch's text
  Side side;
  bool starts;                // an end-of-text token stands before it
  bool passed;                // all its tokens stand in shards that an interrupted build finished
  const char *name;           // of its text, and where it begins there
  int64_t at;
  uint8_t *ids;               // as in the shard
  int64_t count;              // of ids; -1: character `unseen` has none
  size_t unseen;
  uint32_t text_crc;
} Job;

typedef struct {
  Buffer text;
  Job *jobs;
  size_t count, capacity;     // of jobs
  int64_t read;               // bytes of the texts, up to its end
} Batch;

typedef struct {
  const Options *o;
  Documents *documents;
  DocumentSplit split;
  DocumentCut cut;
  Tokenizer *tokenizer;
  Buffer tokenizer_json;
  char tokenizer_hash[65];
  int32_t eot;
  char *dir;
  bool made_dir, keep;        // keep: finished shards stay when the process fails
  Writer writers[SIDES];
  // which side a document is on
  bool by_hash, whole;
  int64_t limit, seen;        // bytes of documents before validation begins; seen so far
  Side side;                  // of the document that is being read
  // the batches
  int threads;
  Batch batches[2];           // one that is encoded; one that is written, and filled again
  bool read_all;
  int64_t jobs_added, jobs_written;   // of the whole build; what a job holds depends on the texts alone
  Progress progress[SIDES];           // of an interrupted build
  TokenBuffer *ids;           // (threads)
  double start, last_line;
} Build;

static volatile sig_atomic_t stop_signal;
static void on_signal(int number) { stop_signal = number; }

// ---- writing shards ----

// `keep` is set first: what was written before stays when the disk is full.
static void writer_failed(Build *b, const char *path, const char *what) {
  b->keep = true;
  int why = errno;
  fail(EXIT_MACHINE, "%s: cannot %s: %s; %lld finished shards stay, run the same command again to go on", path, what,
       strerror(why), (long long)(b->writers[TRAIN].shards + b->writers[VALIDATION].shards));
}

static void write_build_json(const Build *b, bool finished);

// Takes over the path.
static void output_open(Build *b, Output *f, char *path, size_t header) {
  static const uint8_t zeros[SHARD_HEADER_BYTES];
  f->path = path;
  f->temporary = format("%s.tmp", path);
  f->crc = 0;
  f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (f->fd < 0) writer_failed(b, f->temporary, "make this file");
  if (!write_all(f->fd, zeros, header)) writer_failed(b, f->temporary, "write");
}

static void output_write(Build *b, Output *f, const uint8_t *bytes, size_t n) {
  if (!write_all(f->fd, bytes, n)) writer_failed(b, f->temporary, "write");
  f->crc = crc32c(f->crc, bytes, n);
  f->waiting += n;
  if (f->waiting < WAITING_BYTES) return;
  sync_file_range(f->fd, 0, 0, SYNC_FILE_RANGE_WRITE);      // a hint; what counts is fsync, which then has less to wait for
  f->waiting = 0;
}

static void output_flush(Build *b, Output *f) {
  output_write(b, f, f->room, f->used);
  f->used = 0;
}

static void output_put(Build *b, Output *f, const uint8_t *bytes, size_t n) {
  if (f->used + n > ROOM_BYTES) output_flush(b, f);
  if (n > ROOM_BYTES) { output_write(b, f, bytes, n); return; }
  memcpy(f->room + f->used, bytes, n);
  f->used += n;
}

// Behind output_flush, for the header knows the checksum. All of it is on disk then, under the name it has until it is published.
static void output_finish(Build *b, Output *f, const uint8_t *header, size_t n) {
  if (lseek(f->fd, 0, SEEK_SET) < 0 || !write_all(f->fd, header, n)) writer_failed(b, f->temporary, "write");
  if (fsync(f->fd)) writer_failed(b, f->temporary, "put on disk");
  int closed = close(f->fd);
  f->fd = -1;
  if (closed) writer_failed(b, f->temporary, "close");
}

static void output_forget(Output *f) {
  free(f->path);
  free(f->temporary);
  f->path = f->temporary = NULL;
}

static void writer_open(Build *b, Writer *w) {
  char *path = format("%s/%s_%06lld.bin", w->dir, w->name, (long long)w->shards);
  output_open(b, &w->ids, path, SHARD_HEADER_BYTES);
  output_open(b, &w->index, shard_index_path(path), INDEX_HEADER_BYTES);
  w->header.count = w->header.documents = 0;
}

// Wherever this is cut short, a shard that has its name has its index too; and build.json, which is written last, decides what counts.
static void writer_finish(Build *b, Writer *w) {
  uint8_t header[SHARD_HEADER_BYTES], index_header[INDEX_HEADER_BYTES];
  output_flush(b, &w->ids);
  output_flush(b, &w->index);
  w->header.crc = w->ids.crc;
  shard_header(&w->header, header);
  output_finish(b, &w->ids, header, sizeof header);
  const ShardIndex index = {.count = w->header.documents, .tokens = w->header.count, .shard_crc = w->ids.crc, .crc = w->index.crc};
  shard_index_header(&index, index_header);
  output_finish(b, &w->index, index_header, sizeof index_header);
  if (rename(w->index.temporary, w->index.path)) writer_failed(b, w->index.path, "name the file so");
  if (rename(w->ids.temporary, w->ids.path) || !fsync_directory(w->dir)) writer_failed(b, w->ids.path, "name the file so");
  output_forget(&w->ids);
  output_forget(&w->index);
  w->last = w->at;
  w->last.shards = ++w->shards;
  w->last.done = w->tokens;
  b->keep = true;      // a disk that is full here must not cost the shards
  write_build_json(b, false);
  b->keep = false;
}

// n ids, as they stand in the shard.
static void writer_put(Build *b, Writer *w, const uint8_t *ids, int64_t n) {
  int64_t done = MIN(n, MAX((int64_t)0, w->found.done - w->tokens));   // written by the build that was interrupted
  w->tokens += done;
  while (done < n) {
    if (w->ids.fd < 0) writer_open(b, w);
    int64_t take = MIN(n - done, w->shard_tokens - w->header.count);
    output_put(b, &w->ids, ids + done * w->header.width, (size_t)(take * w->header.width));
    done += take;
    w->tokens += take;
    w->header.count += take;
    if (w->header.count == w->shard_tokens) writer_finish(b, w);
  }
}

static void pack_ids(const int32_t *ids, size_t n, int width, uint8_t *packed) {
  for (size_t i = 0; i < n; i++)
    if (width == 4) store_u32le(packed + 4 * i, (uint32_t)ids[i]);
    else packed[2 * i] = (uint8_t)ids[i], packed[2 * i + 1] = (uint8_t)(ids[i] >> 8);
}

// In front of the next job of a split (its text is in the checksum), or behind the last one.
static void writer_at_job(const Build *b, Writer *w) {
  w->at = (Progress){.jobs = b->jobs_written, .tokens = w->tokens, .documents = w->documents, .text_crc = w->text_crc};
}

static void put_end_of_text(Build *b, Writer *w) {
  uint8_t packed[4];
  pack_ids(&b->eot, 1, w->header.width, packed);
  writer_put(b, w, packed, 1);
}

static void writer_begin_document(Build *b, Writer *w) {
  w->documents++;
  if (w->tokens >= w->found.done) {
    uint8_t start[8];
    if (w->ids.fd < 0) writer_open(b, w);
    store_u64le(start, (uint64_t)w->header.count);
    output_put(b, &w->index, start, sizeof start);
    w->header.documents++;
  }
  if (b->eot >= 0) put_end_of_text(b, w);
}

static void writer_end(Build *b, Writer *w) {
  writer_at_job(b, w);
  if (w->tokens > 0 && b->eot >= 0) put_end_of_text(b, w);
  if (w->ids.fd >= 0) writer_finish(b, w);
  free(w->ids.room);
  free(w->index.room);
}

// ---- cleaning up ----

static bool is_ours(const char *name) {
  static const char *const patterns[] = {"train_*.bin", "val_*.bin", "train_*.idx", "val_*.idx", "train_*.bin.tmp", "val_*.bin.tmp",
                                         "train_*.idx.tmp", "val_*.idx.tmp", "build.json", "tokenizer.json"};
  for (size_t i = 0; i < ARRAY_LEN(patterns); i++) if (fnmatch(patterns[i], name, 0) == 0) return true;
  return false;
}

// Runs inside fail(): half a shard goes always, everything where the request was refused.
static void clean_up(void *arg) {
  Build *b = arg;
  for (int s = 0; s < SIDES; s++) {
    const Writer *w = &b->writers[s];
    const char *const half[] = {w->ids.temporary, w->index.temporary, w->index.path};
    for (size_t i = 0; i < ARRAY_LEN(half); i++) if (half[i]) unlink(half[i]);
  }
  if (b->keep) return;
  size_t count;
  char **names = list_directory(b->dir, &count);
  for (size_t i = 0; i < count; i++) {
    if (!is_ours(names[i])) continue;
    char *path = format("%s/%s", b->dir, names[i]);
    unlink(path);
    free(path);
  }
  free_names(names, count);
  if (b->made_dir) rmdir(b->dir);
}

// ---- encoding a batch ----

// The checksum of a split's jobs is one over their checksums, which the threads that encode them make.
static uint32_t add_text(uint32_t crc, uint32_t job) {
  uint8_t bytes[4];
  store_u32le(bytes, job);
  return crc32c(crc, bytes, sizeof bytes);
}

static void encode_job(const Build *b, const Batch *batch, Job *j, TokenBuffer *ids) {
  j->text_crc = crc32c(0, batch->text.data + j->begin, j->n);
  ids->count = 0;
  if (j->passed) return;
  j->count = tokenizer_encode(b->tokenizer, batch->text.data + j->begin, j->n, ids, SPECIAL_NONE);
  if (j->count < 0) { j->unseen = ids->unseen; return; }
  const int width = b->writers[j->side].header.width;
  j->ids = xmalloc((size_t)j->count, (size_t)width);
  pack_ids(ids->ids, (size_t)j->count, width, j->ids);
}

static void refuse_character(const Build *b, const Batch *batch, const Job *j) {
  const uint8_t *p = (const uint8_t *)batch->text.data + j->begin + j->unseen;
  bool line = b->split == SPLIT_JSONL;
  int64_t at = line ? j->at : j->at + (int64_t)j->unseen;
  fail(EXIT_REQUEST, "%s: %s %lld: the tokenizer has no id for the character that begins with byte 0x%02x; take gpt2 or byte",
       j->name, line ? "line" : "byte", (long long)at, *p);
}

static void print_progress(Build *b, const Batch *batch) {
  double now = seconds_now();
  if (now - b->last_line < 5) return;
  b->last_line = now;
  double done = (double)batch->read, all = (double)documents_bytes(b->documents), seconds = now - b->start;
  int64_t left = (int64_t)(seconds * (all - done) / done);
  printf("build %3.0f%%  %.1f MB/s  %.2fM tokens  eta %lld:%02lld\n", 100 * done / all, 1e-6 * done / seconds,
         1e-6 * (double)(b->writers[TRAIN].tokens + b->writers[VALIDATION].tokens), (long long)left / 60, (long long)left % 60);
  fflush(stdout);
}

// Leaves it empty.
static void write_batch(Build *b, Batch *batch) {
  if (batch->count == 0) return;
  for (size_t i = 0; i < batch->count; i++) {
    Job *j = &batch->jobs[i];
    if (j->count < 0) refuse_character(b, batch, j);
    Writer *w = &b->writers[j->side];
    w->text_crc = add_text(w->text_crc, j->text_crc);
    if (!j->passed) {
      writer_at_job(b, w);
      if (j->starts) writer_begin_document(b, w);
      writer_put(b, w, j->ids, j->count);
    }
    b->jobs_written++;
    free(j->ids);
  }
  batch->count = batch->text.len = 0;
  print_progress(b, batch);
  if (!stop_signal) return;
  b->keep = true;
  fail(128 + stop_signal, "stopped by signal %d: %lld finished shards stay; run the same command again to go on",
       (int)stop_signal, (long long)(b->writers[TRAIN].shards + b->writers[VALIDATION].shards));
}

static void add_job(Build *b, Batch *batch, Side side, bool starts, const Piece *p, size_t from, size_t to) {
  if (from == to) return;
  batch->jobs = xgrow(batch->jobs, batch->count, &batch->capacity, sizeof *batch->jobs);
  int64_t at = b->split == SPLIT_JSONL ? p->at : p->at + (int64_t)from;
  batch->jobs[batch->count++] = (Job){.begin = batch->text.len, .n = to - from, .side = side, .starts = starts, .name = p->name, .at = at,
                                  .passed = b->jobs_added++ < b->writers[side].found.jobs};
  buffer_append(&batch->text, p->text + from, to - from);
}

// ---- which side a document is on ----

// FNV-1a of its head, mixed: even in all bits, and the same wherever the document stands.
static double content_fraction(const char *text, size_t n) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < MIN(n, (size_t)DOCUMENT_HEAD); i++) h = (h ^ (uint8_t)text[i]) * 0x100000001b3u;
  return (double)(mix_bits(h) >> 11) * 0x1p-53;
}

static size_t character_start(const char *text, size_t at) {
  while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
  return at;
}

static void add_piece(Build *b, Batch *batch, const Piece *p) {
  int64_t before = b->seen, left = b->limit - before;
  b->seen += (int64_t)p->n;
  if (b->by_hash) {
    if (p->starts) b->side = content_fraction(p->text, p->n) < b->o->val_fraction ? VALIDATION : TRAIN;
  } else if (left <= 0 || (b->whole && before > 0 && left < (int64_t)p->n)) {
    b->side = VALIDATION;
  } else if (!b->whole && left < (int64_t)p->n) {        // validation begins inside
    size_t cut = character_start(p->text, (size_t)left);
    add_job(b, batch, TRAIN, p->starts, p, 0, cut);
    add_job(b, batch, VALIDATION, p->starts && cut == 0, p, cut, p->n);
    b->side = VALIDATION;
    return;
  }
  add_job(b, batch, b->side, p->starts, p, 0, p->n);
}

static void next_or_fail(Build *b, DocumentsResult r) {
  if (r != DOCUMENTS_ERROR) return;
  int code;
  const char *why = documents_error(b->documents, &code);
  b->keep = code == EXIT_MACHINE;
  fail(code, "%s", why);
}

// Documents and their bytes; counting stops where it is known that there are `enough`.
static int64_t count_documents(Build *b, int64_t enough, int64_t *bytes) {
  *bytes = documents_bytes(b->documents);
  if (b->split == SPLIT_NONE) return 1;
  if (b->split == SPLIT_FILE) return (int64_t)documents_files(b->documents);
  int64_t count = 0;
  Piece p;
  DocumentsResult r = DOCUMENTS_PIECE;
  *bytes = 0;
  documents_start(b->documents, b->split, b->o->jsonl, b->cut, PIECE_BYTES);
  while (count < enough && (r = documents_next(b->documents, &p)) == DOCUMENTS_PIECE) {
    count += p.starts;
    *bytes += (int64_t)p.n;
  }
  next_or_fail(b, r);
  if (count == 0) fail(EXIT_REQUEST, "the texts hold 0 documents, at least 1 is needed (see --documents and --jsonl)");
  return count;
}

static void plan_split(Build *b) {
  int64_t bytes, count = count_documents(b, HASHED_FROM, &bytes);
  double fraction = b->o->val_fraction;
  b->limit = INT64_MAX;
  b->by_hash = fraction > 0 && count >= HASHED_FROM;
  b->whole = (b->split == SPLIT_BLANK_LINE || b->split == SPLIT_JSONL) && count > 1;
  if (fraction > 0 && !b->by_hash) b->limit = (int64_t)((double)bytes * (1 - fraction));
}

// ---- the tokenizer ----

// The distinct characters of all texts; with an end-of-text token if there are several documents.
static Tokenizer *char_tokenizer(Build *b) {
  int64_t ignored, several = count_documents(b, 2, &ignored) > 1;
  bool *seen = xcalloc(0x110000, sizeof *seen);
  Piece p;
  DocumentsResult r;
  documents_start(b->documents, b->split, b->o->jsonl, CUT_CHARACTER, PIECE_BYTES);
  while ((r = documents_next(b->documents, &p)) == DOCUMENTS_PIECE)
    for (size_t i = 0; i < p.n;) {
      uint32_t code;
      int length = utf8_decode(p.text + i, p.n - i, &code);
      if (!length)
        fail(EXIT_REQUEST, "%s: %s %lld: byte 0x%02x is no UTF-8, and --tokenizer char takes characters; take byte or gpt2", p.name,
             b->split == SPLIT_JSONL ? "line" : "byte", (long long)(b->split == SPLIT_JSONL ? p.at : p.at + (int64_t)i),
             (uint8_t)p.text[i]);
      seen[code] = true;
      i += (size_t)length;
    }
  next_or_fail(b, r);
  Buffer all = {0};
  for (uint32_t code = 0; code < 0x110000; code++) {
    char utf8[4];
    if (seen[code]) buffer_append(&all, utf8, (size_t)utf8_encode(code, utf8));
  }
  Tokenizer *t = tokenizer_char_from_text("the texts", all.data, all.len, several);
  buffer_free(&all);
  free(seen);
  return t;
}

static void open_tokenizer(Build *b) {
  const char *spec = b->o->use_tokenizer;
  int64_t ignored;
  if (!strcmp(spec, "char")) b->tokenizer = char_tokenizer(b);
  else if (!strcmp(spec, "byte")) b->tokenizer = tokenizer_byte(count_documents(b, 2, &ignored) > 1);
  else b->tokenizer = tokenizer_open(spec);
  bool any = tokenizer_kind(b->tokenizer) != TOKENIZER_BPE;
  b->cut = any ? CUT_CHARACTER : tokenizer_pattern(b->tokenizer) == PATTERN_NONE ? CUT_NEVER : CUT_WORD;
  b->eot = tokenizer_eot(b->tokenizer);
  tokenizer_json(b->tokenizer, &b->tokenizer_json);
  sha256_of(b->tokenizer_json.data, b->tokenizer_json.len, b->tokenizer_hash);
}

// ---- the folder ----

static void json_member(Buffer *j, const char *name, const char *text) {
  buffer_printf(j, ", \"%s\": ", name);
  if (text) json_write_string(j, text, strlen(text)); else buffer_printf(j, "null");
}

// What decides the shards' bytes. The texts count by name and size.
static void write_request(const Build *b, Buffer *j) {
  static const char *const splits[] = {"file", "blank-line", "none", "jsonl"};
  buffer_printf(j, "\"shard_tokens\": %lld, \"val_fraction\": ", (long long)b->o->shard_tokens);
  json_write_number(j, b->o->val_fraction);
  json_member(j, "tokenizer", b->tokenizer_hash);
  json_member(j, "documents", splits[b->split]);
  json_member(j, "field", b->o->jsonl);
  buffer_printf(j, ", \"texts\": [");
  for (size_t i = 0; i < documents_files(b->documents); i++) {
    int64_t bytes;
    const char *name = documents_name(b->documents, i, &bytes);
    buffer_printf(j, "%s[", i ? ", " : "");
    json_write_string(j, name, strlen(name));
    buffer_printf(j, ", %lld]", (long long)bytes);
  }
  buffer_printf(j, "]");
}

static void write_build_json(const Build *b, bool finished) {
  Buffer request = {0}, j = {0};
  char hash[65], *path = format("%s/build.json", b->dir);
  write_request(b, &request);
  sha256_of(request.data, request.len, hash);
  buffer_printf(&j, "{\"finished\": %s, \"request_hash\": \"%s\", %s", finished ? "true" : "false", hash, request.data);
  for (int s = 0; finished && s < SIDES; s++) {
    const Writer *w = &b->writers[s];
    buffer_printf(&j, ", \"%s\": {\"shards\": %lld, \"tokens\": %lld, \"documents\": %lld}", side_names[s], (long long)w->shards,
                  (long long)w->tokens, (long long)w->documents);
  }
  for (int s = 0; !finished && s < SIDES; s++) {
    const Progress *p = b->writers[s].dir ? &b->writers[s].last : &b->progress[s];
    buffer_printf(&j, ", \"%s\": {\"shards\": %lld, \"done\": %lld, \"jobs\": %lld, \"tokens\": %lld, \"documents\": %lld, \"text_crc\": %lld}",
                  side_names[s], (long long)p->shards, (long long)p->done, (long long)p->jobs, (long long)p->tokens,
                  (long long)p->documents, (long long)p->text_crc);
  }
  buffer_printf(&j, "}\n");
  replace_file(path, j.data, j.len);
  buffer_free(&request);
  buffer_free(&j);
  free(path);
}

// Tokens of a shard that is there, with its index, and of this request; 0: it is not.
static int64_t tokens_of_finished(const Build *b, const char *path) {
  Shard s;
  ShardIndex x;
  char *why = NULL;
  if (shard_try_open(path, SHARD_HEADER, &s, &why)) { free(why); return 0; }
  bool indexed = !shard_index_try_open(&s, &x, &why) && x.path;
  int64_t tokens = indexed && !strcmp(s.tokenizer, b->tokenizer_hash) && s.count <= b->o->shard_tokens ? s.count : 0;
  if (indexed) shard_index_close(&x);
  shard_close(&s);
  free(why);
  return tokens;
}

// What an interrupted build says of a split, if its shards are there and hold what it says; else that split is made from its start.
// Returns the number of shards.
static int64_t find_progress(Build *b, Side side, const Json *said) {
  Progress p = {0};
  struct { const char *name; int64_t *value; } const fields[] = {{"shards", &p.shards}, {"done", &p.done}, {"jobs", &p.jobs},
      {"tokens", &p.tokens}, {"documents", &p.documents}, {"text_crc", &p.text_crc}};
  bool whole = true;
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    whole = whole && json_int(said, fields[i].name, 0, (int64_t)1 << 53, fields[i].value);
  int64_t tokens = 0;
  for (int64_t i = 0; whole && i < p.shards; i++) {
    char *path = format("%s/%s_%06lld.bin", b->dir, side_names[side], (long long)i);
    int64_t found = tokens_of_finished(b, path);
    whole = found > 0;
    tokens += found;
    free(path);
  }
  if (!whole || tokens != p.done || p.tokens > p.done) return 0;
  b->progress[side] = p;
  return p.shards;
}

// A folder that is there must be empty, or hold a build of this very request that was interrupted.
static void check_folder(Build *b) {
  Buffer request = {0};
  size_t count, size;
  char hash[65], error[200], *path = format("%s/build.json", b->dir);
  char **names = list_directory(b->dir, &count);
  free_names(names, count);
  if (count > 0 && !file_exists(path))
    fail(EXIT_REQUEST, "%s: holds %zu other files, an empty or new folder is needed; name another --out", b->dir, count);
  if (count > 0) {
    write_request(b, &request);
    sha256_of(request.data, request.len, hash);
    char *text = read_file(path, "build.json", 1 << 30, &size);
    Json *j = json_parse(text, size, error, sizeof error);
    bool same = j && !strcmp(json_string(j, "request_hash", ""), hash);
    if (!j || json_bool(j, "finished", true))
      fail(EXIT_REQUEST, "%s: holds a finished build of %s; name another --out", b->dir, same ? "this very request" : "something else");
    if (!same)
      fail(EXIT_REQUEST, "%s: holds an interrupted build of another request (see its build.json); name another --out", b->dir);
    int64_t shards = 0;
    for (int s = 0; s < SIDES; s++) shards += find_progress(b, (Side)s, json_get(j, side_names[s]));
    printf("%s: an interrupted build, goes on behind %lld finished shards\n", b->dir, (long long)shards);
    json_free(j);
    free(text);
    buffer_free(&request);
  }
  free(path);
}

static void open_folder(Build *b) {
  char *path = format("%s/tokenizer.json", b->dir);
  if (file_exists(b->dir) && !is_directory(b->dir)) fail(EXIT_REQUEST, "%s: is a file, --out needs a folder", b->dir);
  if (is_directory(b->dir)) check_folder(b);
  else { make_directory(b->dir); b->made_dir = true; }
  at_fail(clean_up, b);
  b->keep = b->progress[TRAIN].shards || b->progress[VALIDATION].shards;
  write_build_json(b, false);
  replace_file(path, b->tokenizer_json.data, b->tokenizer_json.len);
  b->keep = false;
  buffer_free(&b->tokenizer_json);
  free(path);
}

// ---- the command ----

static void open_writers(Build *b) {
  int32_t vocab = tokenizer_vocab_size(b->tokenizer);
  Shard header = {.width = vocab <= 65536 ? 2 : 4, .vocab = vocab, .eot = b->eot};
  memcpy(header.tokenizer, b->tokenizer_hash, sizeof header.tokenizer);
  for (int s = 0; s < SIDES; s++) {
    const Progress *p = &b->progress[s];
    b->writers[s] = (Writer){.dir = b->dir, .name = side_names[s], .shard_tokens = b->o->shard_tokens,
                             .ids = {.fd = -1, .room = xmalloc(ROOM_BYTES, 1)}, .index = {.fd = -1, .room = xmalloc(ROOM_BYTES, 1)},
                             .header = header, .found = *p, .last = *p, .shards = p->shards,
                             .tokens = p->tokens, .documents = p->documents};
  }
}

// A build that goes on must meet the text that is in its shards: looked at before anything is written.
static void check_text(Build *b) {
  const Writer *w = b->writers;
  Batch *batch = &b->batches[0];
  int64_t jobs = 0, last = MAX(w[TRAIN].found.jobs, w[VALIDATION].found.jobs);
  uint32_t crc[SIDES] = {0};
  Piece p;
  DocumentsResult r = DOCUMENTS_END;
  documents_start(b->documents, b->split, b->o->jsonl, b->cut, PIECE_BYTES);
  while (jobs <= last && (r = documents_next(b->documents, &p)) == DOCUMENTS_PIECE) {
    add_piece(b, batch, &p);
    for (size_t i = 0; i < batch->count; i++, jobs++) {
      const Job *j = &batch->jobs[i];
      if (jobs <= w[j->side].found.jobs) crc[j->side] = add_text(crc[j->side], crc32c(0, batch->text.data + j->begin, j->n));
    }
    batch->text.len = batch->count = 0;
  }
  next_or_fail(b, r);
  for (int s = 0; s < SIDES; s++) {
    if (!w[s].found.shards || crc[s] == (uint32_t)w[s].found.text_crc) continue;
    b->keep = true;
    fail(EXIT_REQUEST, "%s: the text has changed since this build was interrupted (checksum %08x of what is in the %s shards, now %08x); "
         "name another --out", b->dir, (uint32_t)w[s].found.text_crc, side_names[s], crc[s]);
  }
  b->seen = b->jobs_added = 0;
  b->side = TRAIN;
}

// `bytes` of text, or a little more. An empty batch is left where all has been read.
static void read_batch(Build *b, Batch *batch, size_t bytes) {
  Piece p;
  while (!b->read_all && batch->text.len < bytes) {
    DocumentsResult r = documents_next(b->documents, &p);
    next_or_fail(b, r);
    if (r == DOCUMENTS_PIECE) add_piece(b, batch, &p);
    else b->read_all = true;
  }
  batch->read = documents_read(b->documents);
}

// The thread that called, which is the one that may fail, writes and reads the next `bytes` before it helps.
static void encode_batch(Build *b, Batch *batch, Batch *other, size_t bytes) {
  size_t next = 0;
  #pragma omp parallel for schedule(static, 1) num_threads(b->threads)
  for (int w = 0; w < b->threads; w++) {
    if (w == 0) write_batch(b, other), read_batch(b, other, bytes);
    for (size_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < batch->count;) encode_job(b, batch, &batch->jobs[i], &b->ids[w]);
  }
}

static void stream(Build *b) {
  if (b->progress[TRAIN].shards || b->progress[VALIDATION].shards) check_text(b);
  documents_start(b->documents, b->split, b->o->jsonl, b->cut, PIECE_BYTES);
  Batch *batch = &b->batches[0], *other = &b->batches[1];
  // The first batch is small: while it is read all other threads wait. Each next one is four times as large, for reading is faster than encoding.
  size_t bytes = (size_t)b->threads * PIECE_BYTES, most = (size_t)b->threads * BATCH_BYTES;
  for (read_batch(b, batch, bytes); batch->count > 0;) {
    bytes = MIN(4 * bytes, most);
    encode_batch(b, batch, other, bytes);
    Batch *encoded = batch;
    batch = other, other = encoded;
  }
  write_batch(b, other);
  if (b->writers[TRAIN].tokens < 1)
    fail(EXIT_REQUEST, "the texts are too short: 0 tokens are left for training; take more text or a smaller --val-fraction");
  for (int s = 0; s < SIDES; s++) writer_end(b, &b->writers[s]);
  if (b->o->val_fraction > 0 && !b->writers[VALIDATION].tokens)
    warn("0 documents are for validation: --val-fraction %g is too small for this text", b->o->val_fraction);
}

static void print_result(const Build *b) {
  double seconds = seconds_now() - b->start, bytes = (double)(b->split == SPLIT_JSONL ? b->seen : documents_bytes(b->documents)), mb = 1e-6 * bytes;
  for (int s = 0; s < SIDES; s++) {
    const Writer *w = &b->writers[s];
    if (w->tokens)
      printf("%-5s  %lld tokens, %lld documents, in %lld shards of %d-byte ids\n", side_names[s], (long long)w->tokens,
             (long long)w->documents, (long long)w->shards, w->header.width);
  }
  for (int s = 0; s < SIDES; s++)
    if (b->writers[s].tokens == 1 && b->o->val_fraction > 0)
      warn("%s_*.bin: 1 token, at least 2 are needed, one to predict the other from, so gpt train will not take it; build again with a %s --val-fraction, or with 0", side_names[s],
           s == TRAIN ? "smaller" : "larger");
  printf("%.3f MB of text, %.2f bytes a token, %.1f s, %.1f MB/s, %d threads\n", mb,
         bytes / (double)(b->writers[TRAIN].tokens + b->writers[VALIDATION].tokens), seconds, mb / seconds, b->threads);
  if (strpbrk(b->dir, "*?[\\")) printf("train on them: gpt train --train-data '%s'", b->dir);   // in a pattern these would mean something
  else {
    printf("train on them: gpt train --train-data '%s/train_*.bin'", b->dir);
    if (b->writers[VALIDATION].tokens) printf(" --val-data '%s/val_*.bin'", b->dir);
  }
  printf("\n");
}

int data_build(const Options *o) {
  if (!o->arg_count) fail(EXIT_REQUEST, "gpt data build needs a TEXT: a file, a directory or - (0 were named)");
  if (!o->use_tokenizer) fail(EXIT_REQUEST, "--tokenizer is missing: gpt2, byte, char, a tokenizer.json, a model directory or a run");
  if (!o->file_out) fail(EXIT_REQUEST, "--out is missing: the folder to write the shards into");
  if (o->jsonl && o->given[FLAG_documents])
    fail(EXIT_REQUEST, "--jsonl and --documents are both given: with --jsonl a document is a line; take one");
  Build b = {.o = o, .dir = xstrdup(o->file_out), .start = seconds_now()};
  b.split = o->jsonl ? SPLIT_JSONL : (DocumentSplit)o->documents;
  char *parent = parent_folder(b.dir);
  if (!is_directory(parent)) fail(EXIT_REQUEST, "%s: the folder %s is missing; make it first", b.dir, parent);
  b.last_line = b.start;
  b.threads = text_threads(o);
  machine_require_threads(b.threads);
  b.ids = xcalloc((size_t)b.threads, sizeof *b.ids);
  b.documents = documents_open(o->args, o->arg_count, parent);
  open_tokenizer(&b);
  plan_split(&b);
  open_folder(&b);
  open_writers(&b);
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  stream(&b);
  b.keep = true;
  write_build_json(&b, true);
  at_fail_cancel(clean_up, &b);
  print_result(&b);
  for (int w = 0; w < b.threads; w++) token_buffer_free(&b.ids[w]);
  documents_close(b.documents);
  tokenizer_free(b.tokenizer);
  for (int i = 0; i < 2; i++) buffer_free(&b.batches[i].text), free(b.batches[i].jobs);
  free(b.ids);
  free(b.dir);
  free(parent);
  return 0;
}
