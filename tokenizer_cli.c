// tokenizer_cli.c: owns `gpt tokenizer train|encode|decode|info`: flags in, payload on stdout or in --out.
// Tests: tests/test_tokenizer.c
#include "tokenizer_cli.h"
#include "documents.h"  // documents_last_cut
#include "json.h"       // json_write_string
#include "machine.h"    // machine_require_threads
#include "tokenizer.h"  // everything that is done here
#include "utf8.h"       // utf8_decode
#include <errno.h>      // errno
#include <fcntl.h>      // open
#include <signal.h>     // sigaction
#include <stdlib.h>     // free
#include <string.h>     // strcmp, memchr
#include <unistd.h>     // read, unlink

// ---- texts ----

typedef void PathFn(void *context, const char *path);

// Calls fn for every file named: a file, a directory (its regular files, sorted), or - (also when nothing is named).
static void for_each_path(const Options *o, PathFn *fn, void *context) {
  if (o->arg_count == 0) fn(context, "-");
  for (size_t i = 0; i < o->arg_count; i++) {
    if (!is_directory(o->args[i])) {
      fn(context, o->args[i]);
      continue;
    }
    size_t count, used = 0;
    char **names = list_directory(o->args[i], &count);
    for (size_t k = 0; k < count; k++) {
      char *path = format("%s/%s", o->args[i], names[k]);
      if (!is_directory(path)) fn(context, path), used++;
      free(path);
    }
    free_names(names, count);
    if (used == 0) fail(EXIT_REQUEST, "%s: 0 files in this directory, at least 1 is needed", o->args[i]);
  }
}

static const char *device_of(const char *path) { return strcmp(path, "-") ? path : STANDARD_INPUT; }
static const char *name_of(const char *path) { return strcmp(path, "-") ? path : "standard input"; }

// The same with the whole text of each.
typedef void TextFn(void *context, const char *name, const char *text, size_t n);
typedef struct { TextFn *fn; void *context; size_t max_bytes; } WholeTexts;

static void read_one(void *context, const char *path) {
  const WholeTexts *w = context;
  size_t n;
  char *text = read_file(device_of(path), "text", w->max_bytes, &n);
  w->fn(w->context, name_of(path), text, n);
  free(text);
}
static void for_each_text(const Options *o, size_t max_bytes, TextFn *fn, void *context) { for_each_path(o, read_one, &(WholeTexts){fn, context, max_bytes}); }

// ---- output ----

// Writes the payload to --out, or to stdout.
static void write_payload(const Options *o, const void *data, size_t n) {
  if (o->file_out) {
    replace_file(o->file_out, data, n);
    return;
  }
  fflush(stdout);
  if (!write_all(fileno(stdout), data, n)) fail(EXIT_MACHINE, "standard output: cannot write %zu bytes: %s", n, strerror(errno));
}

// Bytes in quotes, so that blanks, line ends and broken characters can be seen and told apart: \n \t \" \\ and \xNN.
static void append_visible(Buffer *b, const char *bytes, size_t n) {
  buffer_append(b, "\"", 1);
  for (size_t at = 0; at < n;) {
    uint32_t code = 0;
    int length = utf8_decode(bytes + at, n - at, &code);
    if (length == 0 || code < 32 || (code >= 0x7f && code < 0xa0)) {
      if (code == '\n') buffer_append(b, "\\n", 2);
      else if (code == '\t') buffer_append(b, "\\t", 2);
      else buffer_printf(b, "\\x%02x", (uint8_t)bytes[at]);
      length = 1;
    } else {
      if (code == '"' || code == '\\') buffer_append(b, "\\", 1);
      buffer_append(b, bytes + at, (size_t)length);
    }
    at += (size_t)length;
  }
  buffer_append(b, "\"", 1);
}

// ---- train ----

// Documents wait until there is work for all threads, and the texts in which they lie with them.
enum { BATCH_BYTES = 8 << 20, BATCH_COUNT = 1 << 15 };
typedef struct { const char *text; size_t n; } Document;
typedef struct {
  const Options *o;
  int threads;
  TokenizerTrainer **trainers;   // (threads) of each thread; NULL until it has counted something, except the first
  Document *waiting;             // (BATCH_COUNT)
  size_t waiting_count, waiting_bytes;
  char **texts;                  // (BATCH_COUNT) read and cut, not freed yet
  size_t text_count, text_bytes;
  Buffer all;
  size_t bytes, documents;       // read; counted
} TrainTexts;

