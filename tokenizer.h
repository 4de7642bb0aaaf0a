// tokenizer.h: text to token ids and back. Plumbing: knows nothing of models.
//
// Kinds: char (the characters of a text), byte, byte-level BPE (trained here, GPT-2's own which is embedded, or read from a
// file). Any bytes may be encoded, valid UTF-8 or not, and decode(encode(x)) == x for every x (a char tokenizer refuses
// characters it has not seen instead). A Tokenizer never changes once made, so any number of threads may use one at the
// same time, each with its own TokenBuffer (it holds the cache of words).
// Ids are 0 .. vocab_size - 1 without a hole. A wrong file ends the process with exit 2 and one line.
// Tests: tests/test_tokenizer.c; against Hugging Face's and OpenAI's libraries: dev/peers/tokenizer_peers.py
#pragma once
#include "util.h"  // Buffer

typedef struct Tokenizer Tokenizer;
typedef enum { PATTERN_GPT2, PATTERN_GPT4, PATTERN_NONE } TokenizerPattern;  // places of --pattern's words
typedef enum { SPECIAL_NONE, SPECIAL_ALL } TokenizerSpecial;                 // places of --special's words
typedef enum { TOKENIZER_CHAR, TOKENIZER_BYTE, TOKENIZER_BPE } TokenizerKind;

#define END_OF_TEXT "<|endoftext|>"

// A growing array of ids with the encoder's memory of words. Zero-initialise; one per thread; free with token_buffer_free.
typedef struct {
  int32_t *ids;
  size_t count, capacity;
  size_t unseen;            // after tokenizer_encode returned -1: byte offset of the character that has no id
  struct WordCache *cache;  // private
} TokenBuffer;
void token_buffer_append(TokenBuffer *b, int32_t id);
void token_buffer_free(TokenBuffer *b);

// ---- making one ----
// By name: gpt2, byte, a tokenizer.json, a vocab.bpe or encoder.json (or merges.txt, vocab.json; the other lies beside it),
// a .tiktoken file, or a directory with a tokenizer.json, such a pair, or a run's checkpoints (the newest whose tokenizer is whole).
// "char" is refused: it needs a text.
Tokenizer *tokenizer_open(const char *spec);
Tokenizer *tokenizer_gpt2(void);
Tokenizer *tokenizer_byte(bool with_eot);  // id = byte; with_eot: <|endoftext|> is 256
// The distinct characters of the text by code point; with_eot: <|endoftext|> comes after them. `name` names the text in
// the refusal of bytes that are not UTF-8.
Tokenizer *tokenizer_char_from_text(const char *name, const char *text, size_t n, bool with_eot);
// From the bytes of a tokenizer.json; `name` names them in errors.
Tokenizer *tokenizer_from_json(const char *name, const char *text, size_t n);
void tokenizer_free(Tokenizer *t);

// ---- training byte-level BPE: the merges are those of Hugging Face's BpeTrainer for the same documents ----
// Ids: the 256 bytes in GPT-2's order, the merges, then the special tokens. Documents are added one after the other; memory
// grows with the distinct words only (with PATTERN_NONE a document is a word). Several threads count with a trainer each, of one
// pattern; one trainer then takes over what the others have, and the merges are those of a trainer that was given everything.
typedef struct TokenizerTrainer TokenizerTrainer;
TokenizerTrainer *tokenizer_trainer(TokenizerPattern pattern);
void tokenizer_trainer_add(TokenizerTrainer *trainer, const char *document, size_t n);
void tokenizer_trainer_take(TokenizerTrainer *to, TokenizerTrainer *from);   // adds the words that `from` has, and frees it
size_t tokenizer_trainer_memory(const TokenizerTrainer *trainer);  // bytes held now
// Trains, frees the trainer. vocab_size counts everything and must be at least 256 + special_count (else exit 2); where the text has too few
// merges the vocabulary is smaller: the caller compares tokenizer_vocab_size.
Tokenizer *tokenizer_trainer_finish(TokenizerTrainer *trainer, int64_t vocab_size, const char *const *specials,
                                    size_t special_count);

// ---- using one ----
// Appends the ids of the text to out->ids; returns how many, or -1 if a character has no id (char only): then nothing is
// appended and out->unseen is its byte offset. The text of special tokens is plain text with SPECIAL_NONE.
int64_t tokenizer_encode(const Tokenizer *t, const char *text, size_t n, TokenBuffer *out, TokenizerSpecial special);
// The same, but a character without an id ends the process (exit 2) naming it, its line and column in `name`.
int64_t tokenizer_encode_or_fail(const Tokenizer *t, const char *name, const char *text, size_t n, TokenBuffer *out,
                                 TokenizerSpecial special);
// The bytes of one id (not NUL-terminated), *length set; NULL if the id is not in the vocabulary.
const char *tokenizer_decode_one(const Tokenizer *t, int64_t id, size_t *length);
// Appends the bytes of the ids to out; returns -1, or the position of the first id that is not in the vocabulary
// (what stands before it is appended).
int64_t tokenizer_decode(const Tokenizer *t, const int32_t *ids, size_t count, Buffer *out);

// ---- asking ----
int32_t tokenizer_vocab_size(const Tokenizer *t);
int32_t tokenizer_eot(const Tokenizer *t);             // id of the end-of-text token, or -1
TokenizerKind tokenizer_kind(const Tokenizer *t);
const char *tokenizer_kind_name(const Tokenizer *t);   // "char", "byte" or "bpe"
TokenizerPattern tokenizer_pattern(const Tokenizer *t);
const char *tokenizer_pattern_name(TokenizerPattern p);
size_t tokenizer_merge_count(const Tokenizer *t);
size_t tokenizer_special_count(const Tokenizer *t);
int32_t tokenizer_special_id(const Tokenizer *t, size_t index);  // tokenizer_decode_one gives its text
bool tokenizer_is_special(const Tokenizer *t, int64_t id);

// ---- writing ----
// Appends a tokenizer.json that Hugging Face's tokenizers and transformers load with the same ids; the same bytes for the
// same tokenizer, always.
void tokenizer_json(const Tokenizer *t, Buffer *out);
// Appends a tokenizer_config.json, which must lie beside it in a model directory: without it transformers picks the class of the
// model's family, and GPT-2's class cuts any text by GPT-2's pattern. context: the most tokens the model takes.
void tokenizer_config_json(const Tokenizer *t, int64_t context, Buffer *out);
void tokenizer_sha256(const Tokenizer *t, char hex[65]);  // of those bytes
