// json.h: a strict, bounded JSON reader (RFC 8259) and a small writer. Plumbing.
//
// The reader is for untrusted files: nesting is bounded (64), sizes are checked, memory is proportional to the text,
// duplicate keys in an object are refused, numbers must be finite doubles, strings must be valid UTF-8 with valid
// escapes (\u pairs joined; a lone surrogate is refused), nothing may follow the value. It never ends the process: it returns NULL and a message with line
// and column, so that the caller can name the file.
// Tests: tests/test_json.c
#pragma once
#include "util.h"

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;
typedef struct Json Json;
struct Json {
  JsonType type;
  double number;         // JSON_NUMBER; JSON_BOOL: 0 or 1
  char *string;          // JSON_STRING: the bytes, NUL-terminated (may hold NULs: see length)
  size_t length;         // bytes of the string, or number of items or members
  Json **items;          // JSON_ARRAY, JSON_OBJECT: values in the order of the text
  char **keys;           // JSON_OBJECT: keys, NUL-terminated
  size_t *key_lengths;   // JSON_OBJECT: bytes of each key (a key may hold NULs)
  int64_t line;          // where the value begins, from 1
  void *index;           // JSON_OBJECT: private hash index that makes json_get O(1)
};

// The value, freed with json_free; or NULL, and a one-line reason with line and column in error (at least 160 bytes).
Json *json_parse(const char *text, size_t size, char *error, size_t error_size);
void json_free(Json *j);
// Member of an object, or NULL when j is NULL, no object, or has no such key. O(1).
const Json *json_get(const Json *object, const char *key);
// Typed reading with a default: what is missing or of another type gives the default.
double json_number(const Json *object, const char *key, double otherwise);
const char *json_string(const Json *object, const char *key, const char *otherwise);
bool json_bool(const Json *object, const char *key, bool otherwise);
// true, and *out set, if the member is a number without fraction within [low, high].
bool json_int(const Json *object, const char *key, int64_t low, int64_t high, int64_t *out);

// ---- writer: appends to a Buffer; the caller writes the punctuation between members ----
// A quoted, escaped string; bytes that are not valid UTF-8 become U+FFFD, control characters \u00XX.
void json_write_string(Buffer *b, const char *s, size_t n);
// Shortest text of the double that reads back to the same bits; not finite: null.
void json_write_number(Buffer *b, double x);
