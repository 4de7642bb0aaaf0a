// safetensors.c: owns the safetensors format of safetensors.h: its header both ways, and the conversion of elements.
//
// Promises: no file, however wrong, crashes it or makes it allocate more than a constant times its header (at most
// 8 MiB); a tensor it lists lies inside the file, shares no byte with another, and has the size that its shape says.
// Tests: tests/test_safetensors.c
#include "safetensors.h"
#include <errno.h>     // errno
#include <fcntl.h>     // open
#include <stdlib.h>    // qsort, free
#include <string.h>    // memcpy, strcmp, strerror
#include <sys/stat.h>  // fstat
#include <unistd.h>    // close

// The format allows 100 MB; the largest published headers are well under one. The bound keeps the parsed JSON of a
// hostile header (about 50 bytes of memory for each byte of text) within a few hundred MiB.
enum { MAX_HEADER = 8 << 20 };

static const struct { const char *name; size_t size; } types[SAFE_TYPES] = {
  [SAFE_F64] = {"F64", 8}, [SAFE_F32] = {"F32", 4}, [SAFE_F16] = {"F16", 2}, [SAFE_BF16] = {"BF16", 2},
  [SAFE_F8_E5M2] = {"F8_E5M2", 1}, [SAFE_F8_E4M3] = {"F8_E4M3", 1},
  [SAFE_I64] = {"I64", 8}, [SAFE_I32] = {"I32", 4}, [SAFE_I16] = {"I16", 2}, [SAFE_I8] = {"I8", 1},
  [SAFE_U64] = {"U64", 8}, [SAFE_U32] = {"U32", 4}, [SAFE_U16] = {"U16", 2}, [SAFE_U8] = {"U8", 1},
  [SAFE_BOOL] = {"BOOL", 1},
};

const char *safe_type_name(SafeType type) { return types[type].name; }
size_t safe_type_size(SafeType type) { return types[type].size; }

void safe_shape_text(Buffer *out, int dims, const int64_t *shape) {
  buffer_printf(out, "[");
  for (int i = 0; i < dims; i++) buffer_printf(out, "%s%lld", i ? ", " : "", (long long)shape[i]);
  buffer_printf(out, "]");
}

// ---- writing ----

static int64_t entry_bytes(const SafeEntry *e) {
  int64_t n = (int64_t)types[e->type].size;
  for (int i = 0; i < e->dims; i++)
    if (__builtin_mul_overflow(n, e->shape[i], &n) || n < 0)
      fail(EXIT_MACHINE, "tensor %s: its size overflows", e->name);
  return n;
}

void safetensors_header(Buffer *out, const SafeEntry *entries, size_t count, const SafeMetadata *metadata,
                        size_t metadata_count) {
  Buffer h = {0};
  const char *comma = "";
  int64_t offset = 0;
  buffer_append(&h, "{", 1);
  if (metadata_count) {
    buffer_printf(&h, "\"__metadata__\":{");
    for (size_t i = 0; i < metadata_count; i++) {
      if (i) buffer_append(&h, ",", 1);
      json_write_string(&h, metadata[i].key, strlen(metadata[i].key));
      buffer_append(&h, ":", 1);
      json_write_string(&h, metadata[i].value, strlen(metadata[i].value));
    }
    buffer_append(&h, "}", 1);
    comma = ",";
  }
  for (size_t i = 0; i < count; i++) {
    int64_t bytes = entry_bytes(&entries[i]), end;
    if (__builtin_add_overflow(offset, bytes, &end))
      fail(EXIT_MACHINE, "tensor %s: the file's size overflows", entries[i].name);
    buffer_printf(&h, "%s\n", comma);
    json_write_string(&h, entries[i].name, strlen(entries[i].name));
    buffer_printf(&h, ":{\"dtype\":\"%s\",\"shape\":", types[entries[i].type].name);
    safe_shape_text(&h, entries[i].dims, entries[i].shape);
    buffer_printf(&h, ",\"data_offsets\":[%lld,%lld]}", (long long)offset, (long long)end);
    offset = end;
    comma = ",";
  }
  buffer_append(&h, "}", 1);
  while (h.len % 8) buffer_append(&h, " ", 1);
  uint8_t length[8];
  store_u64le(length, h.len);
  buffer_append(out, length, sizeof length);
  buffer_append(out, h.data, h.len);
  buffer_free(&h);
}

