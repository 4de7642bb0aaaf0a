// test_json.c: owns the checks of json.c and utf8.h: what is valid is read exactly, what is not is refused with its place.
#include "../json.h"
#include "../utf8.h"
#include "guard_heap.h"
#include "test.h"

static char error[200];

static Json *parse(const char *text) { return json_parse(text, strlen(text), error, sizeof error); }

// The text is refused, with this message.
static void refused(const char *text, size_t size, const char *message) {
  Json *j = json_parse(text, size, error, sizeof error);
  CHECK_MSG(j == NULL, "accepted: %.60s", text);
  CHECK_STR(error, message);
  json_free(j);
  j = json_parse(text, size, NULL, 0);   // nor where nobody wants to know why
  CHECK_MSG(j == NULL, "accepted without room for the reason: %.60s", text);
  json_free(j);
}

#define REFUSED(text, message) refused(text, sizeof(text) - 1, message)

static void reads_values(void) {
  Json *j = parse(" {\"a\": [1, -2.5e3, true, false, null, \"x\"],\n \"\": {\"b\": {}}, \"n\": [ ]}\r\n\t");
  CHECK(j && j->type == JSON_OBJECT && j->length == 3);
  if (!j) return;
  const Json *a = json_get(j, "a");
  CHECK(a && a->type == JSON_ARRAY && a->length == 6 && a->line == 1);
  CHECK(a->items[0]->number == 1 && a->items[1]->number == -2500);
  CHECK(a->items[2]->type == JSON_BOOL && a->items[2]->number == 1 && a->items[3]->number == 0);
  CHECK(a->items[4]->type == JSON_NULL);
  CHECK(a->items[5]->type == JSON_STRING && a->items[5]->length == 1);
  CHECK(json_get(j, "")->line == 2);
  CHECK(json_get(json_get(json_get(j, ""), "b"), "c") == NULL);
  CHECK(json_get(j, "n")->length == 0);
  CHECK(json_get(a, "a") == NULL && json_get(NULL, "a") == NULL);
  json_free(j);
}

static void reads_strings(void) {
  Json *j = parse("[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\", \"\\u0041\\u00e9\\u20ac\\ud83d\\uDE00\", \"a\\u0000b\", \"\xc3\xa9\xf0\x9f\x98\x80\"]");
  CHECK(j != NULL);
  if (!j) return;
  CHECK_STR(j->items[0]->string, "\"\\/\b\f\n\r\t");
  CHECK_STR(j->items[1]->string, "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(j->items[2]->length == 3 && memcmp(j->items[2]->string, "a\0b", 4) == 0);
  CHECK_STR(j->items[3]->string, "\xc3\xa9\xf0\x9f\x98\x80");
  json_free(j);
  j = parse("[\"\\u09af\\u09AF\\ufFFf\\ud7ff\\uE000\\ud800\\udc00\\udbff\\udfff\\u1234\\u5678\\u0bcd\\u0BCD \x7f\"]");   // every digit, the ends of every range
  CHECK(j != NULL);
  if (!j) return;
  CHECK_STR(j->items[0]->string, "\xe0\xa6\xaf\xe0\xa6\xaf\xef\xbf\xbf\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\xe1\x88\xb4\xe5\x99\xb8\xe0\xaf\x8d\xe0\xaf\x8d \x7f");
  json_free(j);
}

static void reads_numbers(void) {
  static const char *const texts[] = {"0", "-0", "1", "123456789012345", "1234567890123456", "0.1", "1e-7", "1E+2", "-3.25",
                                      "1.7976931348623157e308", "4.9e-324", "1e-999", "9007199254740993", "0.30000000000000004"};
  for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
    Json *j = parse(texts[i]);
    CHECK_MSG(j && j->type == JSON_NUMBER, "%s: %s", texts[i], error);
    double expected = strtod(texts[i], NULL);
    CHECK_MSG(j && memcmp(&j->number, &expected, 8) == 0, "%s", texts[i]);
    json_free(j);
  }
  char longer[3000];  // more digits than any buffer of fixed size
  memset(longer, '1', sizeof longer);
  memcpy(longer, "0.", 2);
  longer[sizeof longer - 1] = 0;
  Json *j = parse(longer);
  CHECK(j && j->number == 1.0 / 9);
  json_free(j);
}

