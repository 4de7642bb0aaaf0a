// documents.c: owns the way from the names of texts to documents, in bounded memory. See documents.h.
#include "documents.h"
#include "json.h"       // json_parse, json_get
#include "utf8.h"       // utf8_decode
#include <errno.h>      // errno
#include <fcntl.h>      // open
#include <stdlib.h>     // free, mkstemp
#include <string.h>     // memchr, memmove, strerror
#include <sys/stat.h>   // fstat
#include <unistd.h>     // read, close, unlink

typedef struct {
  char *name;
  int fd;                    // of a copied stream, for ever open; -1: opened by its name when its turn comes
  int64_t bytes;
} Text;

struct Documents {
  Text *texts;
  size_t text_count, text_capacity;
  // settings of the pass
  DocumentSplit split;
  const char *field;
  DocumentCut cut;
  size_t piece_bytes;
  // where the pass is
  size_t text;               // number of the text that is read
  int fd;                    // of it, -1: none open
  int64_t offset;            // of the next byte to read from it
  bool ended;                // no more bytes follow those in the window
  char *window;              // bytes begin .. end-1 are read and not yet handed out
  size_t begin, end, capacity;
  int64_t position;          // of window[begin] in its text
  int64_t line;              // of window[begin], from 1
  bool inside;               // the last piece did not end its document
  int64_t read;
  Json *json;                // holds the text of the last piece (SPLIT_JSONL)
  char *error;
  int code;
};

// ---- listing texts ----

static int unnamed_file(const char *folder) {
  char *path = format("%s/gpt-text-XXXXXX", folder);
  int fd = mkstemp(path);
  if (fd < 0) fail(EXIT_MACHINE, "%s: cannot make a file for the text of a stream: %s", folder, strerror(errno));
  unlink(path);
  free(path);
  return fd;
}

// A stream is copied, for it can be read once only.
static int copy_stream(int from, const char *name, const char *folder, int64_t *bytes) {
  enum { ROOM = 1 << 16 };
  char *room = xmalloc(ROOM, 1);
  int to = unnamed_file(folder);
  for (;;) {
    ssize_t got = read(from, room, ROOM);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(EXIT_MACHINE, "%s: reading failed at byte %lld: %s", name, (long long)*bytes, strerror(errno));
    if (got == 0) break;
    if (!write_all(to, room, (size_t)got))
      fail(EXIT_MACHINE, "%s: cannot keep %lld bytes of %s: %s", folder, (long long)(*bytes + got), name, strerror(errno));
    *bytes += got;
  }
  free(room);
  return to;
}