void safetensors_pack(uint8_t *dst, const double *src, size_t n, SafeType type) {
  for (size_t i = 0; i < n; i++) {
    if (type == SAFE_F64) {
      uint64_t bits;
      memcpy(&bits, &src[i], sizeof bits);
      store_u64le(dst + 8 * i, bits);
    } else if (type == SAFE_F32) {
      float f = (float)src[i];
      uint32_t bits;
      memcpy(&bits, &f, sizeof bits);
      store_u32le(dst + 4 * i, bits);
    } else {
      fail(EXIT_MACHINE, "tensors are written as F32 or F64, not as %s", types[type].name);
    }
  }
}

// ---- reading the header ----

// Appends "path: reason" to why and returns false, so that a caller can return it at once.
static PRINTF_LIKE(3, 4) bool refuse(const char *path, Refusal *why, const char *fmt, ...) {
  char reason[512];  // every name in a reason is cut to 80 bytes
  va_list args;
  va_start(args, fmt);
  vsnprintf(reason, sizeof reason, fmt, args);
  va_end(args);
  buffer_printf(&why->line, "%s: %s", path, reason);
  return false;
}

// The same after a system call that failed.
static bool refuse_errno(const char *path, Refusal *why, const char *what) {
  why->machine = is_machine_errno(errno);
  return refuse(path, why, "%s: %s", what, errno ? strerror(errno) : "it ends too early");
}

// n bytes at `at` of the file, where there were so many a moment ago.
static bool read_bytes(const Safetensors *s, void *bytes, size_t n, int64_t at, Refusal *why) {
  errno = 0;   // pread_all() leaves it at 0 where the file ends
  return pread_all(s->fd, bytes, n, at) || refuse_errno(s->path, why, "cannot be read");
}

// A number without fraction in 0 .. 2^53, the largest run of whole numbers that JSON's doubles hold.
static bool whole_number(const Json *j, int64_t *out) {
  if (j->type != JSON_NUMBER || !(j->number >= 0 && j->number <= 9007199254740992.0)) return false;
  *out = (int64_t)j->number;
  return (double)*out == j->number;
}

// One member of the header into *t; *end = the end of its bytes, counted like data_offsets from the end of the header.
static bool read_entry(const char *path, const char *name, const Json *j, SafeTensor *t, int64_t *end, Refusal *why) {
  const Json *dtype = json_get(j, "dtype"), *shape = json_get(j, "shape"), *offsets = json_get(j, "data_offsets");
  if (!dtype || dtype->type != JSON_STRING || !shape || shape->type != JSON_ARRAY || !offsets ||
      offsets->type != JSON_ARRAY || offsets->length != 2 || j->length != 3)
    return refuse(path, why, "tensor %.80s: its entry is not {dtype, shape, data_offsets}", name);
  int type = 0;
  while (type < SAFE_TYPES && strcmp(types[type].name, dtype->string)) type++;
  if (type == SAFE_TYPES) return refuse(path, why, "tensor %.80s has the unknown type %.40s", name, dtype->string);
  if (shape->length > SAFE_MAX_DIMS)
    return refuse(path, why, "tensor %.80s has %zu dimensions, at most %d are read", name, shape->length, SAFE_MAX_DIMS);
  *t = (SafeTensor){.name = name, .type = (SafeType)type, .dims = (int)shape->length, .elements = 1};
  int64_t bytes = (int64_t)types[type].size;
  for (int i = 0; i < t->dims; i++) {
    if (!whole_number(shape->items[i], &t->shape[i]))
      return refuse(path, why, "tensor %.80s: dimension %d is no size", name, i);
    if (__builtin_mul_overflow(t->elements, t->shape[i], &t->elements) || __builtin_mul_overflow(bytes, t->shape[i], &bytes))
      return refuse(path, why, "tensor %.80s: its shape has more bytes than can be counted", name);
  }
  if (!whole_number(offsets->items[0], &t->offset) || !whole_number(offsets->items[1], end) || *end < t->offset)
    return refuse(path, why, "tensor %.80s: data_offsets are no range", name);
  if (*end - t->offset != bytes)
    return refuse(path, why, "tensor %.80s takes %lld bytes by its offsets, %lld by its shape and type", name,
                  (long long)(*end - t->offset), (long long)bytes);
  return true;
}