static void refuses_syntax(void) {
  REFUSED("", "the JSON text ends where a value is expected at line 1, column 1");
  REFUSED("  \n ", "the JSON text ends where a value is expected at line 2, column 2");
  REFUSED("[1,]", "']' where a value is expected at line 1, column 4");
  REFUSED("[1 2]", "'2' where ',' or ']' is expected at line 1, column 4");
  REFUSED("[1", "the JSON text ends where ',' or ']' is expected at line 1, column 3");
  REFUSED("{\"a\":1,}", "'}' where a key in quotes is expected at line 1, column 8");
  REFUSED("{\"a\" 1}", "'1' where ':' is expected at line 1, column 6");
  REFUSED("{\"a\":}", "'}' where a value is expected at line 1, column 6");
  REFUSED("{a:1}", "'a' where a key in quotes is expected at line 1, column 2");
  REFUSED("{\"a\":1]", "']' where ',' or '}' is expected at line 1, column 7");
  REFUSED("{\"a\":1,\"b", "a string without its closing quote at line 1, column 8");
  REFUSED("1 1", "'1' where the end of the text is expected at line 1, column 3");
  REFUSED("1\0", "byte 0x00 where the end of the text is expected at line 1, column 2");
  REFUSED("tru", "'t' where a value is expected at line 1, column 1");
  REFUSED("NaN", "'N' where a value is expected at line 1, column 1");
  REFUSED("'a'", "''' where a value is expected at line 1, column 1");
  REFUSED("\xef\xbb\xbf{}", "byte 0xef where a value is expected at line 1, column 1");
  REFUSED("// x\n1", "'/' where a value is expected at line 1, column 1");
  REFUSED("- 1", "byte 0x20 where a digit is expected at line 1, column 2");
  REFUSED("\x7f", "byte 0x7f where a value is expected at line 1, column 1");
  REFUSED("~", "'~' where a value is expected at line 1, column 1");
  REFUSED("!", "'!' where a value is expected at line 1, column 1");
  REFUSED("{\"a\":1,\n\"b\":2,\n\"a\":3}", "key \"a\" stands twice in one object, again at line 3");
}

// Nothing is read behind the text: whatever stands there, the result is the same.
static void ends_where_the_text_ends(void) {
  static const char *const texts[] = {"1", "-", "0", "1.", "1.5", "1e", "1e+", "1e5", "t", "tru", "true", "\"ab", "\"a\\", "\"a\\u12", "\"a\\ud83d", "\"a\\ud83d\\",
                                      "\"\xc3", "[", "[1", "[1,", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "", " ", "[]", "nul", "      tru", "[[[[nul"};
  static const char *const behind[] = {".5", "e5", "5", "+1", "\"", "]", "}", ",", ":", ":1}", " ", "e", "ue", "l", "\\ude00\"", "ude00\"", "34\"", "\xa9\"", "1]", "\"a\":1}", "n\""};
  for (size_t i = 0; i < ARRAY_LEN(texts); i++)
    for (size_t k = 0; k < ARRAY_LEN(behind); k++) {
      size_t n = strlen(texts[i]);
      char *longer = format("%s%s", texts[i], behind[k]), expected[sizeof error];
      Json *a = json_parse(texts[i], n, error, sizeof error);
      memcpy(expected, error, sizeof error);
      Json *b = json_parse(longer, n, error, sizeof error);
      CHECK_MSG(!a == !b && !strcmp(error, expected), "%s before %s: %s, expected %s", texts[i], behind[k], error, expected);
      CHECK(!a || !b || (a->type == b->type && !(a->number < b->number) && !(a->number > b->number)));
      json_free(a);
      json_free(b);
      free(longer);
    }
}