// Thread w takes `turn` documents at a time, for as long as there are any.
static void count_share(TrainTexts *t, int w, size_t *next, size_t turn) {
  for (size_t i; (i = __atomic_fetch_add(next, turn, __ATOMIC_RELAXED)) < t->waiting_count;) {
    if (!t->trainers[w]) t->trainers[w] = tokenizer_trainer((TokenizerPattern)t->o->pattern);
    for (size_t end = MIN(i + turn, t->waiting_count); i < end; i++)
      tokenizer_trainer_add(t->trainers[w], t->waiting[i].text, t->waiting[i].n);
  }
}

static void unite_trainers(TrainTexts *t) {
  for (int w = 1; w < t->threads; w++) {
    if (t->trainers[w]) tokenizer_trainer_take(t->trainers[0], t->trainers[w]);
    t->trainers[w] = NULL;
  }
}

static size_t memory_held(const TrainTexts *t) {
  size_t held = t->all.cap;
  for (int w = 0; w < t->threads; w++) if (t->trainers[w]) held += tokenizer_trainer_memory(t->trainers[w]);
  return held;
}

// Words that several threads have met are held several times. What is refused must not depend on --threads: the trainers are united first.
static void check_memory(TrainTexts *t) {
  const size_t most = (size_t)t->o->max_memory;
  if (memory_held(t) > most) unite_trainers(t);
  const size_t held = memory_held(t);
  if (held > most)
    fail(EXIT_REQUEST,
         "memory: %zu bytes are needed for the words of the first %zu documents, --max-memory allows %lld: raise it or train on less text", held,
         t->documents, (long long)t->o->max_memory);
}

static void count_waiting(TrainTexts *t) {
  // A piece of 2 GiB ends the process, which the calling thread alone should do: it counts a batch that may have one.
  const int threads = t->waiting_bytes > INT32_MAX ? 1 : (int)MAX((size_t)1, MIN((size_t)t->threads, t->waiting_count));
  // About thirty-two turns a thread: few enough that they do not queue for `next`, and short enough that none waits long for the last.
  size_t next = 0, turn = MAX((size_t)1, t->waiting_count / (32 * (size_t)threads));
  #pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int w = 0; w < threads; w++) count_share(t, w, &next, turn);
  t->documents += t->waiting_count;
  for (size_t i = 0; i < t->text_count; i++) free(t->texts[i]);
  t->waiting_count = t->waiting_bytes = t->text_count = t->text_bytes = 0;
  check_memory(t);
}

static void add_document(TrainTexts *t, const char *text, size_t n) {
  if (n == 0) return;
  t->waiting[t->waiting_count++] = (Document){text, n};
  t->waiting_bytes += n;
  if (t->waiting_bytes >= BATCH_BYTES || t->waiting_count == BATCH_COUNT) count_waiting(t);
}

static bool is_blank(const char *line, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r') return false;
  return true;
}

// Documents are runs of lines that are not blank, without the last line's end (LF, or CR LF).
static void add_paragraphs(TrainTexts *t, const char *text, size_t n) {
  size_t start = 0, end = 0;  // of the document so far; end == start: none
  for (size_t at = 0; at < n;) {
    const char *newline = memchr(text + at, '\n', n - at);
    size_t line_end = newline ? (size_t)(newline - text) : n;
    if (is_blank(text + at, line_end - at)) {
      add_document(t, text + start, end - start);
      start = end = line_end + 1;
    } else {
      end = line_end - (line_end > at && text[line_end - 1] == '\r');
    }
    at = line_end + 1;
  }
  if (end > start) add_document(t, text + start, end - start);
}

static void add_text(void *context, const char *path) {
  TrainTexts *t = context;
  size_t n;
  char *text = read_file(device_of(path), "text", (size_t)t->o->max_memory, &n);
  t->bytes += n;
  if (t->o->documents == DOCUMENTS_NONE) {
    buffer_append(&t->all, text, n);
    free(text);
    return;
  }
  if (t->o->documents == DOCUMENTS_BLANK_LINE) add_paragraphs(t, text, n);
  else add_document(t, text, n);
  t->texts[t->text_count++] = text;
  t->text_bytes += n;
  if (t->text_bytes >= BATCH_BYTES || t->text_count == BATCH_COUNT) count_waiting(t);   // a long text is not kept while another is read
}

