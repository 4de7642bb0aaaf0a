// test_safetensors.c: owns the checks of safetensors.c: bytes of the format, exact conversions, refusal of what is wrong.
#include "../safetensors.h"
#include "test.h"
#include <fcntl.h>      // fcntl
#include <sys/stat.h>   // mkfifo

static char folder[200], path[240];

static void write_bytes(const void *data, size_t n) {
  FILE *f = fopen(path, "wb");
  CHECK(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

// A file of this header (given as text) and `data` bytes 0, 1, 2, ...
static void write_with_header(const char *header, size_t data) {
  Buffer b = {0};
  uint8_t length[8];
  store_u64le(length, strlen(header));
  buffer_append(&b, length, 8);
  buffer_append(&b, header, strlen(header));
  for (size_t i = 0; i < data; i++) buffer_append(&b, &(char){(char)i}, 1);
  write_bytes(b.data, b.len);
  buffer_free(&b);
}

static uint32_t bits_of(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

// The bytes below were put together by hand from the format's description.
static void writes_the_format(void) {
  const SafeEntry entries[] = {{"a.b", SAFE_F32, 2, {1, 2}}, {"s", SAFE_F64, 0, {0}}, {"z", SAFE_F32, 2, {0, 3}}};   // the last one has no elements
  const SafeMetadata metadata[] = {{"format", "pt"}, {"q", "\"\n"}};
  Buffer b = {0};
  safetensors_header(&b, entries, 3, metadata, 2);
  const char *text = "{\"__metadata__\":{\"format\":\"pt\",\"q\":\"\\\"\\n\"},\n"
                     "\"a.b\":{\"dtype\":\"F32\",\"shape\":[1, 2],\"data_offsets\":[0,8]},\n"
                     "\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[8,16]},\n"
                     "\"z\":{\"dtype\":\"F32\",\"shape\":[0, 3],\"data_offsets\":[16,16]}}";
  size_t padded = round_up(strlen(text), 8);
  CHECK_EQ(b.len, 8 + padded);
  CHECK_EQ(load_u64le((uint8_t *)b.data), padded);
  CHECK(memcmp(b.data + 8, text, strlen(text)) == 0);
  for (size_t i = 8 + strlen(text); i < b.len; i++) CHECK(b.data[i] == ' ');
  uint8_t data[16], expected[16] = {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0xe0, 0x3f};
  safetensors_pack(data, (double[]){1, -2}, 2, SAFE_F32);
  safetensors_pack(data + 8, (double[]){0.5}, 1, SAFE_F64);
  CHECK(memcmp(data, expected, 16) == 0);

  buffer_append(&b, data, 16);
  write_bytes(b.data, b.len);
  Refusal why = {0};
  Safetensors *s = safetensors_open(path, &why);
  CHECK_MSG(s != NULL, "%s", why.line.data);
  if (!s) return;
  Buffer without = {0};                    // metadata
  safetensors_header(&without, entries, 2, NULL, 0);
  CHECK_STR(without.data + 8, "{\n\"a.b\":{\"dtype\":\"F32\",\"shape\":[1, 2],\"data_offsets\":[0,8]},\n\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[8,16]}}      ");
  buffer_free(&without);
  CHECK_EQ(s->count, 3);
  CHECK_EQ(s->tensors[2].elements, 0);
  CHECK_STR(s->tensors[0].name, "a.b");
  CHECK(s->tensors[0].type == SAFE_F32 && s->tensors[0].dims == 2 && s->tensors[0].shape[1] == 2 && s->tensors[0].elements == 2);
  CHECK(safetensors_find(s, "s") == &s->tensors[1] && safetensors_find(s, "t") == NULL && s->tensors[1].elements == 1);
  CHECK_STR(safetensors_metadata(s, "q"), "\"\n");
  CHECK(safetensors_metadata(s, "r") == NULL);
  double x[2];
  CHECK(safetensors_read(s, &s->tensors[0], 0, 2, x) && x[0] == 1 && x[1] == -2);
  CHECK(safetensors_read(s, &s->tensors[1], 0, 1, x) && x[0] == 0.5);
  CHECK(!safetensors_read(s, &s->tensors[0], 1, 2, x));  // outside the tensor
  CHECK(safetensors_read(s, &s->tensors[0], 2, 0, x));   // nothing, at its end
  CHECK(fcntl(s->fd, F_GETFD) & FD_CLOEXEC);
  CHECK(!safetensors_read(s, &s->tensors[0], -1, 1, x) && !safetensors_read(s, &s->tensors[0], 3, 0, x));
  safetensors_close(s);
  buffer_free(&b);
}

// What every type is called and takes, and what a header cannot say.
static void types_and_sizes(void) {
  static const struct { const char *name; size_t size; } expected[SAFE_TYPES] = {
    [SAFE_F64] = {"F64", 8}, [SAFE_F32] = {"F32", 4}, [SAFE_F16] = {"F16", 2}, [SAFE_BF16] = {"BF16", 2}, [SAFE_F8_E5M2] = {"F8_E5M2", 1}, [SAFE_F8_E4M3] = {"F8_E4M3", 1}, [SAFE_I64] = {"I64", 8},
    [SAFE_I32] = {"I32", 4}, [SAFE_I16] = {"I16", 2}, [SAFE_I8] = {"I8", 1}, [SAFE_U64] = {"U64", 8}, [SAFE_U32] = {"U32", 4}, [SAFE_U16] = {"U16", 2}, [SAFE_U8] = {"U8", 1}, [SAFE_BOOL] = {"BOOL", 1}};
  for (int type = 0; type < SAFE_TYPES; type++) {
    CHECK_STR(safe_type_name((SafeType)type), expected[type].name);
    CHECK_EQ(safe_type_size((SafeType)type), expected[type].size);
  }
  Buffer text = {0};
  safe_shape_text(&text, 8, (const int64_t[]){INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, 1});
  CHECK_STR(text.data, "[9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 9223372036854775807, 1]");
  text.len = 0;
  safe_shape_text(&text, 0, NULL);
  CHECK_STR(text.data, "[]");
  buffer_free(&text);
  const SafeEntry large = {"large", SAFE_F32, 2, {(int64_t)1 << 61, 2}}, negative = {"negative", SAFE_F32, 1, {-1}}, halves[] = {{"one", SAFE_U8, 1, {(int64_t)1 << 62}}, {"other", SAFE_U8, 1, {(int64_t)1 << 62}}};
  EXPECT_FAIL(EXIT_MACHINE, "tensor large: its size overflows", { Buffer b = {0}; safetensors_header(&b, &large, 1, NULL, 0); });
  EXPECT_FAIL(EXIT_MACHINE, "tensor negative: its size overflows", { Buffer b = {0}; safetensors_header(&b, &negative, 1, NULL, 0); });
  EXPECT_FAIL(EXIT_MACHINE, "tensor other: the file's size overflows", { Buffer b = {0}; safetensors_header(&b, halves, 2, NULL, 0); });
  Buffer most = {0};
  safetensors_header(&most, halves, 1, NULL, 0);
  CHECK(strstr(most.data + 8, "[0,4611686018427387904]"));
  buffer_free(&most);
  EXPECT_FAIL(EXIT_MACHINE, "tensors are written as F32 or F64, not as BF16", { uint8_t bytes[8]; safetensors_pack(bytes, (double[]){1}, 1, SAFE_BF16); });
}

// The value of a half by its definition, sign * 2^e * 1.f, in exact double arithmetic.
static double half_by_definition(unsigned bits, int exponent_bits, int fraction_bits) {
  int bias = (1 << (exponent_bits - 1)) - 1, all = (1 << exponent_bits) - 1;
  int exponent = (int)(bits >> fraction_bits) & all, fraction = (int)(bits & ((1u << fraction_bits) - 1));
  double sign = bits >> 15 ? -1 : 1;
  if (exponent == all) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * ldexp(fraction, 1 - bias - fraction_bits);
  return sign * ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

// All 65,536 values of both 16-bit types, through a file, into float and double.
static void converts_every_half(void) {
  static double wide[65536];
  static float narrow[65536];
  for (int type = SAFE_F16; type <= SAFE_BF16; type++) {
    SafeEntry entry = {"h", (SafeType)type, 1, {65536}};
    Buffer b = {0};
    Refusal why = {0};
    safetensors_header(&b, &entry, 1, NULL, 0);
    for (unsigned i = 0; i < 65536; i++) buffer_append(&b, (uint8_t[]){(uint8_t)i, (uint8_t)(i >> 8)}, 2);
    write_bytes(b.data, b.len);
    buffer_free(&b);
    Safetensors *s = safetensors_open(path, &why);
    CHECK_MSG(s != NULL, "%s", why.line.data);
    if (!s) return;
    CHECK(safetensors_read(s, s->tensors, 0, 65536, wide) && safetensors_read_float(s, s->tensors, 0, 65536, narrow));
    for (unsigned i = 0; i < 65536; i++) {
      double expected = type == SAFE_F16 ? half_by_definition(i, 5, 10) : half_by_definition(i, 8, 7);
      float direct = type == SAFE_F16 ? float_of_f16((uint16_t)i) : float_of_bf16((uint16_t)i);
      if (isnan(expected)) {
        CHECK_MSG(isnan(wide[i]) && isnan(narrow[i]) && isnan(direct), "%04x", i);
      } else {
        CHECK_MSG(wide[i] == expected && (double)narrow[i] == expected && (double)direct == expected, "%04x: %g", i, wide[i]);
        CHECK_MSG(!signbit(wide[i]) == !signbit(expected) && !signbit(direct) == !signbit(expected), "%04x: sign", i);
      }
    }
    safetensors_close(s);
  }
}

// Floats of every kind come back with their bits; doubles into float round to nearest even.
static void keeps_floats(void) {
  enum { N = 30000 };  // more than the reader's piece of 32 KiB
  static double x[N], y[N];
  static float z[N];
  static uint8_t packed[8 * N];
  uint32_t bits = 1;
  for (size_t i = 0; i < N; i++) {
    do bits = bits * 1664525u + 1013904223u; while ((bits >> 23 & 255) == 255);  // no infinity, no NaN
    float f;
    memcpy(&f, &bits, 4);
    x[i] = (double)f;
  }
  x[0] = 0x1p-149;
  x[1] = -0.0;
  x[2] = INFINITY;
  for (int wide = 0; wide <= 1; wide++) {
    SafeEntry entry = {"x", wide ? SAFE_F64 : SAFE_F32, 2, {N / 10, 10}};
    Buffer b = {0};
    Refusal why = {0};
    safetensors_header(&b, &entry, 1, NULL, 0);
    safetensors_pack(packed, x, N, entry.type);
    buffer_append(&b, packed, N * safe_type_size(entry.type));
    write_bytes(b.data, b.len);
    buffer_free(&b);
    Safetensors *s = safetensors_open(path, &why);
    CHECK_MSG(s != NULL, "%s", why.line.data);
    if (!s) return;
    CHECK(safetensors_read(s, s->tensors, 0, N, y) && memcmp(x, y, sizeof x) == 0);
    CHECK(safetensors_read_float(s, s->tensors, 0, N, z));
    for (size_t i = 0; i < N; i++) CHECK(bits_of(z[i]) == bits_of((float)x[i]));
    for (size_t start = 0; start < N; start += 777) {  // pieces that begin and end anywhere
      size_t n = MIN((size_t)9000, N - start);
      CHECK(safetensors_read(s, s->tensors, (int64_t)start, n, y) && memcmp(x + start, y, n * 8) == 0);
    }
    safetensors_close(s);
  }
  uint8_t rounded[12];
  safetensors_pack(rounded, (double[]){1 + 0x1p-24, 1 + 0x1.8p-23, 0x1p-150}, 3, SAFE_F32);
  CHECK_EQ(load_u32le(rounded), 0x3f800000);      // a tie goes to even, downwards
  CHECK_EQ(load_u32le(rounded + 4), 0x3f800002);  // and upwards
  CHECK_EQ(load_u32le(rounded + 8), 0);           // half of the least subnormal
}

static void is_refused(const char *header, size_t data, const char *reason) {
  write_with_header(header, data);
  Refusal why = {0};
  Safetensors *s = safetensors_open(path, &why);
  CHECK_MSG(s == NULL, "accepted: %s", header);
  CHECK_MSG(why.line.data && strstr(why.line.data, reason), "\"%s\" lacks \"%s\"", why.line.data ? why.line.data : "", reason);
  CHECK_MSG(s || (why.line.data && !strncmp(why.line.data, path, strlen(path))), "the path is missing");
  safetensors_close(s);
  buffer_free(&why.line);
}

#define ONE(dtype, shape, offsets) "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static void refuses_wrong_headers(void) {
  is_refused("", 0, "does not begin with {");
  is_refused("[]", 0, "does not begin with {");
  is_refused(" {}", 0, "does not begin with {");
  is_refused("{", 0, "header is wrong");
  is_refused("{}x", 0, "header is wrong");
  is_refused("{\"x\":1}", 0, "is not {dtype, shape, data_offsets}");
  is_refused("{\"x\":[1,2,3]}", 0, "is not {dtype, shape, data_offsets}");
  is_refused("{\"x\":{\"dtyp\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "is not {dtype");
  is_refused("{\"x\":{\"dtype\":\"F32\",\"shap\":[1],\"data_offsets\":[0,4]}}", 4, "is not {dtype");
  is_refused("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offset\":[0,4]}}", 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "[1]", "4"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "[1]", "{\"a\":0,\"b\":4}"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "{\"a\":1}", "[0,4]"), 4, "is not {dtype");
  is_refused(ONE("\"F64\"", "[9007199254740992,512]", "[0,4]"), 4, "more bytes than can be counted");
  is_refused("{\"__metadata__\":{\"a\":1}}", 0, "object of strings");
  is_refused("{\"__metadata__\":\"a\"}", 0, "object of strings");
  is_refused(ONE("\"F33\"", "[1]", "[0,4]"), 4, "unknown type F33");
  is_refused(ONE("4", "[1]", "[0,4]"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "1", "[0,4]"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "[1]", "[0]"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "[1]", "[0,4,8]"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "[1]", "[0,4],\"more\":1"), 4, "is not {dtype");
  is_refused(ONE("\"F32\"", "[-1]", "[0,4]"), 4, "dimension 0 is no size");
  is_refused(ONE("\"F32\"", "[1,1.5]", "[0,4]"), 4, "dimension 1 is no size");
  is_refused(ONE("\"F32\"", "[1e300]", "[0,4]"), 4, "dimension 0 is no size");
  is_refused(ONE("\"F32\"", "[\"1\"]", "[0,4]"), 4, "dimension 0 is no size");
  is_refused(ONE("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "has 9 dimensions, at most 8");
  is_refused(ONE("\"F32\"", "[4294967296,4294967296]", "[0,4]"), 4, "more bytes than can be counted");
  is_refused(ONE("\"F64\"", "[9007199254740992,1024]", "[0,4]"), 4, "more bytes than can be counted");
  is_refused(ONE("\"F32\"", "[4294967296,4294967296,0]", "[0,0]"), 0, "more bytes than can be counted");
  is_refused(ONE("\"F32\"", "[1]", "[0,-4]"), 4, "no range");
  is_refused(ONE("\"F32\"", "[1]", "[8,4]"), 8, "no range");
  is_refused(ONE("\"F32\"", "[1]", "[0,4.5]"), 4, "no range");
  is_refused(ONE("\"F32\"", "[2]", "[0,4]"), 4, "takes 4 bytes by its offsets, 8 by its shape and type");
  is_refused(ONE("\"F32\"", "[1]", "[4,8]"), 8, "begins at data byte 4, the header before it ends at 0");
  is_refused(ONE("\"F32\"", "[1]", "[0,4]"), 3, "4 data bytes, the file has 3: it is cut off");
  is_refused(ONE("\"F32\"", "[1]", "[0,4]"), 5, "4 data bytes, the file has 5: something follows");
  is_refused(ONE("\"F32\"", "[1]", "[0,9007199254740992]"), 4, "bytes by its offsets");
#define TWO(a, b) \
  "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" a "},\"y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" b "}}"
  is_refused(TWO("[0,4]", "[2,6]"), 6, "tensor y begins at data byte 2, the tensor before it ends at 4");  // an overlap
  is_refused(TWO("[0,4]", "[0,4]"), 4, "begins at data byte 0, the tensor before it ends at 4");           // the same bytes
  is_refused(TWO("[5,9]", "[0,4]"), 9, "tensor x begins at data byte 5, the tensor before it ends at 4");  // a hole
  is_refused("{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
             "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2,
             "stands twice");
  is_refused("{\"x\\u0000y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "holds a NUL");
}

static void refuses_what_is_no_file(void) {
  Refusal why = {0};
  for (size_t n = 0; n < 8; n++) {
    write_bytes("\2\0\0\0\0\0\0", n);
    CHECK(safetensors_open(path, &why) == NULL);
  }
  write_bytes("\0\0\0\0\0\0\0\0", 8);
  why.line.len = 0;
  CHECK(safetensors_open(path, &why) == NULL && strstr(why.line.data, "the header does not begin with {"));
  const uint64_t lengths[] = {3, 9, (uint64_t)1 << 32, UINT64_MAX, UINT64_MAX - 7, INT64_MAX, (8 << 20) + 1};
  for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
    uint8_t bytes[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    store_u64le(bytes, lengths[i]);
    write_bytes(bytes, sizeof bytes);
    why.line.len = 0;
    CHECK(safetensors_open(path, &why) == NULL);
    CHECK_MSG(strstr(why.line.data, "at most 2 fit") != NULL, "%s", why.line.data);
  }
  uint8_t nine_mib[8];
  store_u64le(nine_mib, 9 << 20);
  write_bytes(nine_mib, 8);
  CHECK(truncate(path, 10 << 20) == 0);
  why.line.len = 0;
  CHECK(safetensors_open(path, &why) == NULL && strstr(why.line.data, "a header of 9437184 bytes, at most 8388608 fit"));
  why.line.len = 0;
  CHECK(safetensors_open(folder, &why) == NULL && strstr(why.line.data, "is no regular file"));
  remove(path);
  why.line.len = 0;
  CHECK(safetensors_open(path, &why) == NULL && strstr(why.line.data, "No such file") && !why.machine);
  why.line.len = 0;
  CHECK(mkfifo(path, 0600) == 0);  // a pipe that nobody writes must not hang the reader
  CHECK(safetensors_open(path, &why) == NULL && strstr(why.line.data, "is no regular file"));
  remove(path);
  // what the machine does not give: the descriptor stands in, which cannot be read from
  write_bytes("\2\0\0\0\0\0\0\0{}", 10);
  why.line.len = 0;
  CHECK(safetensors_open_fd(open(path, O_WRONLY), path, &why) == NULL && strstr(why.line.data, "cannot be read: Bad file descriptor") && why.machine);
  buffer_free(&why.line);
}

#define EMPTY(offsets) "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":" offsets "}"
#define TWO_EMPTY "{\"x\":" EMPTY("[0,0]") ",\"y\":" EMPTY("[0,0]") "}"

static void accepts_the_unusual(void) {
  const char *const headers[] = {
    "{}", "{}   ", "{\"__metadata__\":{}}",
    TWO_EMPTY, ONE("\"F32\"", "[0]", "[0,0]"), ONE("\"F32\"", "[3,0,5]", "[0,0]"),
    "{ \"x\" : { \"data_offsets\":[0,0], \"shape\":[0,1,1,1,1,1,1,1], \"dtype\":\"BOOL\" } }\n"};
  for (size_t i = 0; i < ARRAY_LEN(headers); i++) {
    write_with_header(headers[i], 0);
    Refusal why = {0};
    Safetensors *s = safetensors_open(path, &why);
    CHECK_MSG(s != NULL, "%s", why.line.data);
    safetensors_close(s);
  }
  write_with_header("{\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"y\":" EMPTY("[0,0]") "}", 4);
  Refusal none = {0};
  Safetensors *empty_last = safetensors_open(path, &none);  // an empty tensor where another one begins
  CHECK_MSG(empty_last != NULL, "%s", none.line.data);
  safetensors_close(empty_last);
  write_with_header(TWO("[4,8]", "[0,4]"), 8);  // the order of the header is not that of the bytes
  Refusal why = {0};
  Safetensors *s = safetensors_open(path, &why);
  float f;
  double d;
  CHECK(s && safetensors_read_float(s, safetensors_find(s, "x"), 0, 1, &f) && bits_of(f) == 0x07060504);
  CHECK(s && !safetensors_read(s, safetensors_find(s, "y"), 0, 1, &d));  // bytes are no numbers
  safetensors_close(s);
}

static uint32_t random_state;
static uint32_t random_below(uint32_t n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (uint32_t)((uint64_t)(random_state >> 8) * n >> 24);
}

// One to four random changes of a good file: flipped bits, numbers in the header, bytes taken out, put in, cut off.
static void mutate(Buffer *b) {
  static const char *const pieces[] = {"9", "-", "0", "18446744073709551615", "{", "}", "]", "\"", ",", "1e9", "\\u0000", "\xff"};
  for (uint32_t changes = 1 + random_below(4); changes > 0 && b->len > 0; changes--) {
    size_t at = random_below((uint32_t)b->len);
    const char *piece = pieces[random_below(ARRAY_LEN(pieces))];
    switch (random_below(5)) {
      case 0: b->data[at] ^= (char)(1 << random_below(8)); break;
      case 1: b->data[at] = piece[0]; break;
      case 2: memmove(b->data + at, b->data + at + 1, b->len - at - 1); b->len--; break;
      case 3: b->len = at; break;
      default: {
        Buffer longer = {0};
        buffer_append(&longer, b->data, at);
        buffer_append(&longer, piece, strlen(piece));
        buffer_append(&longer, b->data + at, b->len - at);
        buffer_free(b);
        *b = longer;
        if (random_below(2) && b->len >= 8) store_u64le((uint8_t *)b->data, load_u64le((uint8_t *)b->data) + strlen(piece));
      }
    }
  }
}

// No mutation crashes; whatever is accepted obeys the promises of the reader.
static void survives_mutations(void) {
  enum { FILES = 3000 };
  const SafeEntry entries[] = {
    {"wte", SAFE_F32, 2, {2, 3}}, {"h.0.b", SAFE_BF16, 1, {4}}, {"h.1.b", SAFE_F16, 1, {1}}, {"s", SAFE_F64, 0, {0}}, {"z", SAFE_F32, 2, {0, 3}}};   // the last one has no elements
  int accepted = 0;
  for (random_state = 1; random_state <= FILES;) {
    uint32_t seed = random_state;
    Buffer b = {0};
    Refusal why = {0};
    safetensors_header(&b, entries, 4, &(SafeMetadata){"format", "pt"}, 1);
    for (int i = 0; i < 42; i++) buffer_append(&b, &(char){(char)i}, 1);
    mutate(&b);
    write_bytes(b.data, b.len);
    Safetensors *s = safetensors_open(path, &why);
    CHECK_MSG((s == NULL) == (why.line.len > 0), "seed %u", seed);
    for (size_t i = 0; s && i < s->count; i++) {
      const SafeTensor *t = &s->tensors[i];
      double values[64];
      CHECK_MSG(t->offset >= 8 && t->offset + t->elements * (int64_t)safe_type_size(t->type) <= s->size, "seed %u", seed);
      if (t->elements <= 64) CHECK(safetensors_read(s, t, 0, (size_t)t->elements, values) == safe_type_is_read(t->type));
    }
    accepted += s != NULL;
    safetensors_close(s);
    buffer_free(&b);
    buffer_free(&why.line);
    random_state = seed + 1;
  }
  CHECK_MSG(accepted > 10 && accepted < FILES / 2, "%d of %d accepted: the mutations test nothing", accepted, (int)FILES);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  test_folder(folder, sizeof folder, "safetensors");
  snprintf(path, sizeof path, "%s/x.safetensors", folder);
  RUN(writes_the_format);
  RUN(types_and_sizes);
  RUN(converts_every_half);
  RUN(keeps_floats);
  RUN(refuses_wrong_headers);
  RUN(refuses_what_is_no_file);
  RUN(accepts_the_unusual);
  RUN(survives_mutations);
  remove_tree(folder);
  return TEST_END();
}