static void refuses_numbers_and_strings(void) {
  REFUSED("01", "a number with a leading zero at line 1, column 1");
  REFUSED("+1", "'+' where a value is expected at line 1, column 1");
  REFUSED("-", "the JSON text ends where a digit is expected at line 1, column 2");
  REFUSED("-a", "'a' where a digit is expected at line 1, column 2");
  REFUSED("1.", "the JSON text ends where a digit after the point is expected at line 1, column 3");
  REFUSED(".5", "'.' where a value is expected at line 1, column 1");
  REFUSED("1e", "the JSON text ends where a digit of the exponent is expected at line 1, column 3");
  REFUSED("1e+", "the JSON text ends where a digit of the exponent is expected at line 1, column 4");
  REFUSED("[1e999]", "a number beyond the range of a double at line 1, column 2");
  REFUSED("0x10", "'x' where the end of the text is expected at line 1, column 2");
  REFUSED("\"a", "a string without its closing quote at line 1, column 1");
  REFUSED("\"a\\", "a string without its closing quote at line 1, column 1");
  REFUSED("\"a\\\"", "a string without its closing quote at line 1, column 1");
  REFUSED("\"a\nb\"", "control character 0x0a inside a string at line 1, column 3");
  REFUSED("\"\\x41\"", "an escape that JSON does not have at line 1, column 2");
  REFUSED("\"\\u12g4\"", "\\u without four hexadecimal digits at line 1, column 2");
  REFUSED("\"\\u12\"", "\\u without four hexadecimal digits at line 1, column 2");
  REFUSED("\"\\udc00\"", "a lone low surrogate at line 1, column 2");
  REFUSED("\"\\ud800\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\\ud800\\n\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\\ud800\\ud800\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\\udfff\"", "a lone low surrogate at line 1, column 2");
  REFUSED("\"\\ud800\\udbff\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\\udbff\\ue000\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\\udbffxudc00\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\\udbff\\xdc00\"", "a lone high surrogate at line 1, column 2");
  REFUSED("\"\x1f\"", "control character 0x1f inside a string at line 1, column 2");
  REFUSED("\"\x80\"", "byte 0x80 that is not valid UTF-8 inside a string at line 1, column 2");
  REFUSED("\"\xff\"", "byte 0xff that is not valid UTF-8 inside a string at line 1, column 2");
  REFUSED("\"\xc0\x80\"", "byte 0xc0 that is not valid UTF-8 inside a string at line 1, column 2");
  REFUSED("\"\xed\xa0\x80\"", "byte 0xed that is not valid UTF-8 inside a string at line 1, column 2");
  REFUSED("\"\xf4\x90\x80\x80\"", "byte 0xf4 that is not valid UTF-8 inside a string at line 1, column 2");
  REFUSED("\"\xe2\x82\"", "byte 0xe2 that is not valid UTF-8 inside a string at line 1, column 2");
}

static void bounds_nesting(void) {
  enum { DEEP = 1 << 20 };
  char *text = malloc(2 * DEEP);
  memset(text, '[', DEEP);
  memset(text + DEEP, ']', DEEP);
  refused(text, 2 * DEEP, "values nested deeper than 64 at line 1, column 65");
  Json *j = json_parse(text + DEEP - 64, 128, error, sizeof error);
  CHECK(j != NULL);
  json_free(j);
  for (size_t i = 0; i < DEEP; i += 5) memcpy(text + i, "{\"a\":", 5 < DEEP - i ? 5 : DEEP - i);
  refused(text, 2 * DEEP, "values nested deeper than 64 at line 1, column 321");
  free(text);
}