// The words of all texts, in one trainer; t->bytes and t->documents are set.
static TokenizerTrainer *count_texts(TrainTexts *t) {
  t->trainers = xcalloc((size_t)t->threads, sizeof t->trainers[0]);
  t->trainers[0] = tokenizer_trainer((TokenizerPattern)t->o->pattern);
  t->waiting = xmalloc(BATCH_COUNT, sizeof t->waiting[0]);
  t->texts = xmalloc(BATCH_COUNT, sizeof t->texts[0]);
  for_each_path(t->o, add_text, t);
  add_document(t, t->all.data, t->all.len);
  count_waiting(t);
  unite_trainers(t);
  check_memory(t);
  TokenizerTrainer *all = t->trainers[0];
  buffer_free(&t->all);
  free(t->texts);
  free(t->waiting);
  free(t->trainers);
  return all;
}

static int train(const Options *o) {
  if (o->vocab == AUTO_INT)
    fail(EXIT_REQUEST,
         "--vocab is missing: how many entries the tokenizer shall have (257 or more; 4096 suits a few megabytes of text)");
  if (!o->file_out) fail(EXIT_REQUEST, "--out is missing: the tokenizer.json to write");
  if (o->vocab < 256 + (int64_t)o->list_count)
    fail(EXIT_REQUEST, "--vocab %lld: the 256 bytes and %zu special tokens need at least %zu entries", (long long)o->vocab,
         o->list_count, 256 + o->list_count);
  double start = seconds_now();
  TrainTexts t = {.o = o, .threads = text_threads(o)};
  machine_require_threads(t.threads);
  TokenizerTrainer *trainer = count_texts(&t);
  if (t.bytes == 0) fail(EXIT_REQUEST, "the text has 0 bytes, at least 2 are needed to train a tokenizer");
  Tokenizer *made = tokenizer_trainer_finish(trainer, o->vocab, (const char *const *)o->add_special, o->list_count);
  int32_t size = tokenizer_vocab_size(made);
  if (size < o->vocab && !o->allow_fewer)
    fail(EXIT_REQUEST,
         "the text gives %zu merges, --vocab %lld needs %lld: add text, or ask for --vocab %d, or write what there is with --allow-fewer on",
         tokenizer_merge_count(made), (long long)o->vocab, (long long)o->vocab - 256 - (long long)o->list_count, size);
  Buffer json = {0};
  char hex[65];
  tokenizer_json(made, &json);
  replace_file(o->file_out, json.data, json.len);
  tokenizer_sha256(made, hex);
  printf("%s: %d entries (256 bytes, %zu merges, %zu special) from %zu bytes in %zu documents, pattern %s, %.2f s, sha256 %.16s\n", o->file_out, size,
         tokenizer_merge_count(made), tokenizer_special_count(made), t.bytes, t.documents, tokenizer_pattern_name(tokenizer_pattern(made)),
         seconds_now() - start, hex);
  if (tokenizer_eot(made) < 0)
    printf("it has no end-of-text token; a model of documents wants one: --add-special '%s'\n", END_OF_TEXT);
  buffer_free(&json);
  tokenizer_free(made);
  return 0;
}

// ---- encode ----

typedef struct { const Options *o; const Tokenizer *tokenizer; TokenBuffer ids; } EncodeTexts;

static void encode_text(void *context, const char *name, const char *text, size_t n) {
  EncodeTexts *e = context;
  Tokenizer *own = e->tokenizer ? NULL : tokenizer_char_from_text(name, text, n, false);
  tokenizer_encode_or_fail(own ? own : e->tokenizer, name, text, n, &e->ids, (TokenizerSpecial)e->o->special);
  tokenizer_free(own);
}

// One token a line: id and what it stands for.
static void append_pieces(Buffer *b, const Tokenizer *t, const TokenBuffer *ids) {
  for (size_t i = 0; i < ids->count; i++) {
    size_t n;
    const char *bytes = tokenizer_decode_one(t, ids->ids[i], &n);
    buffer_printf(b, "%7d  ", ids->ids[i]);
    append_visible(b, bytes, n);
    buffer_append(b, "\n", 1);
  }
}

// more: ids stand before these
static void append_ids(Buffer *b, const TokenBuffer *ids, int64_t how, bool more) {
  for (size_t i = 0; i < ids->count; i++) {
    uint8_t raw[4];
    char text[16];
    store_u32le(raw, (uint32_t)ids->ids[i]);
    if (how == FORMAT_TEXT) buffer_append(b, text, (size_t)snprintf(text, sizeof text, more || i ? " %d" : "%d", ids->ids[i]));
    else buffer_append(b, raw, how == FORMAT_U16 ? 2 : 4);
  }
}