typedef struct { int64_t begin, end; const char *name; } Range;

static int by_begin(const void *a, const void *b) {
  const Range *x = a, *y = b;
  int64_t i = x->begin, j = y->begin;
  if (i == j) i = x->end, j = y->end;
  return (i > j) - (i < j);
}

// The ranges must cover 0 .. data without hole or overlap.
static bool check_ranges(const char *path, Range *ranges, size_t count, int64_t data, Refusal *why) {
  if (count) qsort(ranges, count, sizeof *ranges, by_begin);
  int64_t at = 0;
  for (size_t i = 0; i < count; i++) {
    if (ranges[i].begin != at)
      return refuse(path, why, "tensor %.80s begins at data byte %lld, %s before it ends at %lld", ranges[i].name,
                    (long long)ranges[i].begin, i ? "the tensor" : "the header", (long long)at);
    at = ranges[i].end;
  }
  if (at != data)
    return refuse(path, why, "the header describes %lld data bytes, the file has %lld: %s", (long long)at, (long long)data,
                  at > data ? "it is cut off" : "something follows");
  return true;
}

static bool check_metadata(const char *path, const Json *metadata, Refusal *why) {
  if (!metadata) return true;
  bool ok = metadata->type == JSON_OBJECT;
  for (size_t i = 0; ok && i < metadata->length; i++) ok = metadata->items[i]->type == JSON_STRING;
  return ok || refuse(path, why, "__metadata__ is not an object of strings");
}

// Fills s->tensors from s->header.
static bool read_entries(Safetensors *s, int64_t data_start, Refusal *why) {
  const Json *h = s->header;
  if (h->type != JSON_OBJECT) return refuse(s->path, why, "the header is no JSON object");
  if (!check_metadata(s->path, json_get(h, "__metadata__"), why)) return false;
  s->tensors = xcalloc(h->length, sizeof *s->tensors);
  Range *ranges = xcalloc(h->length, sizeof *ranges);
  bool ok = true;
  for (size_t i = 0; ok && i < h->length; i++) {
    if (!strcmp(h->keys[i], "__metadata__")) continue;
    SafeTensor *t = &s->tensors[s->count];
    Range *range = &ranges[s->count];
    ok = strlen(h->keys[i]) == h->key_lengths[i] || refuse(s->path, why, "a tensor's name holds a NUL");
    ok = ok && read_entry(s->path, h->keys[i], h->items[i], t, &range->end, why);
    range->begin = t->offset;
    range->name = h->keys[i];
    t->offset += data_start;
    s->count++;
  }
  ok = ok && check_ranges(s->path, ranges, s->count, s->size - data_start, why);
  free(ranges);
  return ok;
}