// Every prefix of a valid text, and every text with one byte changed, is read or refused without a crash.
static void survives_damage(void) {
  static const char good[] = "{\"a\": [1.5e3, \"\\ud83d\\ude00\\n\xc3\xa9\", true, null], \"b\": {\"c\": -0.25}}";
  size_t n = sizeof good - 1;
  for (size_t cut = 0; cut < n; cut++) {
    char *copy = malloc(cut + 1);  // of exactly this size, so that a sanitizer sees a read behind it
    memcpy(copy, good, cut);
    CHECK_MSG(json_parse(copy, cut, error, sizeof error) == NULL, "prefix of %zu bytes accepted", cut);
    CHECK(strchr(error, '\n') == NULL && error[0] != 0);
    free(copy);
  }
  for (size_t at = 0; at < n; at++)
    for (int byte = 0; byte < 256; byte++) {
      char copy[sizeof good];
      memcpy(copy, good, n);
      copy[at] = (char)byte;
      error[0] = 'x', error[1] = 0;
      Json *j = json_parse(copy, n, error, sizeof error);
      CHECK_MSG((j == NULL) == (error[0] != 0), "byte %d at %zu: %s", byte, at, error);
      CHECK(strchr(error, '\n') == NULL);
      json_free(j);
    }
}

static void indexes_many_keys(void) {
  Buffer b = {0};
  buffer_append(&b, "{", 1);
  for (int i = 0; i < 50000; i++) buffer_printf(&b, "%s\"key %d\":%d", i ? "," : "", i, i);
  buffer_append(&b, "}", 1);
  Json *j = json_parse(b.data, b.len, error, sizeof error);
  CHECK_MSG(j && j->length == 50000, "%s", error);
  for (int i = 0; j && i < 50000; i += 7) {
    char key[32];
    snprintf(key, sizeof key, "key %d", i);
    CHECK(json_number(j, key, -1) == i);
  }
  CHECK(json_get(j, "key 50000") == NULL);
  json_free(j);
  buffer_free(&b);
}

// On a heap where nothing goes astray unseen: lists and objects of many lengths, every prefix of a text, room of any size for the reason.
static void stays_inside(void) {
  static const char good[] = "{\"a\": [1.5e3, \"\\ud83d\\ude00\\n\xc3\xa9\", true, null, -12345678901234567890.5], \"b\": {\"c\": -0.25, \"of eight\": \"12345678\", \"e\": 1234567890123456}}";
  const long before = guarded_blocks;
  guarded = true;
  for (int n = 0; n <= 40; n++) {
    Buffer b = {0};
    buffer_printf(&b, "[");
    for (int i = 0; i < n; i++) buffer_printf(&b, "%s%d", i ? "," : "", i);
    buffer_printf(&b, "]{");
    for (int i = 0; i < n; i++) buffer_printf(&b, "%s\"%d\":\"%d\"", i ? "," : "", i, i);
    buffer_printf(&b, "}");
    const size_t first = (size_t)(strchr(b.data, '{') - b.data);
    char *list = at_the_edge(b.data, first), *object = at_the_edge(b.data + first, b.len - first);
    Json *a = json_parse(list, first, error, sizeof error), *o = json_parse(object, b.len - first, error, sizeof error);
    CHECK(a && o && a->length == (size_t)n && o->length == (size_t)n);
    CHECK(o && json_get(o, "no") == NULL && json_get(o, "") == NULL && json_get(o, "40") == NULL);
    for (int i = 0; a && o && i < n; i++) {
      char text[16];
      snprintf(text, sizeof text, "%d", i);
      CHECK(a->items[i]->number == i);
      CHECK_STR(json_string(o, text, "none"), text);
    }
    json_free(a), json_free(o);
    free(list), free(object);
    buffer_free(&b);
  }
  for (size_t n = 0; n < sizeof good; n++) {
    char *text = at_the_edge(good, n), full[200];
    Json *j = json_parse(text, n, full, sizeof full);
    CHECK((j != NULL) == (n == sizeof good - 1));
    json_free(j);
    for (size_t room = 1; room < 80 && !j; room += 1 + n % 7) {
      char *reason = at_the_edge(good, room);
      CHECK(json_parse(text, n, reason, room) == NULL);
      CHECK_MSG(strlen(reason) == MIN(room - 1, strlen(full)) && !strncmp(reason, full, room - 1), "\"%s\" in room for %zu, \"%s\" in full", reason, room, full);
      free(reason);
    }
    free(text);
  }
  guarded = false;
  CHECK_EQ(guarded_blocks, before);   // all is given back, of texts that are refused too
}