static int encode_whole(const Options *o, const Tokenizer *t) {
  EncodeTexts e = {.o = o, .tokenizer = t};
  for_each_text(o, SIZE_MAX / 2, encode_text, &e);
  for (size_t i = 0; i < e.ids.count && o->format == FORMAT_U16; i++)
    if (e.ids.ids[i] > 65535) fail(EXIT_REQUEST, "--format u16: there are ids up to %d and more, 16 bits hold 65535: use --format u32", e.ids.ids[i]);
  Buffer out = {0};
  if (o->show) append_pieces(&out, t, &e.ids);
  else append_ids(&out, &e.ids, o->format, false);
  if (!o->show && o->format == FORMAT_TEXT) buffer_append(&out, "\n", 1);
  write_payload(o, out.data, out.len);
  buffer_free(&out);
  token_buffer_free(&e.ids);
  return 0;
}

// Texts of any length, piece by piece: in memory are a piece, which ends where no token goes over its end, its ids, and what is written of them.
enum { STREAM_PIECE = 1 << 20 };
typedef struct {
  const Options *o;
  const Tokenizer *tokenizer;
  DocumentCut cut;
  int fd;                  // --out's temporary file, or stdout
  char *temporary;
  bool written;            // some ids
  Buffer text, out;
  TokenBuffer ids;
} Stream;

static void remove_temporary(void *stream) {
  const Stream *s = stream;
  if (s->temporary) unlink(s->temporary);
}

// A signal takes away what is half written, and then ends the process as it would have.
static const char *half_written;
static void on_signal(int number) {
  unlink(half_written);
  raise(number);   // SA_RESETHAND: what it does without us
}

static void remove_when_stopped(const char *path) {
  static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
  half_written = xstrdup(path);   // never freed: a signal may come at any time, and a file that has its name by then has another
  for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
    struct sigaction before, action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND};
    if (!sigaction(numbers[i], NULL, &before) && before.sa_handler != SIG_IGN) sigaction(numbers[i], &action, NULL);
  }
}

static void open_stream(Stream *s) {
  fflush(stdout);
  s->fd = fileno(stdout);
  if (!s->o->file_out) return;
  s->fd = replace_begin(s->o->file_out, &s->temporary);
  if (s->fd < 0) fail(EXIT_MACHINE, "%s: cannot be written: %s", s->o->file_out, strerror(errno));
  at_fail(remove_temporary, s);
  if (s->temporary) remove_when_stopped(s->temporary);
}

static void write_stream(Stream *s) {
  if (!write_all(s->fd, s->out.data, s->out.len))
    fail(EXIT_MACHINE, "%s: cannot write %zu bytes: %s", s->o->file_out ? s->o->file_out : "standard output", s->out.len, strerror(errno));
  s->out.len = 0;
}

static void close_stream(Stream *s) {
  if (!s->o->show && s->o->format == FORMAT_TEXT) buffer_append(&s->out, "\n", 1);
  write_stream(s);
  if (s->o->file_out) {
    at_fail_cancel(remove_temporary, s);
    if (!replace_end(s->temporary, s->fd, true)) fail(EXIT_MACHINE, "%s: cannot be written: %s", s->o->file_out, strerror(errno));
  }
  buffer_free(&s->text);
  buffer_free(&s->out);
  token_buffer_free(&s->ids);
}

static void encode_piece(Stream *s, const char *name, size_t n) {
  s->ids.count = 0;
  tokenizer_encode_or_fail(s->tokenizer, name, s->text.data, n, &s->ids, SPECIAL_NONE);
  if (s->o->show) append_pieces(&s->out, s->tokenizer, &s->ids);
  else append_ids(&s->out, &s->ids, s->o->format, s->written);
  s->written |= s->ids.count > 0;
  write_stream(s);
  s->text.len -= n;
  memmove(s->text.data, s->text.data + n, s->text.len);
}

static void encode_stream(void *context, const char *path) {
  Stream *s = context;
  const int fd = open_input(device_of(path));
  size_t want = STREAM_PIECE;      // where no cut is found in so much, twice as much is read
  if (fd < 0) fail(EXIT_REQUEST, "%s: cannot open: %s", name_of(path), strerror(errno));
  for (;;) {
    buffer_reserve(&s->text, STREAM_PIECE);
    const ssize_t got = read(fd, s->text.data + s->text.len, STREAM_PIECE);
    if (got < 0) fail(errno == EISDIR ? EXIT_REQUEST : EXIT_MACHINE, "%s: cannot be read: %s", name_of(path), strerror(errno));
    if (got == 0) break;
    s->text.len += (size_t)got;
    if (s->text.len <= want) continue;
    const size_t cut = documents_last_cut(s->text.data, s->text.len, s->text.len - 1, s->cut);
    if (cut) encode_piece(s, name_of(path), cut);
    want = cut ? STREAM_PIECE : 2 * want;
  }
  close(fd);
  if (s->text.len) encode_piece(s, name_of(path), s->text.len);
}

