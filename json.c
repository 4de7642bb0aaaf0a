// json.c: owns the strict, bounded JSON reader and the small writer of json.h.
//
// Promises: no text, however wrong, crashes it, recurses deeper than 64 values or takes more memory than a constant
// times its size; time is linear in the text. Grammar and names of its parts: RFC 8259.
// Tests: tests/test_json.c
#include "json.h"
#include "utf8.h"    // utf8_decode, utf8_encode
#include <math.h>    // isfinite
#include <stdlib.h>  // strtod, free
#include <string.h>  // memcpy, memcmp, strlen

enum { MAX_DEPTH = 64 };

typedef struct {
  const char *text;
  size_t size, pos;
  int64_t line;
  size_t line_start;  // position of the first byte of the line
  int depth;
  char *error;
  size_t error_size;
} Parser;

// ---- errors ----
// Records the first error, at byte `pos` of the current line; returns false so that a caller can return it at once.
static PRINTF_LIKE(3, 4) bool wrong(Parser *p, size_t pos, const char *fmt, ...) {
  if (p->error_size == 0) return false;
  va_list args;
  va_start(args, fmt);
  size_t used = (size_t)vsnprintf(p->error, p->error_size, fmt, args);   // an error is a huge number
  va_end(args);
  if (used < p->error_size)
    snprintf(p->error + used, p->error_size - used, " at line %lld, column %lld", (long long)p->line,
             (long long)(pos - p->line_start + 1));
  return false;
}

// A short form of untrusted bytes that is safe inside a one-line message.
static const char *visible(const char *s, size_t n, char out[40]) {
  size_t used = 0;
  for (size_t i = 0; i < n && used < 32; i++) out[used++] = (s[i] >= 0x20 && s[i] < 0x7f) ? s[i] : '?';
  if (n > 32) {
    memcpy(out + used, "...", 3);
    used += 3;
  }
  out[used] = 0;
  return out;
}

// Says what stands at the current position instead of what was expected.
static bool unexpected(Parser *p, const char *expected) {
  if (p->pos >= p->size) return wrong(p, p->pos, "the JSON text ends where %s is expected", expected);
  unsigned char c = (unsigned char)p->text[p->pos];
  if (c > 0x20 && c < 0x7f) return wrong(p, p->pos, "'%c' where %s is expected", c, expected);
  return wrong(p, p->pos, "byte 0x%02x where %s is expected", c, expected);
}

static void skip_blanks(Parser *p) {
  for (; p->pos < p->size; p->pos++) {
    char c = p->text[p->pos];
    if (c == '\n') {
      p->line++;
      p->line_start = p->pos + 1;
    } else if (c != ' ' && c != '\t' && c != '\r') {
      return;
    }
  }
}

// ---- the index of an object: open addressing over member numbers + 1, seeded so that no file can choose its collisions ----
typedef struct {
  uint64_t seed;
  size_t mask;      // slots - 1
  size_t slots[];   // member + 1, or 0
} Index;

