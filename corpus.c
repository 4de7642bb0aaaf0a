// corpus.c: owns the way from texts, shards or the embedded stories to two splits of tokens. See corpus.h.
//
// A text is a list of documents (files, or what --separator leaves). Its tail is kept for validation. Where the vocabulary
// has an end-of-text token, one stands before each document and one after the last.
#include "corpus.h"
#include "machine.h"      // machine_memory_available
#include "stories.h"      // the embedded text
#include "utf8.h"         // utf8_decode
#include <stdlib.h>       // free
#include <string.h>       // memmem

// ---- reading files ----

TextFile *corpus_read_files(const char *const *names, size_t count, size_t *files_count) {
  size_t n;
  bool empty = true;
  char **paths = list_texts(names, count, &n);
  TextFile *files = xcalloc(n, sizeof *files);
  for (size_t i = 0; i < n; i++) {
    TextFile *f = &files[i];
    f->name = paths[i];
    f->text = read_file(strcmp(f->name, "-") ? f->name : STANDARD_INPUT, "text", machine_memory_available(NULL) / 2, &f->n);   // its tokens need as much
    empty = empty && f->n == 0;
    if (shard_begins(f->text, f->n)) fail(EXIT_REQUEST, "%s: is a shard of token ids, not a text; to train on shards: --train-data; to score them: gpt eval MODEL SHARD..., as files", f->name);
  }
  free(paths);     // the names live on in files
  if (empty) fail(EXIT_REQUEST, "%s: the text is empty: 0 bytes in %zu file%s; name one with text in it", names[0], n, n > 1 ? "s" : "");
  *files_count = n;
  return files;
}

void corpus_free_files(TextFile *files, size_t count) {
  for (size_t i = 0; i < count; i++) { free(files[i].name); free(files[i].text); }
  free(files);
}

char *corpus_read_texts(const char *const *names, size_t count, size_t *n) {
  size_t files_count;
  TextFile *files = corpus_read_files(names, count, &files_count);
  Buffer all = {0};
  for (size_t i = 0; i < files_count; i++) buffer_append(&all, files[i].text, files[i].n);
  corpus_free_files(files, files_count);
  *n = all.len;
  return all.data;
}

double *corpus_token_bytes(const Tokenizer *t, int32_t vocab) {
  double *bytes = xcalloc((size_t)vocab, sizeof *bytes);
  for (int32_t id = 0; id < vocab; id++) {
    size_t length;
    if (tokenizer_decode_one(t, id, &length) && !tokenizer_is_special(t, id)) bytes[id] = (double)length;
  }
  return bytes;
}

// ---- documents ----

typedef struct { const char *name, *text; size_t n; } Document;
typedef struct {
  TextFile *files;
  size_t file_count;
  Buffer stories;
  Document *documents;
  size_t count, capacity;
  size_t bytes;              // of all documents
  size_t train_count;        // documents before the split ...
  size_t train_tail;         // ... and bytes of documents[train_count] that still belong to training
} Corpus;

static void add_document(Corpus *c, const char *name, const char *text, size_t n) {
  if (n == 0) return;
  if (c->count == c->capacity) { c->capacity = MAX((size_t)64, 2 * c->capacity); c->documents = xrealloc(c->documents, c->capacity, sizeof *c->documents); }
  c->documents[c->count++] = (Document){name, text, n};
  c->bytes += n;
}

double corpus_story(Buffer *out, bool validation, uint64_t index) {
  return stories_generate(out, validation ? STORIES_SEED_VALIDATION : STORIES_SEED_TRAIN, index);
}

static void read_stories(Corpus *c) {
  enum { ALL = STORIES_TRAIN + STORIES_VALIDATION };
  size_t *ends = xmalloc(ALL, sizeof *ends), begin = 0;
  for (uint64_t i = 0; i < ALL; i++) {
    corpus_story(&c->stories, i >= STORIES_TRAIN, i >= STORIES_TRAIN ? i - STORIES_TRAIN : i);
    ends[i] = c->stories.len;
  }
  for (size_t i = 0; i < ALL; begin = ends[i++]) add_document(c, "stories", c->stories.data + begin, ends[i] - begin);
  c->train_count = STORIES_TRAIN;
  free(ends);
}