static int encode(const Options *o) {
  bool characters = strcmp(o->use_tokenizer, "char") == 0;
  if (characters && (o->show || o->arg_count > 1))
    fail(EXIT_REQUEST, "--tokenizer char takes the characters of one text, without --show");
  if (o->show && o->given[FLAG_format]) fail(EXIT_REQUEST, "--show and --format are both given: --show writes ids and pieces as text; take one");
  Tokenizer *t = characters ? NULL : tokenizer_open(o->use_tokenizer);
  if (t && o->format == FORMAT_U16 && tokenizer_vocab_size(t) > 65536)
    fail(EXIT_REQUEST, "--format u16: the vocabulary has %d entries, 16 bits hold 65536: use --format u32",
         tokenizer_vocab_size(t));
  // Characters may be unknown, which is said with line and column; special tokens may have blanks in them, at which a text is cut.
  const bool bpe = t && tokenizer_kind(t) == TOKENIZER_BPE, words = bpe && tokenizer_pattern(t) != PATTERN_NONE, bytes = t && tokenizer_kind(t) == TOKENIZER_BYTE;
  if ((words || bytes) && o->special == SPECIAL_NONE) {
    Stream s = {.o = o, .tokenizer = t, .cut = bpe ? CUT_WORD : CUT_CHARACTER};
    open_stream(&s);
    for_each_path(o, encode_stream, &s);
    close_stream(&s);
  } else encode_whole(o, t);
  tokenizer_free(t);
  return 0;
}

// ---- decode ----

typedef struct { const Options *o; TokenBuffer ids; } DecodeIds;

// Ids in decimal with white space between; the line is counted for the message.
static void parse_ids(const char *name, const char *text, size_t n, TokenBuffer *ids) {
  size_t line = 1;
  for (size_t at = 0; at < n;) {
    char c = text[at];
    if (c == '\n') line++;
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      at++;
      continue;
    }
    int64_t id = 0;
    size_t start = at;
    for (; at < n && text[at] >= '0' && text[at] <= '9' && id <= INT32_MAX; at++) id = 10 * id + (text[at] - '0');
    bool ended = at == n || text[at] == ' ' || (text[at] >= '\t' && text[at] <= '\r');
    if (start == at || !ended || id > INT32_MAX)
      fail(EXIT_REQUEST, "%s: line %zu: id %zu is not a whole number below %d", name, line, ids->count + 1, INT32_MAX);
    token_buffer_append(ids, (int32_t)id);
  }
}

static void read_ids(void *context, const char *name, const char *text, size_t n) {
  DecodeIds *d = context;
  if (d->o->format == FORMAT_TEXT) {
    parse_ids(name, text, n, &d->ids);
    return;
  }
  size_t width = d->o->format == FORMAT_U16 ? 2 : 4;
  if (n % width != 0) fail(EXIT_REQUEST, "%s: %zu bytes are no whole number of %zu-byte ids", name, n, width);
  for (size_t at = 0; at < n; at += width) {
    const uint8_t *p = (const uint8_t *)text + at;
    uint32_t id = width == 2 ? (uint32_t)p[0] | (uint32_t)p[1] << 8 : load_u32le(p);
    if (id > INT32_MAX) fail(EXIT_REQUEST, "%s: id %u at byte %zu is none of any vocabulary", name, id, at);
    token_buffer_append(&d->ids, (int32_t)id);
  }
}

// "15496 995", quoted or not
static bool is_numbers(const char *text) { return strpbrk(text, "0123456789") && strspn(text, "0123456789 \t\n") == strlen(text); }