// Takes over name. Opens the file to see that it can be read.
static void add_text(Documents *d, char *name, const char *folder) {
  struct stat st;
  bool standard_input = strcmp(name, "-") == 0;
  int fd = standard_input ? STDIN_FILENO : open(name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(EXIT_REQUEST, "%s: cannot open text: %s", name, strerror(errno));
  if (fstat(fd, &st)) fail(EXIT_MACHINE, "%s: cannot look at text: %s", name, strerror(errno));
  Text t = {.name = name, .fd = -1, .bytes = (int64_t)st.st_size};
  if (standard_input || !S_ISREG(st.st_mode)) {
    t.bytes = 0;
    t.fd = copy_stream(fd, name, folder, &t.bytes);
  }
  if (!standard_input) close(fd);
  if (t.bytes == 0) {
    if (t.fd >= 0) close(t.fd);
    free(name);
    return;
  }
  d->texts = xgrow(d->texts, d->text_count, &d->text_capacity, sizeof *d->texts);
  d->texts[d->text_count++] = t;
}

Documents *documents_open(const char *const *names, size_t count, const char *folder) {
  Documents *d = xcalloc(1, sizeof *d);
  size_t files;
  char **paths = list_texts(names, count, &files);
  d->fd = -1;
  for (size_t i = 0; i < files; i++) add_text(d, paths[i], folder);
  free(paths);     // add_text has taken over the names
  if (!d->text_count)
    fail(EXIT_REQUEST, "%s: the text is empty: 0 bytes in %zu file%s, at least 1 is needed", count ? names[0] : "no text", files,
         files == 1 ? "" : "s");
  return d;
}

static void text_close(Documents *d) {
  if (d->fd >= 0 && d->fd != d->texts[d->text].fd) close(d->fd);
  d->fd = -1;
}

void documents_close(Documents *d) {
  text_close(d);
  for (size_t i = 0; i < d->text_count; i++) {
    if (d->texts[i].fd >= 0) close(d->texts[i].fd);
    free(d->texts[i].name);
  }
  json_free(d->json);
  free(d->texts);
  free(d->window);
  free(d->error);
  free(d);
}

size_t documents_files(const Documents *d) { return d->text_count; }
int64_t documents_read(const Documents *d) { return d->read; }

int64_t documents_bytes(const Documents *d) {
  int64_t sum = 0;
  for (size_t i = 0; i < d->text_count; i++) sum += d->texts[i].bytes;
  return sum;
}

const char *documents_name(const Documents *d, size_t file, int64_t *bytes) {
  *bytes = d->texts[file].bytes;
  return d->texts[file].name;
}

const char *documents_error(const Documents *d, int *code) {
  *code = d->code;
  return d->error;
}

// ---- the window: bytes that are read and not yet handed out ----

static bool set_error(Documents *d, int code, char *message) {
  free(d->error);
  d->error = message;
  d->code = code;
  return false;
}

static bool open_text(Documents *d) {
  const Text *t = &d->texts[d->text];
  d->offset = 0;
  d->fd = t->fd >= 0 ? t->fd : open(t->name, O_RDONLY | O_CLOEXEC);
  return d->fd >= 0 || set_error(d, EXIT_REQUEST, format("%s: cannot open text: %s", t->name, strerror(errno)));
}

static void make_room(Documents *d, size_t want) {
  if (d->begin) memmove(d->window, d->window + d->begin, d->end - d->begin);
  d->end -= d->begin;
  d->begin = 0;
  d->window = xrealloc(d->window, want, 1);
  d->capacity = want;
}

// Makes the window hold `want` bytes, or all there are (then d->ended). With SPLIT_NONE the next text follows at once.
static bool fill(Documents *d, size_t want) {
  if (d->end - d->begin < want && !d->ended) make_room(d, want);
  while (d->end - d->begin < want && !d->ended) {
    if (d->fd < 0 && !open_text(d)) return false;
    ssize_t got = pread(d->fd, d->window + d->end, d->capacity - d->end, (off_t)d->offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return set_error(d, EXIT_MACHINE, format("%s: reading failed at byte %lld: %s", d->texts[d->text].name,
                                               (long long)d->offset, strerror(errno)));
    d->end += (size_t)got;
    d->offset += got;
    if (got > 0) continue;
    text_close(d);
    if (d->split == SPLIT_NONE && d->text + 1 < d->text_count) d->text++;
    else d->ended = true;
  }
  return true;
}

static void consume(Documents *d, size_t n) {
  d->begin += n;
  d->position += (int64_t)n;
  d->read += (int64_t)n;
}

// Hands out n bytes at window[begin], and moves on to begin + next.
static DocumentsResult hand_out(Documents *d, size_t n, size_t next, Piece *p) {
  bool joined = d->split == SPLIT_NONE && d->text_count > 1;
  *p = (Piece){.text = d->window + d->begin, .n = n, .starts = true, .ends = true,
               .name = joined ? "the texts joined" : d->texts[d->text].name, .at = d->position};
  consume(d, next);
  return DOCUMENTS_PIECE;
}

// ---- SPLIT_FILE, SPLIT_NONE: pieces of a text ----

static bool is_continuation(char c) { return ((unsigned char)c & 0xc0) == 0x80; }

// No white space and no control character.
static bool is_visible(uint32_t code) {
  bool space = code <= 0x20 || code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
               code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
  return !space && (code < 0x7f || code > 0x9f);
}

// A visible character (valid UTF-8) ends before place i; begins at place i.
static bool visible_before(const char *text, size_t i) {
  size_t start = i - 1;
  uint32_t code = 0;
  while (start > 0 && i - start < 4 && is_continuation(text[start])) start--;
  return utf8_decode(text + start, i - start, &code) == (int)(i - start) && is_visible(code);
}

static bool visible_at(const char *text, size_t n, size_t i) {
  uint32_t code = 0;
  return utf8_decode(text + i, n - i, &code) && is_visible(code);
}

// Why no pattern joins these: a space begins a new token, whatever comes behind it, unless white space stands before it; a
// line end may belong to what stands before it, never to a visible character behind it; and what stands left of such a place
// is cut in the same way whether the text goes on or not.
static bool is_cut(const char *text, size_t n, size_t i) {
  if (text[i] == ' ') return visible_before(text, i);
  return i >= 2 && text[i - 1] == '\n' && visible_before(text, i - 1) && visible_at(text, n, i);
}

// The last place in low..high to cut the text of n bytes, 0: none. 1 <= low, high < n.
static size_t last_cut(const char *text, size_t n, size_t low, size_t high, DocumentCut cut) {
  if (cut == CUT_NEVER || low > high) return 0;
  if (cut == CUT_CHARACTER) {      // past three continuation bytes there is no character to be cut
    size_t i = high;
    while (i > low && high - i < 3 && is_continuation(text[i])) i--;
    return !is_continuation(text[i]) ? i : high - i < 3 ? 0 : high;
  }
  for (size_t i = high; i >= low; i--)
    if (is_cut(text, n, i)) return i;
  return 0;
}

size_t documents_last_cut(const char *text, size_t n, size_t high, DocumentCut cut) { return last_cut(text, n, 1, high, cut); }

static DocumentsResult next_part(Documents *d, Piece *p) {
  size_t low = d->inside ? 1 : DOCUMENT_HEAD, cut;
  for (size_t want = d->piece_bytes;; low = MAX(low, want + 1), want *= 2) {
    if (!fill(d, want + 1)) return DOCUMENTS_ERROR;
    size_t available = d->end - d->begin;
    if (available == 0) return DOCUMENTS_END;
    cut = available <= want ? available : last_cut(d->window + d->begin, available, low, want, d->cut);
    if (cut) break;
  }
  bool starts = !d->inside;
  d->inside = !(d->ended && cut == d->end - d->begin);
  hand_out(d, cut, cut, p);
  p->starts = starts;
  p->ends = !d->inside;
  return DOCUMENTS_PIECE;
}

// ---- SPLIT_BLANK_LINE, SPLIT_JSONL: lines ----

static bool is_blank(const char *line, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r') return false;
  return true;
}

// The line that begins at window[begin + at]: *n bytes without its end. False: error, or (*n = SIZE_MAX) there is none.
static bool find_line(Documents *d, size_t at, size_t *n) {
  for (size_t seen = at;;) {
    size_t available = d->end - d->begin;
    const char *newline = available > seen ? memchr(d->window + d->begin + seen, '\n', available - seen) : NULL;
    *n = newline ? (size_t)(newline - (d->window + d->begin)) - at : available > at ? available - at : SIZE_MAX;
    if (newline || (d->ended && available > at)) return true;
    if (d->ended) return false;
    seen = available;
    if (!fill(d, MAX(2 * available, d->piece_bytes))) { *n = 0; return false; }
  }
}

// A document is a run of lines that are not blank, without the last line's end (LF, or CR LF).
static DocumentsResult next_paragraph(Documents *d, Piece *p) {
  size_t n, length = 0, at = 0;      // at: of the next line, from begin; length: of the document so far
  while (find_line(d, at, &n)) {
    size_t next = MIN(at + n + 1, d->end - d->begin);
    const char *line = d->window + d->begin + at;
    if (!is_blank(line, n)) { length = at + n - (line[n - 1] == '\r'); at = next; continue; }
    if (length) return hand_out(d, length, next, p);
    consume(d, next);
  }
  if (n != SIZE_MAX) return DOCUMENTS_ERROR;
  return length ? hand_out(d, length, d->end - d->begin, p) : DOCUMENTS_END;
}

static DocumentsResult next_json(Documents *d, Piece *p) {
  size_t n;
  char reason[200];
  while (find_line(d, 0, &n)) {
    const char *text = d->window + d->begin, *name = d->texts[d->text].name;
    int64_t line = ++d->line;
    json_free(d->json);
    bool blank = is_blank(text, n);
    d->json = blank ? NULL : json_parse(text, n, reason, sizeof reason);
    consume(d, MIN(n + 1, d->end - d->begin));
    if (blank) continue;
    if (!d->json) {
      set_error(d, EXIT_REQUEST, format("%s: line %lld is no JSON: %s", name, (long long)line, reason));
      return DOCUMENTS_ERROR;
    }
    const Json *value = json_get(d->json, d->field);
    if (!value || value->type != JSON_STRING) {
      const char *problem = value ? "text is needed in the field" : "an object is needed that has the field";
      set_error(d, EXIT_REQUEST, format("%s: line %lld: %s \"%s\" (--jsonl)", name, (long long)line, problem, d->field));
      return DOCUMENTS_ERROR;
    }
    if (value->length == 0) continue;
    *p = (Piece){.text = value->string, .n = value->length, .starts = true, .ends = true, .name = name, .at = line};
    return DOCUMENTS_PIECE;
  }
  return n == SIZE_MAX ? DOCUMENTS_END : DOCUMENTS_ERROR;
}

// ---- the pass ----

static void begin_text(Documents *d) {
  d->ended = d->inside = false;
  d->begin = d->end = 0;
  d->position = d->line = 0;
}

void documents_start(Documents *d, DocumentSplit split, const char *field, DocumentCut cut, size_t piece_bytes) {
  text_close(d);
  d->split = split;
  d->field = field;
  d->cut = cut;
  d->piece_bytes = piece_bytes;
  d->text = 0;
  d->read = 0;
  begin_text(d);
}

DocumentsResult documents_next(Documents *d, Piece *p) {
  for (;;) {
    DocumentsResult r = d->split == SPLIT_JSONL        ? next_json(d, p)
                        : d->split == SPLIT_BLANK_LINE ? next_paragraph(d, p)
                                                       : next_part(d, p);
    if (r != DOCUMENTS_END) return r;
    if (d->text + 1 >= d->text_count) return DOCUMENTS_END;
    text_close(d);
    d->text++;
    begin_text(d);
  }
}
