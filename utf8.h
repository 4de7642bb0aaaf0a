// utf8.h: owns the decoding of one UTF-8 character (RFC 3629). Plumbing, for untrusted bytes.
// Tests: tests/test_json.c, tests/test_tokenizer.c
#pragma once
#include <stddef.h>  // size_t
#include <stdint.h>  // uint8_t, uint32_t

// Length in bytes (1 to 4) of the valid UTF-8 character at s, and *code = its code point; 0 where the bytes are none:
// a stray continuation byte, an overlong form, a surrogate, a value past U+10FFFF, or cut off by the end (n bytes).
static inline int utf8_decode(const char *text, size_t n, uint32_t *code) {
  const uint8_t *s = (const uint8_t *)text;
  if (n == 0) return 0;
  if (s[0] < 0x80) { *code = s[0]; return 1; }
  if (s[0] < 0xc2) return 0;  // continuation byte, or a two-byte form of an ASCII character
  if (s[0] < 0xe0) {
    if (n < 2 || (s[1] & 0xc0) != 0x80) return 0;
    *code = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    return 2;
  }
  if (s[0] < 0xf0) {
    if (n < 3 || (s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80) return 0;
    uint32_t c = (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    if (c < 0x800 || (c >= 0xd800 && c <= 0xdfff)) return 0;
    *code = c;
    return 3;
  }
  if (s[0] > 0xf4 || n < 4 || (s[1] & 0xc0) != 0x80 || (s[2] & 0xc0) != 0x80 || (s[3] & 0xc0) != 0x80) return 0;
  uint32_t c = (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 | (uint32_t)(s[2] & 0x3f) << 6 | (s[3] & 0x3f);
  if (c < 0x10000 || c > 0x10ffff) return 0;
  *code = c;
  return 4;
}

// Writes the UTF-8 of a code point (below 0x110000, no surrogate) to out; returns its length, 1 to 4.
static inline int utf8_encode(uint32_t code, char out[4]) {
  if (code < 0x80) { out[0] = (char)code; return 1; }
  if (code < 0x800) {
    out[0] = (char)(0xc0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3f));
    return 2;
  }
  if (code < 0x10000) {
    out[0] = (char)(0xe0 | code >> 12);
    out[1] = (char)(0x80 | (code >> 6 & 0x3f));
    out[2] = (char)(0x80 | (code & 0x3f));
    return 3;
  }
  out[0] = (char)(0xf0 | code >> 18);
  out[1] = (char)(0x80 | (code >> 12 & 0x3f));
  out[2] = (char)(0x80 | (code >> 6 & 0x3f));
  out[3] = (char)(0x80 | (code & 0x3f));
  return 4;
}