static int decode(const Options *o) {
  Tokenizer *t = tokenizer_open(o->use_tokenizer);
  DecodeIds d = {.o = o};
  bool numbers = o->arg_count > 0 && o->format == FORMAT_TEXT;  // ids themselves, where no argument is a file
  for (size_t i = 0; i < o->arg_count; i++) numbers = numbers && is_numbers(o->args[i]) && !file_exists(o->args[i]);
  for (size_t i = 0; numbers && i < o->arg_count; i++) parse_ids("the command line", o->args[i], strlen(o->args[i]), &d.ids);
  if (!numbers) for_each_text(o, SIZE_MAX / 2, read_ids, &d);
  Buffer out = {0};
  int64_t bad = tokenizer_decode(t, d.ids.ids, d.ids.count, &out);
  if (bad >= 0)
    fail(EXIT_REQUEST, "id %d, number %lld of the list, is not in the vocabulary: it has %d entries, 0 to %d",
         d.ids.ids[bad], (long long)bad + 1,
         tokenizer_vocab_size(t), tokenizer_vocab_size(t) - 1);
  write_payload(o, out.data ? out.data : "", out.len);
  buffer_free(&out);
  token_buffer_free(&d.ids);
  tokenizer_free(t);
  return 0;
}

// ---- info ----

static int32_t longest_token(const Tokenizer *t) {
  int32_t best = 0;
  size_t most = 0, n;
  for (int32_t id = 0; id < tokenizer_vocab_size(t); id++)
    if (tokenizer_decode_one(t, id, &n) && n > most && !tokenizer_is_special(t, id)) most = n, best = id;
  return best;
}

// Also writes the tokenizer as a tokenizer.json where --out asks for it: the way from any format to that one.
static int info(const Options *o) {
  if (o->arg_count) fail(EXIT_REQUEST, "gpt tokenizer info takes no texts, %s was given; the tokenizer goes behind --tokenizer", o->args[0]);
  Tokenizer *t = tokenizer_open(o->use_tokenizer);
  if (o->file_out) {
    Buffer json = {0};
    tokenizer_json(t, &json);
    replace_file(o->file_out, json.data, json.len);
    buffer_free(&json);
  }
  char hex[65];
  tokenizer_sha256(t, hex);
  Buffer b = {0};
  size_t n;
  const char *pattern = tokenizer_kind(t) == TOKENIZER_BPE ? tokenizer_pattern_name(tokenizer_pattern(t)) : "none";
  if (o->json) {
    buffer_printf(&b, "{\"kind\":\"%s\",\"vocab_size\":%d,\"merges\":%zu,\"pattern\":\"%s\",\"eot\":%d,\"special\":[",
                  tokenizer_kind_name(t),
                  tokenizer_vocab_size(t), tokenizer_merge_count(t), pattern, tokenizer_eot(t));
    for (size_t i = 0; i < tokenizer_special_count(t); i++) {
      const char *text = tokenizer_decode_one(t, tokenizer_special_id(t, i), &n);
      buffer_printf(&b, "%s{\"id\":%d,\"text\":", i ? "," : "", tokenizer_special_id(t, i));
      json_write_string(&b, text, n);
      buffer_append(&b, "}", 1);
    }
    buffer_printf(&b, "],\"sha256\":\"%s\"}\n", hex);
  } else {
    buffer_printf(&b, "kind          %s\nvocabulary    %d\nmerges        %zu\npattern       %s\n", tokenizer_kind_name(t),
                  tokenizer_vocab_size(t),
                  tokenizer_merge_count(t), pattern);
    for (size_t i = 0; i < tokenizer_special_count(t); i++) {
      const char *text = tokenizer_decode_one(t, tokenizer_special_id(t, i), &n);
      buffer_printf(&b, "special       %d ", tokenizer_special_id(t, i));
      append_visible(&b, text, n);
      buffer_printf(&b, "%s\n", tokenizer_special_id(t, i) == tokenizer_eot(t) ? "  (end of text)" : "");
    }
    int32_t longest = longest_token(t);
    const char *text = tokenizer_decode_one(t, longest, &n);
    buffer_printf(&b, "longest token %d, %zu bytes ", longest, n);
    append_visible(&b, text, MIN(n, (size_t)60));
    buffer_printf(&b, "\nsha256        %s\n", hex);
  }
  fputs(b.data, stdout);
  buffer_free(&b);
  tokenizer_free(t);
  return 0;
}

int tokenizer_command(const Options *o) {
  if (o->command == COMMAND_TOKENIZER_TRAIN) return train(o);
  if (!o->use_tokenizer)
    fail(EXIT_REQUEST,
         "--tokenizer is missing: gpt2, byte, a tokenizer.json, vocab.bpe, encoder.json or .tiktoken file, a model directory or a run");
  if (o->command == COMMAND_TOKENIZER_ENCODE) return encode(o);
  return o->command == COMMAND_TOKENIZER_DECODE ? decode(o) : info(o);
}