// A key is shown in part and without what would disturb a terminal.
static void keys_are_shown_safely(void) {
  static const struct { const char *key, *shown; } rows[] = {
    {"a\x7f~ \xc3\xa9", "a?~ ??"}, {"1234567890123456789012345678901", "1234567890123456789012345678901"}, {"12345678901234567890123456789012", "12345678901234567890123456789012"},
    {"123456789012345678901234567890123", "12345678901234567890123456789012..."}, {"", ""}, {"\\u001f", "?"}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    char *text = format("{\"%s\":0,\n\"x y\":1,\"%s\":\n2}", rows[i].key, rows[i].key), *message = format("key \"%s\" stands twice in one object, again at line 3", rows[i].shown);
    refused(text, strlen(text), message);
    free(text), free(message);
  }
}

static void typed_reading(void) {
  Json *j = parse("{\"n\": 2.5, \"i\": 7, \"s\": \"x\", \"t\": true, \"f\": false, \"big\": 1e300}");
  int64_t i = -5;
  CHECK(json_number(j, "n", 1) == 2.5 && json_number(j, "s", 1) == 1 && json_number(j, "none", 3) == 3);
  CHECK_STR(json_string(j, "s", "y"), "x");
  CHECK_STR(json_string(j, "n", "y"), "y");
  CHECK(json_bool(j, "t", false) && !json_bool(j, "f", true) && json_bool(j, "n", true));
  CHECK(json_int(j, "i", 0, 7, &i) && i == 7 && json_int(j, "i", 7, 8, &i));
  i = -5;
  CHECK(!json_int(j, "i", 8, 9, &i) && !json_int(j, "i", 0, 6, &i) && !json_int(j, "n", 0, 9, &i));
  CHECK(!json_int(j, "big", INT64_MIN, INT64_MAX, &i) && !json_int(j, "s", 0, 9, &i) && !json_int(j, "none", 0, 9, &i));
  CHECK(i == -5);
  json_free(j);
  static const struct { const char *text; int64_t value; bool ok; } whole[] = {
    {"9007199254740992", 9007199254740992, true}, {"-9007199254740992", -9007199254740992, true}, {"9007199254740994", 0, false}, {"-9007199254740994", 0, false}, {"0.5", 0, false}, {"-1", -1, true}, {"-0", 0, true}};
  for (size_t k = 0; k < ARRAY_LEN(whole); k++) {
    char *text = format("{\"x\":%s}", whole[k].text);
    Json *one = parse(text);
    int64_t value = 77;
    CHECK_MSG(json_int(one, "x", INT64_MIN, INT64_MAX, &value) == whole[k].ok && value == (whole[k].ok ? whole[k].value : 77), "%s", whole[k].text);
    json_free(one);
    free(text);
  }
}

