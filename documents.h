// documents.h: from the names of texts to documents, read piece by piece: files and joined texts in bounded memory, paragraphs and lines of JSON one whole at a time. Plumbing.
//
// A text is a file, a directory (all its regular files in sorted order, not below it) or - (standard input). A document is
// a file, or what stands between blank lines, or one field of each line of JSON, or everything (texts joined). A long document
// comes in several pieces, cut only where no tokenizer of its kind joins what stands on both sides: encoding the pieces one by
// one gives the ids of the whole. Empty documents are left out. After documents_open nothing here ends the process: errors
// are returned, so that the caller can clean up first.
// Tests: tests/test_documents.c
#pragma once
#include "util.h"

typedef enum { SPLIT_FILE, SPLIT_BLANK_LINE, SPLIT_NONE, SPLIT_JSONL } DocumentSplit;   // the first three: places of --documents
// Where a document may be cut. WORD: before a space that follows a visible character, or behind a line end that stands between
// two (neither GPT-2's nor GPT-4's pattern joins across them). CHARACTER: before any UTF-8 character. NEVER: it stays whole.
typedef enum { CUT_WORD, CUT_CHARACTER, CUT_NEVER } DocumentCut;

// A piece that begins a document is at least this long, or is all of it: enough to tell documents apart.
enum { DOCUMENT_HEAD = 1 << 16 };

typedef struct {
  const char *text;          // n >= 1 bytes, valid until the next call
  size_t n;
  bool starts, ends;         // the first piece, the last piece of its document
  const char *name;          // of its text; valid until documents_close
  int64_t at;                // where it begins: byte of that text (SPLIT_NONE: of all joined), or line, from 1 (SPLIT_JSONL)
} Piece;

typedef struct Documents Documents;
// Lists the texts. Standard input and named pipes are copied to a file without a name in `folder`, for texts are read twice.
// Exit 2: missing, unreadable, a directory without files, nothing at all in them.
Documents *documents_open(const char *const *names, size_t count, const char *folder);
void documents_close(Documents *d);
size_t documents_files(const Documents *d);          // texts, empty ones left out
int64_t documents_bytes(const Documents *d);         // of all texts
const char *documents_name(const Documents *d, size_t file, int64_t *bytes);
// (Re)starts at the first text. field: of SPLIT_JSONL. piece_bytes: pieces are about that long (longer where no cut is found).
void documents_start(Documents *d, DocumentSplit split, const char *field, DocumentCut cut, size_t piece_bytes);
// DOCUMENTS_PIECE: *p is set. DOCUMENTS_ERROR: the reason is documents_error's, the exit code for it *code.
typedef enum { DOCUMENTS_PIECE, DOCUMENTS_END, DOCUMENTS_ERROR } DocumentsResult;
DocumentsResult documents_next(Documents *d, Piece *p);
// The last place up to `high` where a text that begins with these n bytes may be cut, 1 <= high < n; 0: nowhere.
size_t documents_last_cut(const char *text, size_t n, size_t high, DocumentCut cut);
int64_t documents_read(const Documents *d);          // bytes read since the start, for progress
const char *documents_error(const Documents *d, int *code);
