// safetensors.h: the safetensors format, both ways: a header for tensors that are then streamed, and a reader for
// files that nobody vouches for. Plumbing: knows nothing of models.
//
// A file is: 8 bytes of little-endian header length, the header (a JSON object: tensor name -> dtype, shape,
// data_offsets; "__metadata__" -> strings), then the tensors' bytes without gaps. Format:
// https://github.com/huggingface/safetensors#format
//
// The reader never maps and never trusts: the header is bounded by the file's size and by 8 MiB, offsets must cover
// the data exactly (no hole, no overlap), bytes must equal shape times element size, no product may overflow. It does
// not end the process: it returns NULL and a one-line reason, so that the caller can fall back or refuse.
// Tests: tests/test_safetensors.c
#pragma once
#include "bf16.h"  // float_of_bf16
#include "json.h"  // Json: the parsed header
#include "util.h"  // Buffer, Refusal, bool, sizes

typedef enum {
  SAFE_F64, SAFE_F32, SAFE_F16, SAFE_BF16, SAFE_F8_E5M2, SAFE_F8_E4M3,
  SAFE_I64, SAFE_I32, SAFE_I16, SAFE_I8, SAFE_U64, SAFE_U32, SAFE_U16, SAFE_U8, SAFE_BOOL, SAFE_TYPES
} SafeType;
enum { SAFE_MAX_DIMS = 8 };

const char *safe_type_name(SafeType type);  // "F32"
size_t safe_type_size(SafeType type);       // bytes of one element

// ---- writing ----
typedef struct {
  const char *name;
  SafeType type;
  int dims;
  int64_t shape[SAFE_MAX_DIMS];  // row-major; dims 0: one element
} SafeEntry;
typedef struct { const char *key, *value; } SafeMetadata;

// Appends length and header for these tensors, in this order, to out; then the caller writes their bytes one after the
// other, nothing between them. The header is padded with blanks so that the data begins at a multiple of 8.
// Metadata keys and entry names must be distinct and valid UTF-8.
void safetensors_header(Buffer *out, const SafeEntry *entries, size_t count, const SafeMetadata *metadata, size_t metadata_count);
// dst = n elements of src as little-endian F32 (rounded to nearest even) or F64; dst holds n * safe_type_size(type).
void safetensors_pack(uint8_t *dst, const double *src /* (n) */, size_t n, SafeType type);

// ---- reading ----
typedef struct {
  const char *name;              // points into the header
  SafeType type;
  int dims;
  int64_t shape[SAFE_MAX_DIMS];
  int64_t elements;              // product of the shape
  int64_t offset;                // of its first byte, from the start of the file
} SafeTensor;
typedef struct {
  int fd;                        // owned: closed by safetensors_close
  char *path;                    // for messages
  int64_t size;                  // of the file
  SafeTensor *tensors;           // in the order of the header
  size_t count;
  Json *header;
} Safetensors;

// Checks everything that the header says. NULL: one line that begins with the path was appended to why.
// _fd takes an open regular file over in every case (on failure it is closed); path then serves messages only.
Safetensors *safetensors_open(const char *path, Refusal *why);
Safetensors *safetensors_open_fd(int fd, const char *path, Refusal *why);
void safetensors_close(Safetensors *s);  // NULL is fine
const SafeTensor *safetensors_find(const Safetensors *s, const char *name);     // NULL if absent
const char *safetensors_metadata(const Safetensors *s, const char *key);        // NULL if absent
// Appends "[50257, 768]".
void safe_shape_text(Buffer *out, int dims, const int64_t *shape);

// dst = elements start .. start+n-1 of the tensor, exact for F32, F16, BF16 (and F64 into double; F64 into float rounds
// to nearest even). The range must lie inside the tensor. false: an I/O error, or a type that is no floating point
// (see safe_type_is_read).
bool safetensors_read(const Safetensors *s, const SafeTensor *t, int64_t start, size_t n, double *dst);
bool safetensors_read_float(const Safetensors *s, const SafeTensor *t, int64_t start, size_t n, float *dst);
static inline bool safe_type_is_read(SafeType type) { return type <= SAFE_BF16; }

// One element; exact, subnormals, infinities and NaNs included; bf16: float_of_bf16.
float float_of_f16(uint16_t bits);   // IEEE 754 binary16
