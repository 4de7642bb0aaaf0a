// dataloader.h: the shard format, and a reader whose order is a pure function of (seed, epoch, index).
//
// THE SPLIT is one stream of N tokens, over all its shards. Every token but the first is a TARGET exactly once an epoch; what
// is predicted from it stands right before it, also across the edge of two shards.
//
// ORDER_STREAM cuts the targets 1..N-1 into windows of T. The grid shifts from epoch to epoch by s in [0,T): window w holds
// the targets 1-s+wT .. 1-s+(w+1)T-1. Positions before the first or behind the last target are IGNORED_TARGET: nothing
// is dropped. The shift is drawn from those that give the same number of windows W in every epoch (at least half
// of all), so that sample k is window permutation(k mod W) of epoch k / W: O(1) to seek, nothing to remember.
// ORDER_DOCUMENTS makes a row of each document: end-of-text token, the document, and as last target the next
// end-of-text token; the rest of the row is ignored. A document longer than a row is cut into several rows.
//
// Sample k is the same whoever reads it, whatever was read before. Files are read with pread and never mapped; every id is
// checked against the vocabulary as it is read; a file that became shorter meanwhile ends the process (exit 3).
// Where shards have an index of their documents (gpt data build writes one), rows of documents are found by it instead of reading every token.
// Tests: tests/test_dataloader.c, tests/test_index.c
#pragma once
#include "device.h"   // IGNORED_TARGET
#include "util.h"

typedef struct Dataloader Dataloader;
typedef enum { ORDER_STREAM, ORDER_DOCUMENTS } DataOrder;
typedef enum { SHARD_HEADER, SHARD_RAW_U16, SHARD_RAW_U32 } ShardKind;   // places of --raw's words

// ---- shards: 256 little-endian int32 of header, then uint16 or uint32 ids ----
// Words 0-2 are those of llm.c: magic, version, count (-1 past 2^31-1). Ours, from word 8 on: "GPTC", format version 1,
// count (int64), documents that begin here (int64), vocabulary size, end-of-text id (-1: none), SHA-256 of the
// tokenizer.json (8 words), CRC32C of the payload. All other words are 0. Files without our words are read too.
enum { SHARD_HEADER_BYTES = 1024, SHARD_MAGIC_U16 = 20240520, SHARD_MAGIC_U32 = 20240801 };
enum { SHARD_VERSION_U16 = 1, SHARD_VERSION_U32 = 7 };
enum { SHARD_AT_OURS = 32, SHARD_AT_FORMAT = 36, SHARD_AT_COUNT = 40, SHARD_AT_DOCUMENTS = 48, SHARD_AT_VOCAB = 56,
       SHARD_AT_EOT = 60, SHARD_AT_TOKENIZER = 64, SHARD_AT_CRC = 96, SHARD_AT_END = 100 };   // of our words, in bytes

typedef struct {
  char *path;
  int fd;
  int width;                 // bytes of an id: 2 or 4
  int64_t count;             // tokens
  int64_t payload;           // offset of the first id: 1024, or 0 for raw files
  bool ours;                 // has the words from 8 on; else the next five are -1 or empty
  int64_t documents;
  int64_t vocab, eot;
  char tokenizer[65];        // SHA-256 in hexadecimal
  uint32_t crc;
} Shard;

// Opens and checks header against size. Exit 2 with path, byte, number found and number needed.
Shard shard_open(const char *path, ShardKind kind);
// The same, but returns 0, or EXIT_NO (a shard, and damaged), EXIT_REQUEST (no shard, or none of this version) or
// EXIT_MACHINE (cannot be read) with the reason in *why, freed by the caller; then *s needs no closing.
int shard_try_open(const char *path, ShardKind kind, Shard *s, char **why);
// Why two shards cannot belong to one split (other tokenizer, vocabulary or width), freed by the caller; or NULL.
char *shard_mismatch(const Shard *a, const Shard *b);
void shard_close(Shard *s);
// Fills in the 1,024 bytes for these values (path, fd, payload are not looked at).
void shard_header(const Shard *s, uint8_t header[SHARD_HEADER_BYTES]);
// ids = tokens first..first+n-1; false on an I/O error or a file that became shorter.
bool shard_read(const Shard *s, int64_t first, size_t n, int32_t *ids);

// ---- the index of a shard's documents: NAME.idx beside NAME.bin, little-endian ----
// 32 bytes of header: "GPTD", format version 1 (uint32), count (int64), the shard's tokens (int64), CRC32C of the shard's payload, CRC32C of the
// starts; then count starts (int64), ascending: the token of the shard, from 0, that a document begins with. That is the end-of-text
// token before it where the tokenizer has one. A document that began in the shard before is not counted, as in the shard's header.
// It belongs to the one shard whose tokens, documents and checksum it names; only shards with our words can have one.
enum { INDEX_HEADER_BYTES = 32, INDEX_MAGIC = 0x44545047 };
enum { INDEX_AT_FORMAT = 4, INDEX_AT_COUNT = 8, INDEX_AT_TOKENS = 16, INDEX_AT_SHARD = 24, INDEX_AT_CRC = 28 };
typedef struct {
  char *path;                // NULL: there is none
  int fd;
  int64_t count, tokens;
  uint32_t shard_crc, crc;
} ShardIndex;