static uint64_t hash_key(uint64_t seed, const char *key, size_t n) {
  uint64_t h = seed ^ n;
  for (; n >= 8; key += 8, n -= 8) {
    uint64_t word;
    memcpy(&word, key, 8);
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  for (; n > 0; key++, n--) h = (h ^ (unsigned char)*key) * 0x9e3779b97f4a7c15u;
  h ^= h >> 32;
  return (h * 0xd6e8feb86659fd93u) >> 16;
}

// Slot of the key, or the free slot where it would go.
static size_t *find_slot(const Json *object, const char *key, size_t n) {
  Index *index = object->index;
  size_t at = hash_key(index->seed, key, n) & index->mask;
  for (;; at = (at + 1) & index->mask) {
    size_t member = index->slots[at];
    if (member == 0) return &index->slots[at];
    if (object->key_lengths[member - 1] == n && memcmp(object->keys[member - 1], key, n) == 0) return &index->slots[at];
  }
}

// Builds the index; *repeated = the first member whose key an earlier member has; false if there is one.
static bool build_index(Json *object, size_t *repeated) {
  size_t slots = 4;
  while (slots < 2 * object->length) slots *= 2;
  Index *index = xcalloc(1, sizeof *index + slots * sizeof index->slots[0]);
  index->seed = (uint64_t)(uintptr_t)index * 0x2545f4914f6cdd1du ^ (uint64_t)(uintptr_t)&slots;
  index->mask = slots - 1;
  object->index = index;
  for (size_t i = 0; i < object->length; i++) {
    size_t *slot = find_slot(object, object->keys[i], object->key_lengths[i]);
    if (*slot != 0) {
      *repeated = i;
      return false;
    }
    *slot = i + 1;
  }
  return true;
}

// ---- strings ----
static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Four hexadecimal digits at the position; false if they are not there. Nothing is read behind the quote that closes the string.
static bool read_hex4(Parser *p, uint32_t *value) {
  *value = 0;
  for (int i = 0; i < 4; i++) {
    int digit = hex_digit(p->text[p->pos + (size_t)i]);
    if (digit < 0) return false;
    *value = *value << 4 | (uint32_t)digit;
  }
  p->pos += 4;
  return true;
}

// The escape after a backslash (the position is behind it), appended to out; false after an error. Behind a backslash stands another
// character, and then the closing quote at the latest: read_string has looked for it.
static bool read_escape(Parser *p, char *out, size_t *used) {
  size_t start = p->pos - 1;
  char c = p->text[p->pos++];
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  const char *at = c ? strchr(from, c) : NULL;
  if (at) {
    out[(*used)++] = to[at - from];
    return true;
  }
  if (c != 'u') return wrong(p, start, "an escape that JSON does not have");
  uint32_t code, low;
  if (!read_hex4(p, &code)) return wrong(p, start, "\\u without four hexadecimal digits");
  if (code >= 0xdc00 && code <= 0xdfff) return wrong(p, start, "a lone low surrogate");
  if (code >= 0xd800 && code <= 0xdbff) {
    bool pair = p->text[p->pos] == '\\' && p->text[p->pos + 1] == 'u';
    if (pair) p->pos += 2;
    if (!pair || !read_hex4(p, &low) || low < 0xdc00 || low > 0xdfff) return wrong(p, start, "a lone high surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  *used += (size_t)utf8_encode(code, out + *used);
  return true;
}

// A quoted string at the position: a new NUL-terminated buffer and its length; NULL after an error.
static char *read_string(Parser *p, size_t *length) {
  size_t start = p->pos++;
  size_t end = p->pos;  // an upper bound of the length: escapes only shrink
  while (end < p->size && p->text[end] != '"') end += p->text[end] == '\\' ? 2 : 1;
  if (end >= p->size) {
    wrong(p, start, "a string without its closing quote");
    return NULL;
  }
  char *out = xmalloc(end - p->pos + 1, 1);
  size_t used = 0;
  while (p->text[p->pos] != '"') {
    unsigned char c = (unsigned char)p->text[p->pos];
    if (c >= 0x20 && c < 0x80 && c != '\\') {
      out[used++] = (char)c;
      p->pos++;
      continue;
    }
    bool ok;
    if (c == '\\') {
      p->pos++;
      ok = read_escape(p, out, &used);
    } else if (c < 0x20) {
      ok = wrong(p, p->pos, "control character 0x%02x inside a string", c);
    } else {
      uint32_t code;
      int n = utf8_decode(p->text + p->pos, end - p->pos, &code);
      ok = n > 0 || wrong(p, p->pos, "byte 0x%02x that is not valid UTF-8 inside a string", c);
      memcpy(out + used, p->text + p->pos, (size_t)n);
      used += (size_t)n;
      p->pos += (size_t)n;
    }
    if (!ok) {
      free(out);
      return NULL;
    }
  }
  p->pos++;
  out[used] = 0;
  *length = used;
  return out;
}

// ---- numbers ----
static bool is_digit(const Parser *p, size_t at) { return at < p->size && p->text[at] >= '0' && p->text[at] <= '9'; }

static bool read_number(Parser *p, double *value) {
  size_t start = p->pos, at = start;
  bool negative = p->text[at] == '-', whole = true;
  at += negative;
  size_t digits = at;
  if (!is_digit(p, at)) return p->pos = at, unexpected(p, "a digit");
  if (p->text[at] == '0') at++;
  else while (is_digit(p, at)) at++;
  if (is_digit(p, at)) return wrong(p, start, "a number with a leading zero");
  size_t digits_end = at;
  if (at < p->size && p->text[at] == '.') {
    whole = false;
    if (!is_digit(p, ++at)) return p->pos = at, unexpected(p, "a digit after the point");
    while (is_digit(p, at)) at++;
  }
  if (at < p->size && (p->text[at] == 'e' || p->text[at] == 'E')) {
    whole = false;
    at++;
    if (at < p->size && (p->text[at] == '+' || p->text[at] == '-')) at++;
    if (!is_digit(p, at)) return p->pos = at, unexpected(p, "a digit of the exponent");
    while (is_digit(p, at)) at++;
  }
  p->pos = at;
  if (whole && digits_end - digits <= 15) {  // below 1e15 < 2^53: exact
    int64_t sum = 0;
    for (size_t i = digits; i < digits_end; i++) sum = sum * 10 + (p->text[i] - '0');
    *value = negative ? -(double)sum : (double)sum;
    return true;
  }
  char *copy = xmalloc(at - start + 1, 1);  // strtod needs a NUL behind the digits
  memcpy(copy, p->text + start, at - start);
  copy[at - start] = 0;
  *value = strtod(copy, NULL);
  free(copy);
  return isfinite(*value) || wrong(p, start, "a number beyond the range of a double");
}

// ---- values ----
static Json *read_value(Parser *p);

// Behind one item: a comma (true: another follows) or the closing bracket (*done); false with *done unset: an error.
static bool another(Parser *p, char close, bool *done) {
  skip_blanks(p);
  char c = p->pos < p->size ? p->text[p->pos] : 0;
  if (c == ',' || c == close) p->pos++;
  else unexpected(p, close == ']' ? "',' or ']'" : "',' or '}'");
  *done = c == close;
  return c == ',';
}

static bool read_items(Parser *p, Json *j) {
  p->pos++;
  skip_blanks(p);
  if (p->pos < p->size && p->text[p->pos] == ']') return p->pos++, true;
  size_t room = 0;
  bool done;
  do {
    Json *item = read_value(p);
    if (!item) return false;
    j->items = xgrow(j->items, j->length, &room, sizeof j->items[0]);
    j->items[j->length++] = item;
  } while (another(p, ']', &done));
  return done;
}

static bool read_members(Parser *p, Json *j) {
  size_t repeated = 0, rooms[3] = {0};
  bool done = false;
  char name[40];
  p->pos++;
  skip_blanks(p);
  if (p->pos < p->size && p->text[p->pos] == '}') p->pos++, done = true;
  while (!done) {
    skip_blanks(p);
    if (p->pos >= p->size || p->text[p->pos] != '"') return unexpected(p, "a key in quotes");
    size_t length = 0;
    char *key = read_string(p, &length);
    if (!key) return false;
    j->keys = xgrow(j->keys, j->length, &rooms[0], sizeof j->keys[0]);
    j->key_lengths = xgrow(j->key_lengths, j->length, &rooms[1], sizeof j->key_lengths[0]);
    j->items = xgrow(j->items, j->length, &rooms[2], sizeof j->items[0]);
    j->keys[j->length] = key;
    j->key_lengths[j->length] = length;
    j->items[j->length++] = NULL;  // so that json_free sees a whole member
    skip_blanks(p);
    if (p->pos >= p->size || p->text[p->pos] != ':') return unexpected(p, "':'");
    p->pos++;
    if (!(j->items[j->length - 1] = read_value(p))) return false;
    if (!another(p, '}', &done) && !done) return false;
  }
  if (build_index(j, &repeated)) return true;
  visible(j->keys[repeated], j->key_lengths[repeated], name);
  if (p->error_size)
    snprintf(p->error, p->error_size, "key \"%s\" stands twice in one object, again at line %lld", name,
             (long long)j->items[repeated]->line);
  return false;
}

static bool read_word(Parser *p, const char *word) {
  size_t n = strlen(word);
  if (p->size - p->pos < n || memcmp(p->text + p->pos, word, n) != 0) return unexpected(p, "a value");
  p->pos += n;
  return true;
}

static Json *read_value(Parser *p) {
  skip_blanks(p);
  bool ok = p->pos < p->size ? p->depth < MAX_DEPTH || wrong(p, p->pos, "values nested deeper than %d", MAX_DEPTH)
                             : unexpected(p, "a value");
  if (!ok) return NULL;
  p->depth++;
  Json *j = xcalloc(1, sizeof *j);
  j->line = p->line;
  char c = p->text[p->pos];
  switch (c) {
    case '{': j->type = JSON_OBJECT; ok = read_members(p, j); break;
    case '[': j->type = JSON_ARRAY; ok = read_items(p, j); break;
    case '"': j->type = JSON_STRING; ok = (j->string = read_string(p, &j->length)) != NULL; break;
    case 't': j->type = JSON_BOOL; j->number = 1; ok = read_word(p, "true"); break;
    case 'f': j->type = JSON_BOOL; ok = read_word(p, "false"); break;
    case 'n': j->type = JSON_NULL; ok = read_word(p, "null"); break;
    default:
      j->type = JSON_NUMBER;
      ok = (c == '-' || is_digit(p, p->pos)) ? read_number(p, &j->number) : unexpected(p, "a value");
  }
  p->depth--;
  if (ok) return j;
  json_free(j);
  return NULL;
}

Json *json_parse(const char *text, size_t size, char *error, size_t error_size) {
  Parser p = {.text = text, .size = size, .line = 1, .error = error, .error_size = error_size};
  if (error_size) error[0] = 0;
  Json *j = read_value(&p);
  if (!j) return NULL;
  skip_blanks(&p);
  if (p.pos == size) return j;
  unexpected(&p, "the end of the text");
  json_free(j);
  return NULL;
}

void json_free(Json *j) {
  if (!j) return;
  bool container = j->type == JSON_ARRAY || j->type == JSON_OBJECT;
  for (size_t i = 0; container && i < j->length; i++) {
    json_free(j->items[i]);
    if (j->keys) free(j->keys[i]);
  }
  free(j->string);
  free(j->items);
  free(j->keys);
  free(j->key_lengths);
  free(j->index);
  free(j);
}

// ---- typed reading ----
const Json *json_get(const Json *object, const char *key) {
  if (!object || object->type != JSON_OBJECT) return NULL;
  size_t *slot = find_slot(object, key, strlen(key));
  return *slot ? object->items[*slot - 1] : NULL;
}

double json_number(const Json *object, const char *key, double otherwise) {
  const Json *j = json_get(object, key);
  return j && j->type == JSON_NUMBER ? j->number : otherwise;
}

const char *json_string(const Json *object, const char *key, const char *otherwise) {
  const Json *j = json_get(object, key);
  return j && j->type == JSON_STRING ? j->string : otherwise;
}

bool json_bool(const Json *object, const char *key, bool otherwise) {
  const Json *j = json_get(object, key);
  return j && j->type == JSON_BOOL ? j->number != 0 : otherwise;
}

bool json_int(const Json *object, const char *key, int64_t low, int64_t high, int64_t *out) {
  const Json *j = json_get(object, key);
  // Doubles count without gaps up to 2^53 only; beyond it the text's digits would be lost unseen.
  if (!j || j->type != JSON_NUMBER || !(fabs(j->number) <= 9007199254740992.0) || j->number != floor(j->number)) return false;
  int64_t value = (int64_t)j->number;
  if (value < low || value > high) return false;
  *out = value;
  return true;
}

// ---- writer ----
void json_write_string(Buffer *b, const char *s, size_t n) {
  buffer_append(b, "\"", 1);
  size_t plain = 0;  // start of the run not yet written
  for (size_t i = 0; i < n;) {
    unsigned char c = (unsigned char)s[i];
    uint32_t code;
    int length = c < 0x80 ? 1 : utf8_decode(s + i, n - i, &code);
    if (length > 0 && c >= 0x20 && c != '"' && c != '\\') {
      i += (size_t)length;
      continue;
    }
    buffer_append(b, s + plain, i - plain);
    if (length == 0) buffer_append(b, "\xef\xbf\xbd", 3);  // U+FFFD, one for each byte that fits nowhere
    else if (c == '"') buffer_append(b, "\\\"", 2);
    else if (c == '\\') buffer_append(b, "\\\\", 2);
    else if (c == '\n') buffer_append(b, "\\n", 2);
    else if (c == '\t') buffer_append(b, "\\t", 2);
    else if (c == '\r') buffer_append(b, "\\r", 2);
    else buffer_printf(b, "\\u%04x", c);
    plain = ++i;
  }
  buffer_append(b, s + plain, n - plain);
  buffer_append(b, "\"", 1);
}

void json_write_number(Buffer *b, double x) {
  if (!isfinite(x)) {
    buffer_append(b, "null", 4);
  } else if (x == 0) {
    buffer_printf(b, signbit(x) ? "-0.0" : "0");
  } else if (fabs(x) < 1e15 && x == floor(x)) {
    buffer_printf(b, "%.0f", x);
  } else {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {  // 17 significant digits always read back to the same double
      snprintf(text, sizeof text, "%.*g", digits, x);
      if (strtod(text, NULL) == x) break;
    }
    buffer_append(b, text, strlen(text));
  }
}
