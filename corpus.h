// corpus.h: from what the user names (texts, shards, nothing) to tokens: reading, splitting, tokenizer, data loaders.
// Tests: tests/test_train.c, tests/test_cli.sh
#pragma once
#include "run.h"

enum { STORIES_TRAIN = 16000, STORIES_VALIDATION = 1000 };
enum { STORIES_SEED_TRAIN = 1, STORIES_SEED_VALIDATION = 2 };   // streams of stories.h; the corpus does not depend on --seed

// Fills in tokenizer, vocabulary, both splits, hash and sizes of the run. Exit 2 for a text that is missing, empty or wrong.
void corpus_open(Run *r);
void corpus_arrange(Run *r);       // when the context is known: rows and order of both splits
void corpus_print(const Run *r);   // lines of the banner
void corpus_close(Run *r);
// Story number index of the training or validation part, appended to out; returns its log2 probability.
double corpus_story(Buffer *out, bool validation, uint64_t index);

// ---- reading texts, shared by every command that takes TEXT ----
typedef struct { char *name; char *text; size_t n; } TextFile;
// Each name is a file, a directory (all its regular files, in sorted order, not below it) or - (standard input). Exit 2: missing,
// unreadable, a directory without files, nothing at all in them.
TextFile *corpus_read_files(const char *const *names, size_t count, size_t *files);
void corpus_free_files(TextFile *files, size_t count);
// All of them in one.
char *corpus_read_texts(const char *const *names, size_t count, size_t *n);
// Entries of the vocabulary of a text whose user names none: about a thousand bytes for each, so that each is seen often enough to be learned; at most 8,192.
int64_t corpus_vocabulary(size_t bytes);
// Exit 2 where the shards say that another tokenizer made them; `name` is what the user calls them.
void corpus_check_tokenizer(const Dataloader *shards, const Tokenizer *t, const char *name);
// (vocab) bytes of text that each id stands for; special tokens and ids without text: 0.
double *corpus_token_bytes(const Tokenizer *t, int32_t vocab);