// Reads and parses the header of s->fd.
static bool read_header(Safetensors *s, Refusal *why) {
  struct stat st;
  uint8_t length_bytes[8];
  char error[256];
  if (fstat(s->fd, &st)) return refuse_errno(s->path, why, "cannot be looked at");
  if (!S_ISREG(st.st_mode)) return refuse(s->path, why, "is no regular file");
  s->size = st.st_size;
  if (s->size < 8)
    return refuse(s->path, why, "%lld bytes are no safetensors file, the header's length alone takes 8", (long long)s->size);
  if (!read_bytes(s, length_bytes, sizeof length_bytes, 0, why)) return false;
  uint64_t length = load_u64le(length_bytes);
  if (length > (uint64_t)s->size - 8 || length > MAX_HEADER)
    return refuse(s->path, why, "no safetensors file: a header of %llu bytes, at most %lld fit", (unsigned long long)length,
                  (long long)MIN(s->size - 8, (int64_t)MAX_HEADER));
  char *text = xcalloc(length + 1, 1);
  bool ok = read_bytes(s, text, length, 8, why);
  ok = ok && (text[0] == '{' || refuse(s->path, why, "no safetensors file: the header does not begin with {"));
  if (ok) {
    s->header = json_parse(text, length, error, sizeof error);
    ok = s->header || refuse(s->path, why, "its header is wrong: %s", error);
  }
  free(text);
  return ok && read_entries(s, (int64_t)length + 8, why);
}

Safetensors *safetensors_open_fd(int fd, const char *path, Refusal *why) {
  Safetensors *s = xcalloc(1, sizeof *s);
  s->fd = fd;
  s->path = xstrdup(path);
  if (read_header(s, why)) return s;
  safetensors_close(s);
  return NULL;
}

Safetensors *safetensors_open(const char *path, Refusal *why) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a pipe in its place must not hang us
  if (fd >= 0) return safetensors_open_fd(fd, path, why);
  refuse_errno(path, why, "cannot be opened");
  return NULL;
}

void safetensors_close(Safetensors *s) {
  if (!s) return;
  close(s->fd);
  free(s->path);
  free(s->tensors);
  json_free(s->header);
  free(s);
}

const SafeTensor *safetensors_find(const Safetensors *s, const char *name) {
  for (size_t i = 0; i < s->count; i++)
    if (!strcmp(s->tensors[i].name, name)) return &s->tensors[i];
  return NULL;
}

const char *safetensors_metadata(const Safetensors *s, const char *key) {
  return json_string(json_get(s->header, "__metadata__"), key, NULL);
}

// ---- reading elements ----

static float float_of_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

float float_of_f16(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);  // 112 = 127 - 15
  float tiny = (float)fraction * 0x1p-24f;  // zero and subnormals; exact: ten bits times a power of two
  return sign ? -tiny : tiny;
}

static double element(const uint8_t *p, SafeType type) {
  if (type == SAFE_F64) {
    uint64_t bits = load_u64le(p);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  if (type == SAFE_F32) return (double)float_of_bits(load_u32le(p));
  uint16_t half = (uint16_t)(p[0] | p[1] << 8);
  return (double)(type == SAFE_F16 ? float_of_f16(half) : float_of_bf16(half));
}

// Both readers: exactly one of the two destinations is given.
static bool read_elements(const Safetensors *s, const SafeTensor *t, int64_t start, size_t n, double *wide, float *narrow) {
  uint8_t raw[1 << 15];
  if (!safe_type_is_read(t->type) || start < 0 || start > t->elements || (uint64_t)(t->elements - start) < n) return false;
  size_t size = types[t->type].size;
  for (size_t done = 0; done < n;) {
    size_t some = MIN(n - done, sizeof raw / size);
    if (!pread_all(s->fd, raw, some * size, t->offset + (start + (int64_t)done) * (int64_t)size)) return false;
    for (size_t i = 0; i < some; i++) {
      double x = element(raw + i * size, t->type);
      if (wide) wide[done + i] = x;
      else narrow[done + i] = (float)x;
    }
    done += some;
  }
  return true;
}

bool safetensors_read(const Safetensors *s, const SafeTensor *t, int64_t start, size_t n, double *dst) {
  return read_elements(s, t, start, n, dst, NULL);
}

bool safetensors_read_float(const Safetensors *s, const SafeTensor *t, int64_t start, size_t n, float *dst) {
  return read_elements(s, t, start, n, NULL, dst);
}