static void writes_strings(void) {
  Buffer b = {0};
  static const char raw[] = "\x1f\x80" "a\"\\\n\t\r\x01\x7f \xc3\xa9\xf0\x9f\x98\x80\xff\xc3\0z";
  json_write_string(&b, raw, sizeof raw - 1);
  CHECK_STR(b.data, "\"\\u001f\xef\xbf\xbd" "a\\\"\\\\\\n\\t\\r\\u0001\x7f \xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbd\xef\xbf\xbd\\u0000z\"");
  Json *j = json_parse(b.data, b.len, error, sizeof error);
  static const char back[] = "\x1f\xef\xbf\xbd" "a\"\\\n\t\r\x01\x7f \xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbd\xef\xbf\xbd\0z";
  CHECK(j && j->length == sizeof back - 1 && memcmp(j->string, back, sizeof back) == 0);
  json_free(j);
  buffer_free(&b);
}

static void writes_numbers(void) {
  static const struct { double x; const char *text; } rows[] = {
      {0, "0"}, {-0.0, "-0.0"}, {1, "1"}, {-17, "-17"}, {0.1, "0.1"}, {4.9406564584124654e-324, "5e-324"}, {1e-5, "1e-05"}, {1e15, "1e+15"}, {123456789012345,
                                                                                                         "123456789012345"},
      {0.1 + 0.2, "0.30000000000000004"}, {1.0 / 3, "0.3333333333333333"}, {INFINITY, "null"}, {-INFINITY, "null"}, {NAN, "null"}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    Buffer b = {0};
    json_write_number(&b, rows[i].x);
    CHECK_STR(b.data, rows[i].text);
    buffer_free(&b);
  }
  uint64_t state = 1;
  for (int i = 0; i < 20000; i++) {  // any bits that are a finite double read back to the same bits
    state = state * 6364136223846793005u + 1442695040888963407u;
    uint64_t bits = state ^ state >> 31;
    double x;
    memcpy(&x, &bits, 8);
    if (!isfinite(x)) continue;
    Buffer b = {0};
    json_write_number(&b, x);
    Json *j = json_parse(b.data, b.len, error, sizeof error);
    CHECK_MSG(j && memcmp(&j->number, &x, 8) == 0, "%s: %s", b.data, error);
    json_free(j);
    buffer_free(&b);
  }
}

// Every code point encodes to what decodes to it; every pair and triple of bytes decodes to what encodes to them, or not at all.
static void utf8(void) {
  for (uint32_t code = 0; code < 0x110000; code++) {
    if (code >= 0xd800 && code < 0xe000) continue;
    char bytes[4];
    uint32_t back = 0;
    int n = utf8_encode(code, bytes);
    bool ok = utf8_decode(bytes, (size_t)n,
                          &back) == n && back == code && (n == 1 || utf8_decode(bytes, (size_t)n - 1, &back) == 0);
    CHECK_MSG(ok, "code point %u", code);
  }
  long valid = 0;
  for (uint32_t first = 0x80; first < 256; first++)
    for (uint32_t rest = 0; rest < 1 << 16; rest++) {
      char bytes[4] = {(char)first, (char)(rest >> 8), (char)rest, (char)0x80}, back[4];
      uint32_t code;
      int n = utf8_decode(bytes, 4, &code);
      if (n == 0) continue;
      valid++;
      CHECK_MSG(utf8_encode(code, back) == n && memcmp(bytes, back, (size_t)n) == 0, "%02x %04x", first, rest);
    }
  // 30 * 64 two-byte characters, each with 256 third bytes; 61440 of three bytes; (2^20 / 64) prefixes of four.
  CHECK_EQ(valid, 30 * 64 * 256 + (65536 - 2048 - 2048) + (1 << 20) / 64);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(reads_values);
  RUN(reads_strings);
  RUN(reads_numbers);
  RUN(refuses_syntax);
  RUN(ends_where_the_text_ends);
  RUN(refuses_numbers_and_strings);
  RUN(bounds_nesting);
  RUN(survives_damage);
  RUN(indexes_many_keys);
  RUN(stays_inside);
  RUN(keys_are_shown_safely);
  RUN(typed_reading);
  RUN(writes_strings);
  RUN(writes_numbers);
  RUN(utf8);
  return TEST_END();
}