char *shard_index_path(const char *shard);   // freed by the caller
// Fills in the 32 bytes for these values (path, fd are not looked at).
void shard_index_header(const ShardIndex *x, uint8_t header[INDEX_HEADER_BYTES]);
// The index beside s, its header checked against the file's size and the shard. 0 (no file: path is NULL), or EXIT_NO (damaged, or another
// shard's), EXIT_REQUEST (no index, or none of this version), EXIT_MACHINE with the reason in *why, freed by the caller; then *x needs no closing.
int shard_index_try_open(const Shard *s, ShardIndex *x, char **why);
void shard_index_close(ShardIndex *x);
// starts = those of number first..first+n-1, 0 <= first, first + n <= count: each in the shard, with room for the others around it, and larger
// than the one before it; the first of them larger than `above` (-1: not known). 0, or EXIT_NO or EXIT_MACHINE with the reason in *why.
// crc: continued over their bytes; NULL: not wanted.
int shard_index_read(const ShardIndex *x, int64_t first, size_t n, int64_t above, int64_t *starts, uint32_t *crc, char **why);
// All of them one after another, and the checksum at the end. Begin with {.index = x}; false: the end, or `code` is not 0 and `why` the reason.
typedef struct {
  const ShardIndex *index;
  int64_t read;              // from the file
  int64_t starts[512];
  size_t have, used;         // of these
  uint32_t crc;
  int code;
  char *why;
} IndexWalk;
bool shard_index_next(IndexWalk *w, int64_t *start);

// Whether bytes are the beginning of a shard with a header: they are no UTF-8.
bool shard_begins(const void *bytes, size_t n);

// Paths that match a quoted glob, sorted; a directory stands for its *.bin. Exit 2 if there are none. Freed by free_names.
char **shard_glob(const char *pattern, size_t *count);
// The same, but a directory stands for its SIDE_*.bin ("train", "val"), if it has any such.
char **shard_glob_side(const char *pattern, const char *side, size_t *count);
// Whether it is a directory with shards of this side, as gpt data build makes it.
bool shard_folder_has(const char *path, const char *side);

// ---- the reader ----
// Copies the tokens (n of them, each below vocab). eot -1: none.
Dataloader *dataloader_open_tokens(const int32_t *tokens, int64_t n, int64_t vocab, int32_t eot);
// Every shard that matches (shard_glob). vocab 0: what the shards say (exit 2 if they do not). All must agree in tokenizer and vocabulary.
Dataloader *dataloader_open_shards(const char *pattern, ShardKind kind, int64_t vocab);
// The same for paths in this order (1 at least).
Dataloader *dataloader_open_paths(char *const *paths, size_t count, ShardKind kind, int64_t vocab);
void dataloader_close(Dataloader *l);   // NULL is fine
int64_t dataloader_tokens(const Dataloader *l);       // N
int64_t dataloader_vocab(const Dataloader *l);
int32_t dataloader_eot(const Dataloader *l);          // -1: none
const char *dataloader_tokenizer_hash(const Dataloader *l);   // "" if not known
// Adds what tells this data from other data. Tokens in memory: all of them. Shards: the header (it holds the payload's
// checksum) and size of each; where a shard has no checksum, pieces of it: all of a small file, 256 spread evenly over a large
// one, so that a run over terabytes starts at once.
void dataloader_hash(Dataloader *l, Sha256 *sha);

// Before the first sample: rows of T, the order and its seed. Exit 2: fewer than 2 tokens; ORDER_DOCUMENTS without an
// end-of-text token at the start. ORDER_STREAM takes constant memory, ORDER_DOCUMENTS 16 bytes a row.
void dataloader_arrange(Dataloader *l, int64_t T, DataOrder order, uint64_t seed);
int64_t dataloader_longest_document(Dataloader *l);   // tokens between two end-of-text tokens; 0: none found
int64_t dataloader_windows(const Dataloader *l);      // W, samples of an epoch
// Sample `index` (from 0, over all epochs): inputs (T), targets (T) set; returns how many targets are not ignored.
int64_t dataloader_sample(Dataloader *l, int64_t index, int32_t *inputs, int32_t *targets);
// Targets that samples first..first+count-1 hold, without reading them.
int64_t dataloader_counted(const Dataloader *l, int64_t first, int64_t count);
// Where they stand in the stream: *first_target = place of the first; returns how many follow one another from there.
int64_t dataloader_targets(const Dataloader *l, int64_t index, int64_t *first_target);
// ids = tokens at .. at+n-1 of the stream, 0 <= at, at + n <= N
void dataloader_read(const Dataloader *l, int64_t at, int64_t n, int32_t *ids);
// Documents, by the shards' indices, which are read where they are asked for and never held: O(log n). Exit 2 where an index is damaged.
// How many begin in the stream; -1: not every shard has an index, and the two below must not be called.
int64_t dataloader_documents(const Dataloader *l);
// The last document that begins at token `at` or before it, 0 <= at < N; -1: none does. The documents that tokens a..b touch are those from
// dataloader_document_at(l, a) to dataloader_document_at(l, b).
int64_t dataloader_document_at(const Dataloader *l, int64_t at);
// starts = places in the stream where documents number first..first+n-1 begin, 0 <= first, first + n <= how many there are
void dataloader_document_starts(const Dataloader *l, int64_t first, int64_t n, int64_t *starts);
// For validation: windows side by side from the first target on (documents: in order), the last one partly ignored.
int64_t dataloader_sequential_count(const Dataloader *l);
int64_t dataloader_sequential(Dataloader *l, int64_t window, int32_t *inputs, int32_t *targets);

// Place of i in a permutation of 0..n-1 that (seed, epoch) choose: a Feistel network with cycle walking
// (Black & Rogaway 2002). 0 <= i < n.
int64_t data_permute(int64_t i, int64_t n, uint64_t seed, uint64_t epoch);