static void split_file(Corpus *c, const TextFile *f, const char *separator) {
  size_t length = separator ? strlen(separator) : 0;
  for (const char *p = f->text, *end = f->text + f->n; p < end;) {
    const char *at = length ? memmem(p, (size_t)(end - p), separator, length) : NULL;
    add_document(c, f->name, p, (size_t)((at ? at : end) - p));
    p = at ? at + length : end;
  }
}

// A cut inside a character would make two bytes that are no text.
static size_t character_start(const char *text, size_t at) {
  while (at > 0 && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
  return at;
}

static size_t train_bytes(const Corpus *c, double fraction) { return (size_t)((double)c->bytes * (1 - fraction)); }

// The last `fraction` of the bytes validate. Separated documents stay whole; a plain text is cut at a character.
static void split_tail(Corpus *c, double fraction, bool whole) {
  size_t train = train_bytes(c, fraction), seen = 0;
  c->train_count = c->count;
  if (fraction <= 0) return;
  for (size_t i = 0; i < c->count; seen += c->documents[i++].n) {
    if (seen + c->documents[i].n <= train) continue;
    c->train_count = i;
    c->train_tail = whole ? 0 : character_start(c->documents[i].text, train - seen);
    return;
  }
}

// Exit 2 where whole documents leave none to train on: only the separator can be wrong then, or the fraction, not the length of the text.
static void check_separated(const Corpus *c, const Options *o) {
  if (!o->separator || c->train_count > 0) return;
  size_t read = 0;
  Buffer separator = {0};
  for (size_t i = 0; i < c->file_count; i++) read += c->files[i].n;
  json_write_string(&separator, o->separator, strlen(o->separator));
  if (c->count == 0) fail(EXIT_REQUEST, "--separator %s: nothing else stands in the text: 0 documents are found, at least 1 is needed", separator.data);
  if (c->count == 1)
    fail(EXIT_REQUEST, "--separator %s %s: 1 document is found, at least 2 are needed, since documents stay whole and the last validate; name what stands between them, or use --val-fraction 0",
         separator.data, read == c->bytes ? "occurs nowhere in the text" : "stands between no two documents");
  const size_t first = c->documents[0].n;
  int thousandths = 1000;
  while (thousandths > 0 && train_bytes(c, thousandths / 1000.0) < first) thousandths--;
  fail(EXIT_REQUEST, "--separator %s: the first of %zu documents has %zu of their %zu bytes, and documents stay whole: with --val-fraction %g all of them validate; use at most --val-fraction %g",
       separator.data, c->count, first, c->bytes, o->val_fraction, thousandths / 1000.0);
}

// The names in --text, which settings files have: between commas, a backslash before a comma or a backslash that is part of one. Cuts `list`.
static const char **split_names(char *list, size_t *count) {
  const char **names = NULL;
  *count = 0;
  for (char *from = list, *end; from; from = end) {
    char *to = from, *name = from;
    for (; *from && *from != ','; from++) {
      if (*from == '\\' && (from[1] == ',' || from[1] == '\\')) from++;
      *to++ = *from;
    }
    end = *from ? from + 1 : NULL;
    *to = 0;
    if (!*name) continue;
    names = xrealloc(names, *count + 1, sizeof *names);
    names[(*count)++] = name;
  }
  return names;
}

static void read_corpus(Corpus *c, Run *r) {
  const Options *o = r->o;
  if (r->stories) { read_stories(c); return; }
  size_t count = o->arg_count;
  char *list = count ? NULL : xstrdup(o->text);
  const char **parts = count ? NULL : split_names(list, &count);
  if (!count) fail(EXIT_REQUEST, "--text \"%s\": 0 names between its commas, at least 1 is needed; name the texts, or leave the flag out", o->text);
  for (size_t i = 0; i < count && r->resumed; i++)
    if (strcmp(parts[i], "-") && !file_exists(parts[i])) fail(EXIT_REQUEST, "%s: the text of run %s is not here; go on from the folder that the run was started in, where it has this name", parts[i], r->dir);
  c->files = corpus_read_files(count && !parts ? o->args : parts, count, &c->file_count);
  free(parts);
  free(list);
  for (size_t i = 0; i < c->file_count; i++) split_file(c, &c->files[i], o->separator);
  split_tail(c, o->val_fraction, o->separator != NULL);
  check_separated(c, o);
}

// ---- tokenizer ----

int64_t corpus_vocabulary(size_t bytes) {
  int64_t vocab = 512;
  while ((size_t)vocab * 2 <= bytes / 1024) vocab *= 2;
  return MIN(vocab, 8192);
}

static size_t train_documents(const Corpus *c) { return c->train_count + (c->train_tail > 0); }
static size_t train_length(const Corpus *c, size_t i) { return i < c->train_count ? c->documents[i].n : c->train_tail; }

static Tokenizer *train_bpe(const Corpus *c, int64_t vocab) {
  TokenizerTrainer *trainer = tokenizer_trainer(PATTERN_GPT2);
  const char *special = END_OF_TEXT;
  for (size_t i = 0; i < train_documents(c); i++) tokenizer_trainer_add(trainer, c->documents[i].text, train_length(c, i));
  return tokenizer_trainer_finish(trainer, vocab, &special, 1);
}

static Tokenizer *char_tokenizer(const Corpus *c, bool with_eot) {
  Buffer all = {0};
  for (size_t i = 0; i < c->count; i++) buffer_append(&all, c->documents[i].text, c->documents[i].n);
  Tokenizer *t = tokenizer_char_from_text(c->documents[0].name, all.data, all.len, with_eot);
  buffer_free(&all);
  return t;
}

static bool has_tokenizer_file(const Checkpoint *c) {
  char *path = c ? format("%s/tokenizer.json", c->dir) : NULL;
  bool there = path && file_exists(path);
  free(path);
  return there;
}

// What --tokenizer says; "auto" takes the model's own (--init), or trains byte-level BPE on the training part.
static Tokenizer *choose_tokenizer(const Run *r, const Corpus *c) {
  const char *spec = r->o->tokenizer;
  bool several = c->count > 1;          // documents must be told apart
  double number;
  int64_t vocab;
  if (!strcmp(spec, "auto")) {
    if (has_tokenizer_file(r->init)) return tokenizer_open(r->init->dir);
    return train_bpe(c, corpus_vocabulary(c->bytes));
  }
  if (!strcmp(spec, "char")) return char_tokenizer(c, several);
  if (!strcmp(spec, "byte")) return tokenizer_byte(several);
  if (!strncmp(spec, "bpe:", 4)) {
    if (!parse_number(spec + 4, true, &number, &vocab) || vocab < 257 || vocab > 1000000)
      fail(EXIT_REQUEST, "--tokenizer %s: bpe:N needs a whole number N from 257 to 1000000", spec);
    Tokenizer *t = train_bpe(c, vocab);
    if (r->o->given[FLAG_tokenizer] && tokenizer_vocab_size(t) < vocab) warn("--tokenizer %s: this text gives %d entries, no pair of tokens is left that comes up twice", spec, tokenizer_vocab_size(t));
    return t;
  }
  return tokenizer_open(spec);
}

// ---- tokens ----

static void append_document(TokenBuffer *out, const Tokenizer *t, const Document *d, size_t from, size_t to) {
  if (from == 0 && tokenizer_eot(t) >= 0) token_buffer_append(out, tokenizer_eot(t));
  tokenizer_encode_or_fail(t, d->name, d->text + from, to - from, out, SPECIAL_NONE);
}

static Dataloader *loader_of(const Run *r, TokenBuffer *ids) {
  if (ids->count && r->eot >= 0) token_buffer_append(ids, r->eot);
  Dataloader *l = ids->count >= 2 ? dataloader_open_tokens(ids->ids, (int64_t)ids->count, r->vocab, r->eot) : NULL;
  token_buffer_free(ids);
  return l;
}

static void open_text(Run *r) {
  const Options *o = r->o;
  Corpus c = {0};
  TokenBuffer ids = {0};
  read_corpus(&c, r);
  r->text_bytes = (int64_t)c.bytes;
  r->tokenizer = choose_tokenizer(r, &c);
  r->vocab = tokenizer_vocab_size(r->tokenizer);
  r->eot = tokenizer_eot(r->tokenizer);
  for (size_t i = 0; i < train_documents(&c); i++) append_document(&ids, r->tokenizer, &c.documents[i], 0, train_length(&c, i));
  const size_t tokens = ids.count;
  r->train = loader_of(r, &ids);   // and empties ids
  if (!r->train) fail(EXIT_REQUEST, "the text is too short: it leaves %zu tokens for training, at least 2 are needed; take a longer text or a smaller --val-fraction", tokens);
  for (size_t i = c.train_count; i < c.count; i++) append_document(&ids, r->tokenizer, &c.documents[i], i == c.train_count ? c.train_tail : 0, c.documents[i].n);
  const size_t left = ids.count;
  r->val = loader_of(r, &ids);
  if (!r->val && o->val_fraction > 0)
    warn("--val-fraction %g leaves %zu token%s of this text for validation, at least 2 are needed: %snothing validates this run; take a larger one, or 0", o->val_fraction, left,
         left == 1 ? "" : "s", left ? "it is left out, and " : "");
  corpus_free_files(c.files, c.file_count);
  buffer_free(&c.stories);
  free(c.documents);
}

static bool is_known(const char *hash) { return *hash && strspn(hash, "0") != 64; }   // zeros: whoever wrote the shard did not know

void corpus_check_tokenizer(const Dataloader *shards, const Tokenizer *t, const char *name) {
  char hash[65];
  const char *wanted = dataloader_tokenizer_hash(shards);
  if (!t || !is_known(wanted)) return;
  tokenizer_sha256(t, hash);
  if (strcmp(hash, wanted)) fail(EXIT_REQUEST, "%s: made with tokenizer %.12s, this one is %.12s; name the tokenizer.json that they were made with", name, wanted, hash);
}

// The tokenizer.json beside the shards, unless --tokenizer names another; it must be the one they were made with.
static void tokenizer_of_shards(Run *r) {
  const char *pattern = r->o->train_data, *slash = strrchr(pattern, '/');
  char *beside = is_directory(pattern) ? format("%s/tokenizer.json", pattern) : slash ? format("%.*s/tokenizer.json", (int)(slash - pattern), pattern) : xstrdup("tokenizer.json");
  if (strcmp(r->o->tokenizer, "auto")) r->tokenizer = tokenizer_open(r->o->tokenizer);
  else if (file_exists(beside)) r->tokenizer = tokenizer_open(beside);
  free(beside);
  corpus_check_tokenizer(r->train, r->tokenizer, pattern);
}

static Dataloader *open_side(const Run *r, const char *pattern, const char *side, int64_t vocab) {
  size_t count;
  char **paths = shard_glob_side(pattern, side, &count);
  Dataloader *l = dataloader_open_paths(paths, count, (ShardKind)r->o->raw, vocab);
  free_names(paths, count);
  return l;
}

// A folder that has both sides, as gpt data build makes it, is enough for both.
static void open_validation_shards(Run *r) {
  const Options *o = r->o;
  const bool both = shard_folder_has(o->train_data, "train") && shard_folder_has(o->train_data, "val");
  const char *pattern = o->val_data ? o->val_data : both ? o->train_data : NULL;
  if (!pattern) return;
  r->val = open_side(r, pattern, "val", r->vocab);
  if (dataloader_tokens(r->val) < 2)
    fail(EXIT_REQUEST, "%s: 1 token to validate on, at least 2 are needed: one to predict the other from; name other shards with --val-data, or only those to train on, DIR/train_*.bin", pattern);
  const char *a = dataloader_tokenizer_hash(r->train), *b = dataloader_tokenizer_hash(r->val);
  if (is_known(a) && is_known(b) && strcmp(a, b)) fail(EXIT_REQUEST, "%s: made with tokenizer %.12s, the shards to train on with %.12s; they do not belong together", pattern, b, a);
}

static void open_shards(Run *r) {
  const Options *o = r->o;
  if (o->arg_count || o->text) fail(EXIT_REQUEST, "--train-data and TEXT %s are both given: take one", o->arg_count ? o->args[0] : o->text);
  int64_t vocab = 0;
  if (strcmp(o->tokenizer, "auto")) {
    Tokenizer *t = tokenizer_open(o->tokenizer);
    vocab = tokenizer_vocab_size(t);
    tokenizer_free(t);
  }
  r->train = open_side(r, o->train_data, "train", vocab);
  r->vocab = (int32_t)dataloader_vocab(r->train);
  r->eot = dataloader_eot(r->train);
  open_validation_shards(r);
  tokenizer_of_shards(r);
  if (r->tokenizer && r->eot < 0) r->eot = tokenizer_eot(r->tokenizer);
}

// A flag that says something of texts where there are none, or of shards. --resume takes the stored settings as they are, of earlier versions too.
static void check_kind_of_data(const Run *r) {
  static const int of_texts[] = {FLAG_separator, FLAG_val_fraction};
  const Options *o = r->o;
  if (o->resume) return;
  for (size_t i = 0; i < ARRAY_LEN(of_texts); i++)
    if ((o->train_data || r->stories) && options_changed(o, of_texts[i]))
      fail(EXIT_REQUEST, "--%s is for a TEXT, and %s; leave it out, or name a TEXT", flag_name(of_texts[i]),
           o->train_data ? "the documents and the validation of shards were chosen when they were built" : "the embedded stories have their own documents and validation");
  if (!o->train_data && o->raw != RAW_NO) fail(EXIT_REQUEST, "--raw is for shards, and none are named; name them with --train-data, or leave it out");
}

void corpus_open(Run *r) {
  const Options *o = r->o;
  r->stories = !o->arg_count && !o->text && !o->train_data;
  check_kind_of_data(r);
  if (o->separator && !*o->separator) fail(EXIT_REQUEST, "--separator is empty; give the text that stands between documents, or leave the flag out");
  if (o->val_data && !o->train_data) fail(EXIT_REQUEST, "--val-data needs --train-data beside it (a text brings its own tail for validation)");
  if (o->train_data) open_shards(r); else open_text(r);
  if (r->tokenizer) r->token_bytes = corpus_token_bytes(r->tokenizer, r->vocab);
  Sha256 sha;
  uint8_t digest[32];
  sha256_init(&sha);
  dataloader_hash(r->train, &sha);
  if (r->val) dataloader_hash(r->val, &sha);
  sha256_final(&sha, digest);
  sha256_hex(digest, r->data_hash);
}

// Whole documents a row where they were separated and the longest fits; else a stream.
void corpus_arrange(Run *r) {
  int64_t T = r->o->context;
  if (r->stories || r->o->separator) {
    int64_t longest = dataloader_longest_document(r->train);
    if (r->val) longest = MAX(longest, dataloader_longest_document(r->val));
    r->documents = longest > 0 && longest <= T;
  }
  DataOrder order = r->documents ? ORDER_DOCUMENTS : ORDER_STREAM;
  dataloader_arrange(r->train, T, order, (uint64_t)r->o->seed);
  if (r->val) dataloader_arrange(r->val, T, order, 0);
  const int64_t targets = r->val ? dataloader_tokens(r->val) - 1 : T;
  if (targets < T && !r->documents)
    warn("%lld tokens to validate on are less than a window of %lld: all of them are used, in one window that they do not fill, and such a loss says little; take more text, or a larger --val-fraction",
         (long long)targets + 1, (long long)T);
}

void corpus_print(const Run *r) {
  long long train = (long long)dataloader_tokens(r->train), val = r->val ? (long long)dataloader_tokens(r->val) : 0;
  if (r->stories) printf("text      the embedded stories: %d to train on, %d unseen ones to validate, %.1f MB\n", STORIES_TRAIN, STORIES_VALIDATION, 1e-6 * (double)r->text_bytes);
  else if (r->o->train_data) printf("text      shards %s\n", r->o->train_data);
  else printf("text      %.3f MB, the last %.3g for validation\n", 1e-6 * (double)r->text_bytes, r->o->val_fraction);
  if (r->tokenizer) printf("tokenizer %s, vocabulary %d", tokenizer_kind_name(r->tokenizer), r->vocab);
  else printf("tokenizer not known, vocabulary %d", r->vocab);
  if (r->text_bytes) printf(", %.2f bytes a token", (double)r->text_bytes / (double)(train + val));
  printf("\ntokens    %lld to train on, %lld to validate; a row is %s\n", train, val, r->documents ? "a whole document" : "a piece of the text");
}

void corpus_close(Run *r) {
  dataloader_close(r->train);
  dataloader_close(r->val);
  tokenizer_free(r->tokenizer);
}
