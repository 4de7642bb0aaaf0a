// tokenizer_files.c: owns tokenizers as files: writing tokenizer.json, and reading tokenizer.json, vocab.bpe with
// encoder.json, .tiktoken rank files and directories (of models and runs) that hold one of them.
//
// Promises: what is written loads in Hugging Face's tokenizers with the same ids, and here; a file that is wrong in any way ends
// the process with exit 2 and one line that names the file, the line and the reason; time and memory are linear in the file.
// Tests: tests/test_tokenizer_files.c
#include "tokenizer_internal.h"
#include "json.h"    // json_parse, json_write_string
#include "manifest.h"  // checkpoint_steps, manifest_open
#include "utf8.h"    // utf8_decode, utf8_encode
#include <math.h>    // fabs, floor
#include <stdlib.h>  // free
#include <unistd.h>  // close

enum { MAX_FILE = 1 << 28 };  // bytes; no published tokenizer comes near it

// ---- writing tokenizer.json ----

// gpt4's pattern for Hugging Face's regular expressions (Oniguruma): \z is the end of the text there, $ that of a line.
static const char gpt4_regex[] =
    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+\\z|\\s*[\\r\\n]|\\s+(?!\\S)|\\s";

// The byte alphabet in JSON: each byte's character as UTF-8, escaped where JSON wants it.
typedef struct { char text[4]; uint8_t n; } Letter;

static void spell_alphabet(Letter alphabet[256]) {
  for (int byte = 0; byte < 256; byte++) {
    Letter *l = &alphabet[byte];
    uint32_t code = alphabet_code((uint8_t)byte);
    *l = (Letter){.n = code == '"' || code == '\\'};
    if (l->n) l->text[0] = '\\';
    l->n = (uint8_t)(l->n + utf8_encode(code, l->text + l->n));   // two bytes at most: no code is above 0x143
  }
}

// A token's text as a JSON string: itself (char, special tokens; alphabet is NULL), else in the byte alphabet.
static void write_token(const Tokenizer *t, int32_t id, const Letter *alphabet, Buffer *out) {
  size_t n;
  const char *bytes = tokenizer_token(t, id, &n);
  if (!alphabet) {
    json_write_string(out, bytes, n);
    return;
  }
  buffer_reserve(out, n * sizeof alphabet->text + 2);
  char *to = out->data + out->len;
  *to++ = '"';
  for (size_t i = 0; i < n; i++) {
    const Letter *l = &alphabet[(uint8_t)bytes[i]];
    memcpy(to, l->text, sizeof l->text);
    to += l->n;
  }
  *to++ = '"';
  *to = 0;
  out->len = (size_t)(to - out->data);
}

static void write_pre_tokenizer(const Tokenizer *t, Buffer *out) {
  static const char byte_level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":%s}";
  buffer_printf(out, "  \"pre_tokenizer\": ");
  if (t->kind == TOKENIZER_CHAR) {
    buffer_printf(out, "null,\n  \"post_processor\": null,\n  \"decoder\": {\"type\":\"Fuse\"},\n");
    return;
  }
  if (t->pattern == PATTERN_GPT4) {
    buffer_printf(out, "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":");
    json_write_string(out, gpt4_regex, strlen(gpt4_regex));
    buffer_printf(out, "},\"behavior\":\"Isolated\",\"invert\":false},");
    buffer_printf(out, byte_level, "false");
    buffer_printf(out, "]}");
  } else {
    buffer_printf(out, byte_level, t->pattern == PATTERN_GPT2 ? "true" : "false");
  }
  buffer_printf(out, ",\n  \"post_processor\": ");
  buffer_printf(out, byte_level, "true");
  buffer_printf(out, ",\n  \"decoder\": ");
  buffer_printf(out, byte_level, "true");
  buffer_printf(out, ",\n");
}

void tokenizer_json(const Tokenizer *t, Buffer *out) {
  Letter alphabet[256];
  spell_alphabet(alphabet);
  bool *special = xcalloc((size_t)t->size, sizeof special[0]);
  for (size_t i = 0; i < t->special_count; i++) special[t->specials[i]] = true;
  buffer_printf(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [");
  const char *comma = "";
  for (int32_t id = 0; id < t->size; id++) {
    if (!special[id]) continue;
    buffer_printf(out, "%s\n    {\"id\":%d,\"content\":", comma, id);
    write_token(t, id, NULL, out);
    buffer_printf(out, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}");
    comma = ",";
  }
  buffer_printf(out, "%s],\n  \"normalizer\": null,\n", t->special_count ? "\n  " : "");
  write_pre_tokenizer(t, out);
  buffer_printf(out,
                "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n    \"continuing_subword_prefix\": null,\n"
                "    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": %s,\n    \"vocab\": {",
                t->whole_words ? "true" : "false");
  for (int32_t id = 0; id < t->size; id++) {
    buffer_append(out, id ? ",\n      " : "\n      ", id ? 8 : 7);
    write_token(t, id, special[id] || t->kind == TOKENIZER_CHAR ? NULL : alphabet, out);
    char number[16], *digit = number + sizeof number;   // snprintf takes as long as all the rest
    for (int32_t left = id; left > 0 || digit == number + sizeof number; left /= 10) *--digit = (char)('0' + left % 10);
    *--digit = ' ', *--digit = ':';
    buffer_append(out, digit, (size_t)(number + sizeof number - digit));
  }
  buffer_printf(out, "\n    },\n    \"merges\": [");
  for (size_t i = 0; i < t->merge_count; i++) {  // "left right": the form that every version of the libraries reads
    buffer_append(out, i ? ",\n      " : "\n      ", i ? 8 : 7);
    write_token(t, t->merges[i].left, special[t->merges[i].left] ? NULL : alphabet, out);
    out->data[out->len - 1] = ' ';       // in place of the closing quote
    size_t joint = out->len;
    write_token(t, t->merges[i].right, special[t->merges[i].right] ? NULL : alphabet, out);
    memmove(out->data + joint, out->data + joint + 1, out->len - joint);  // and without the opening one (the NUL comes along)
    out->len--;
  }
  buffer_printf(out, "%s]\n  }\n}\n", t->merge_count ? "\n    " : "");
  free(special);
}

void tokenizer_config_json(const Tokenizer *t, int64_t context, Buffer *out) {
  buffer_printf(out, "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"model_max_length\": %lld,\n", (long long)context);
  if (t->eot >= 0) buffer_printf(out, "  \"bos_token\": \"%s\",\n  \"eos_token\": \"%s\",\n", END_OF_TEXT, END_OF_TEXT);
  buffer_printf(out, "  \"clean_up_tokenization_spaces\": false\n}\n");
}

void tokenizer_sha256(const Tokenizer *t, char hex[65]) {
  Buffer json = {0};
  tokenizer_json(t, &json);
  sha256_of(json.data, json.len, hex);
  buffer_free(&json);
}

// ---- reading: what the formats share ----

// Ends the process: the file, the line (0: none) and the reason.
static _Noreturn PRINTF_LIKE(3, 4) void refuse(const char *name, int64_t line, const char *fmt, ...) {
  char reason[400];
  va_list args;
  va_start(args, fmt);
  vsnprintf(reason, sizeof reason, fmt, args);
  va_end(args);
  if (line > 0) fail(EXIT_REQUEST, "%s: line %lld: %s", name, (long long)line, reason);
  fail(EXIT_REQUEST, "%s: %s", name, reason);
}

// Untrusted text inside a message: its first 40 bytes, never cut inside a character. Four may be used in one message.
static const char *shown(const char *text, size_t n) {
  static char buffers[4][64];
  static int turn;
  char *out = buffers[turn++ & 3];
  size_t used = 0;
  while (used < n && used < 40) {
    uint32_t code;
    int length = utf8_decode(text + used, n - used, &code);
    if (length == 0) break;
    memcpy(out + used, text + used, (size_t)length);
    used += (size_t)length;
  }
  strcpy(out + used, used < n ? "..." : "");
  return out;
}

// Text in the byte alphabet to bytes, in place of at least n bytes at out; false if a character is not of the alphabet.
static bool from_alphabet(const char *text, size_t n, char *out, size_t *length) {
  *length = 0;
  for (size_t at = 0; at < n;) {
    uint32_t code;
    int bytes = utf8_decode(text + at, n - at, &code);
    int byte = bytes ? alphabet_byte(code) : -1;
    if (byte < 0) return false;
    out[(*length)++] = (char)byte;
    at += (size_t)bytes;
  }
  return true;
}

// Checks what every byte-level tokenizer needs, and that no two tokens are the same.
static void check_tokens(const char *name, Tokenizer *t) {
  int32_t earlier;
  int32_t repeated = tokenizer_index_tokens(t, &earlier);
  if (repeated >= 0) refuse(name, 0, "ids %d and %d are the same token", earlier, repeated);
  for (int byte = 0; byte < 256 && t->kind != TOKENIZER_CHAR; byte++)
    if (t->byte_id[byte] < 0) refuse(name, 0, "no token is byte 0x%02x alone: a byte-level vocabulary has all 256 bytes", byte);
}

// Like tokenizer_find, but a special token is found as well: a merge may make its text.
static int32_t find_any(const Tokenizer *t, const char *bytes, size_t n) {
  int32_t id = tokenizer_find(t, bytes, n);
  for (size_t i = 0; id < 0 && i < t->special_count; i++) {
    size_t length;
    const char *special = tokenizer_token(t, t->specials[i], &length);
    if (length == n && memcmp(special, bytes, n) == 0) id = t->specials[i];
  }
  return id;
}

// A merge of two parts in the byte alphabet, given by their texts. The result must be in the vocabulary.
static void read_merge(const char *name, int64_t line, Tokenizer *t, const char *left, size_t left_n, const char *right,
                       size_t right_n) {
  const char *part[2] = {left, right};
  size_t part_n[2] = {left_n, right_n}, used = 0;
  int32_t ids[3];  // left, right, result
  char *bytes = xmalloc(left_n + right_n, 1);
  for (int i = 0; i < 2; i++) {
    size_t n = 0;
    ids[i] = from_alphabet(part[i], part_n[i], bytes + used, &n) ? find_any(t, bytes + used, n) : -1;
    used += n;
    if (ids[i] < 0) refuse(name, line, "merge %zu of an unknown part \"%s\"", t->merge_count, shown(part[i], part_n[i]));
  }
  ids[2] = find_any(t, bytes, used);
  free(bytes);
  if (ids[2] < 0)
    refuse(name, line, "merge %zu gives \"%s%s\", which is not in the vocabulary", t->merge_count, shown(left, left_n),
           shown(right, right_n));
  tokenizer_add_merge(t, ids[0], ids[1], ids[2], (int32_t)t->merge_count);
}

// The index of merges is built; a pair that stands twice shows itself by a rank that is not its own.
static void check_merges(const char *name, const Tokenizer *t) {
  for (size_t i = 0; i < t->merge_count; i++) {
    const Merge *m = &t->merges[i];
    int32_t rank = tokenizer_merge_rank(t, m->left, m->right);
    if (rank != m->rank) refuse(name, 0, "merges %d and %d are the same pair", m->rank, rank);
  }
}

// ---- tokenizer.json ----

// One entry of the vocabulary, from "vocab" or "added_tokens".
typedef struct { const char *text; size_t n; int64_t line; bool special; } Entry;

static void place_entry(const char *name, Entry *entries, int64_t count, int64_t id, Entry entry) {
  if (id < 0 || id >= count)
    refuse(name, entry.line, "id %lld of \"%s\" leaves a hole: %lld entries need the ids 0 to %lld", (long long)id,
           shown(entry.text, entry.n),
           (long long)count, (long long)count - 1);
  if (entries[id].text)
    refuse(name, entry.line, "id %lld stands twice: \"%s\" and \"%s\"", (long long)id,
           shown(entries[id].text, entries[id].n), shown(entry.text, entry.n));
  entries[id] = entry;
}

// Id of an object's member, any whole number; else refused.
static int64_t whole_number(const char *name, const Json *j, const char *what) {
  if (j->type != JSON_NUMBER || !(fabs(j->number) < 1e15) || j->number != floor(j->number))
    refuse(name, j->line, "the id of \"%s\" is not a whole number", what);
  return (int64_t)j->number;
}

// All entries by id: the vocabulary's, and the added tokens that it does not have. *count set.
static Entry *read_entries(const char *name, const Json *vocab, const Json *added, int64_t *count) {
  size_t added_count = added ? added->length : 0, outside = 0;
  for (size_t i = 0; i < added_count; i++) {
    const Json *content = json_get(added->items[i], "content"), *id = json_get(added->items[i], "id");
    if (!content || content->type != JSON_STRING || !id)
      refuse(name, added->items[i]->line, "an added token without \"id\" or \"content\"");
    if (content->length == 0) refuse(name, content->line, "an added token without text");
    if (strlen(content->string) != content->length) refuse(name, content->line, "an added token with a zero byte in its text");
    const Json *same = json_get(vocab, content->string);
    int64_t value = whole_number(name, id, shown(content->string, content->length));
    if (!same) outside++;
    else if (same->type != JSON_NUMBER || same->number != (double)value)
      refuse(name, id->line, "added token \"%s\" has another id than in the vocabulary", shown(content->string, content->length));
  }
  *count = (int64_t)(vocab->length + outside);
  if (*count == 0) refuse(name, vocab->line, "an empty vocabulary");
  Entry *entries = xcalloc((size_t)*count, sizeof entries[0]);
  for (size_t i = 0; i < vocab->length; i++) {
    const Json *id = vocab->items[i];
    Entry entry = {vocab->keys[i], vocab->key_lengths[i], id->line, false};
    if (entry.n == 0) refuse(name, entry.line, "a token without text");
    place_entry(name, entries, *count, whole_number(name, id, shown(entry.text, entry.n)), entry);
  }
  for (size_t i = 0; i < added_count; i++) {
    const Json *content = json_get(added->items[i], "content"), *id = json_get(added->items[i], "id");
    Entry entry = {content->string, content->length, content->line, true};
    int64_t at = (int64_t)id->number;
    if (!json_get(vocab, content->string)) place_entry(name, entries, *count, at, entry);
    else if (entries[at].special)
      refuse(name, content->line, "added token \"%s\" stands twice", shown(content->string, content->length));
    else entries[at].special = true;
  }
  return entries;
}

// Tokens in the order of their ids. Special tokens are their own text, the others are written in the byte alphabet or (char) as they are.
static void add_entries(const char *name, Tokenizer *t, const Entry *entries, int64_t count) {
  Buffer room = {0};
  for (int64_t id = 0; id < count; id++) {
    const Entry *e = &entries[id];
    if (e->special || t->kind == TOKENIZER_CHAR) {
      uint32_t code;
      if (!e->special && utf8_decode(e->text, e->n, &code) != (int)e->n)
        refuse(name, e->line, "token \"%s\" of a character vocabulary is not one character", shown(e->text, e->n));
      tokenizer_add_token(t, e->text, e->n);
      if (e->special) tokenizer_add_special(t, (int32_t)id);
      continue;
    }
    size_t n;
    buffer_reserve(&room, e->n);
    if (!from_alphabet(e->text, e->n, room.data, &n))
      refuse(name, e->line, "token \"%s\" is not written in the alphabet of byte-level vocabularies", shown(e->text, e->n));
    tokenizer_add_token(t, room.data, n);
  }
  buffer_free(&room);
}

static bool is_type(const Json *j, const char *type) { return strcmp(json_string(j, "type", ""), type) == 0; }
static bool is_absent(const Json *j) { return !j || j->type == JSON_NULL; }

// ByteLevel, whose own pattern is GPT-2's.
static TokenizerPattern byte_level_pattern(const char *name, const Json *j) {
  if (json_bool(j, "add_prefix_space", true))
    refuse(name, j->line, "\"add_prefix_space\": true is not supported: it changes the text");
  return json_bool(j, "use_regex", true) ? PATTERN_GPT2 : PATTERN_NONE;
}

static TokenizerPattern split_pattern(const char *name, const Json *split) {
  static const struct { const char *regex; TokenizerPattern pattern; } known[] = {
      {gpt4_regex, PATTERN_GPT4},
      {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s", PATTERN_GPT4},
      {"'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s", PATTERN_GPT2},
      {"'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", PATTERN_GPT2},
      {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", PATTERN_GPT2}};
  const Json *regex = json_get(json_get(split, "pattern"), "Regex");
  if (!regex || regex->type != JSON_STRING) refuse(name, split->line, "a Split without a \"Regex\" is not supported");
  if (strcmp(json_string(split, "behavior", ""), "Isolated") != 0 || json_bool(split, "invert", false))
    refuse(name, split->line, "a Split must have \"behavior\": \"Isolated\" and \"invert\": false");
  for (size_t i = 0; i < ARRAY_LEN(known); i++)
    if (strcmp(known[i].regex, regex->string) == 0) return known[i].pattern;
  refuse(name, regex->line, "a pattern this program does not have (it has gpt2, gpt4 and none): %s",
         shown(regex->string, regex->length));
}

static TokenizerPattern read_pattern(const char *name, const Json *pre) {
  if (is_type(pre, "ByteLevel")) return byte_level_pattern(name, pre);
  const Json *list = is_type(pre, "Sequence") ? json_get(pre, "pretokenizers") : NULL;
  bool two = list && list->type == JSON_ARRAY && list->length == 2;
  if (!two || !is_type(list->items[0], "Split") || !is_type(list->items[1], "ByteLevel"))
    refuse(name, pre ? pre->line : 0,
           "pre-tokenizer \"%s\" is not supported: it must be ByteLevel, or a Sequence of Split and ByteLevel",
           shown(json_string(pre, "type", "null"), strlen(json_string(pre, "type", "null"))));
  TokenizerPattern pattern = split_pattern(name, list->items[0]);
  if (byte_level_pattern(name, list->items[1]) != PATTERN_NONE)
    refuse(name, list->items[1]->line, "a ByteLevel behind a Split must have \"use_regex\": false");
  return pattern;
}

// Refuses the settings that change ids and that this program does not have.
static void check_settings(const char *name, const Json *root, const Json *model) {
  if (!is_type(model, "BPE")) {
    const char *type = json_string(model, "type", "none");
    refuse(name, model->line, "the model is \"%s\", it must be BPE", shown(type, strlen(type)));
  }
  const Json *normalizer = json_get(root, "normalizer");
  if (!is_absent(normalizer)) refuse(name, normalizer->line, "a normalizer is not supported: it changes the text");
  static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
  for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
    const Json *j = json_get(model, texts[i]);
    if (!is_absent(j) && !(j->type == JSON_STRING && j->length == 0))
      refuse(name, j->line, "\"%s\" is set, a byte-level vocabulary has none", texts[i]);
  }
  const Json *dropout = json_get(model, "dropout");
  if (!is_absent(dropout) && !(dropout->type == JSON_NUMBER && dropout->number == 0))
    refuse(name, dropout->line, "\"dropout\" is set: ids would be random");
  if (json_bool(model, "byte_fallback", false))
    refuse(name, model->line, "\"byte_fallback\": true is not supported: this is no byte-level vocabulary");
}

static void read_merges(const char *name, Tokenizer *t, const Json *merges) {
  for (size_t i = 0; i < merges->length; i++) {
    const Json *m = merges->items[i];
    if (m->type == JSON_STRING) {
      const char *blank = memchr(m->string, ' ', m->length);
      if (!blank) refuse(name, m->line, "merge %zu \"%s\" is not two parts with a blank between", i, shown(m->string, m->length));
      size_t left = (size_t)(blank - m->string);
      read_merge(name, m->line, t, m->string, left, blank + 1, m->length - left - 1);
    } else {
      bool pair = m->type == JSON_ARRAY && m->length == 2 && m->items[0]->type == JSON_STRING && m->items[1]->type == JSON_STRING;
      if (!pair) refuse(name, m->line, "merge %zu is not a pair of texts", i);
      read_merge(name, m->line, t, m->items[0]->string, m->items[0]->length, m->items[1]->string, m->items[1]->length);
    }
  }
}

// The tokens of a parsed vocabulary, without merges yet; shared by tokenizer.json and encoder.json. A file that lists no
// added tokens (NULL) means <|endoftext|> alone.
static Tokenizer *from_vocabulary(const char *name, TokenizerKind kind, TokenizerPattern pattern, const Json *vocab,
                                  const Json *added) {
  int64_t count;
  Entry *entries = read_entries(name, vocab, added, &count);
  for (int64_t id = 0; !added && id < count; id++) entries[id].special = strcmp(entries[id].text, END_OF_TEXT) == 0;
  Tokenizer *t = tokenizer_new(kind, pattern);
  add_entries(name, t, entries, count);
  free(entries);
  check_tokens(name, t);
  return t;
}

// 256 byte tokens whose ids are the bytes, and no merges: what tokenizer_byte writes.
static bool is_byte_kind(const Tokenizer *t) {
  bool bytes = t->merge_count == 0 && t->pattern == PATTERN_NONE && t->size == 256 + (int32_t)t->special_count;
  for (int byte = 0; byte < 256; byte++) bytes = bytes && t->byte_id[byte] == byte;
  return bytes;
}

Tokenizer *tokenizer_from_json(const char *name, const char *text, size_t n) {
  char error[200];
  Json *root = json_parse(text, n, error, sizeof error);
  if (!root) refuse(name, 0, "no tokenizer.json: %s", error);
  const Json *model = json_get(root, "model"), *vocab = json_get(model, "vocab"), *merges = json_get(model, "merges");
  const Json *added = json_get(root, "added_tokens"), *pre = json_get(root, "pre_tokenizer");
  if (!model || model->type != JSON_OBJECT) refuse(name, root->line, "no tokenizer.json: it has no \"model\"");
  check_settings(name, root, model);
  if (!vocab || vocab->type != JSON_OBJECT) refuse(name, model->line, "\"vocab\" is missing or no object");
  if (!merges || merges->type != JSON_ARRAY) refuse(name, model->line, "\"merges\" is missing or no list");
  if (!is_absent(added) && added->type != JSON_ARRAY) refuse(name, added->line, "\"added_tokens\" is no list");
  if (is_absent(added)) added = NULL;
  bool characters = is_absent(pre) && merges->length == 0 && is_type(json_get(root, "decoder"), "Fuse");
  TokenizerPattern pattern = characters ? PATTERN_NONE : read_pattern(name, pre);
  Tokenizer *t = from_vocabulary(name, characters ? TOKENIZER_CHAR : TOKENIZER_BPE, pattern, vocab, added);
  t->whole_words = json_bool(model, "ignore_merges", false);
  read_merges(name, t, merges);
  tokenizer_finish(t);
  check_merges(name, t);
  if (!characters && !t->whole_words && is_byte_kind(t)) t->kind = TOKENIZER_BYTE;
  json_free(root);
  return t;
}

// ---- vocab.bpe with encoder.json ----

// The next line of a text, without its end; false behind the last.
static bool next_line(const char *text, size_t size, size_t *at, const char **line, size_t *n) {
  if (*at >= size) return false;
  const char *end = memchr(text + *at, '\n', size - *at);
  *line = text + *at;
  *n = end ? (size_t)(end - *line) : size - *at;
  *at += *n + 1;
  if (*n > 0 && (*line)[*n - 1] == '\r') --*n;
  return true;
}

// The next merge of a vocab.bpe: *left bytes at *line, a blank, *right bytes. Blank lines and the version, first, are passed over.
static bool next_merge(const char *name, const char *text, size_t size, size_t *at, int64_t *number, const char **line, size_t *left, size_t *right) {
  size_t n;
  while (next_line(text, size, at, line, &n)) {
    if ((++*number == 1 && n >= 8 && memcmp(*line, "#version", 8) == 0) || n == 0) continue;
    const char *blank = memchr(*line, ' ', n);
    if (!blank) refuse(name, *number, "\"%s\" is not two parts with a blank between", shown(*line, n));
    *left = (size_t)(blank - *line);
    *right = n - *left - 1;
    return true;
  }
  return false;
}

// Without encoder.json the ids follow from the order: bytes, merges, end of text.
static Tokenizer *vocabulary_from_merges(const char *name, const char *text, size_t size) {
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_GPT2);
  for (int i = 0; i < 256; i++) tokenizer_add_token(t, &(char){(char)alphabet_in_order(i)}, 1);
  Buffer room = {0};
  const char *line;
  int64_t number = 0;
  for (size_t at = 0, left, right; next_merge(name, text, size, &at, &number, &line, &left, &right);) {
    size_t left_size, right_size;
    buffer_reserve(&room, left + right);
    bool ok = from_alphabet(line, left, room.data, &left_size) && from_alphabet(line + left + 1, right, room.data + left_size, &right_size);
    if (!ok || left_size == 0 || right_size == 0)
      refuse(name, number, "\"%s\" is not two parts in the alphabet of byte-level vocabularies", shown(line, left + 1 + right));
    tokenizer_add_token(t, room.data, left_size + right_size);
  }
  buffer_free(&room);
  tokenizer_add_token(t, END_OF_TEXT, strlen(END_OF_TEXT));
  tokenizer_add_special(t, t->size - 1);
  check_tokens(name, t);
  return t;
}

// encoder_path NULL: there is none.
static Tokenizer *read_pair(const char *merges_path, const char *encoder_path) {
  size_t size, encoder_size;
  char *text = read_file(merges_path, "tokenizer", MAX_FILE, &size), error[200];
  Tokenizer *t;
  if (encoder_path) {
    char *encoder = read_file(encoder_path, "tokenizer", MAX_FILE, &encoder_size);
    Json *vocab = json_parse(encoder, encoder_size, error, sizeof error);
    if (!vocab) refuse(encoder_path, 0, "no vocabulary: %s", error);
    if (vocab->type != JSON_OBJECT) refuse(encoder_path, 1, "no vocabulary: it must be one object of tokens and ids");
    t = from_vocabulary(encoder_path, TOKENIZER_BPE, PATTERN_GPT2, vocab, NULL);
    json_free(vocab);
    free(encoder);
  } else {
    t = vocabulary_from_merges(merges_path, text, size);
  }
  const char *line;
  int64_t number = 0;
  for (size_t at = 0, left, right; next_merge(merges_path, text, size, &at, &number, &line, &left, &right);)
    read_merge(merges_path, number, t, line, left, line + left + 1, right);
  tokenizer_finish(t);
  check_merges(merges_path, t);
  free(text);
  return t;
}

// ---- .tiktoken rank files ----

// Base64 with padding (RFC 4648), strictly; false if it is none. out has room for n bytes.
static bool from_base64(const char *text, size_t n, char *out, size_t *length) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (n == 0 || n % 4 != 0) return false;
  size_t padding = text[n - 1] != '=' ? 0 : text[n - 2] != '=' ? 1 : 2;
  uint32_t bits = 0;
  *length = 0;
  for (size_t i = 0; i < n; i++) {
    const char *digit = i + padding >= n ? digits : text[i] ? strchr(digits, text[i]) : NULL;
    if (!digit) return false;
    bits = bits << 6 | (uint32_t)(digit - digits);
    if (i % 4 == 3)
      for (int shift = 16; shift >= 0; shift -= 8) out[(*length)++] = (char)(bits >> shift);
  }
  *length -= padding;
  return true;
}

// In these files a merge is any two tokens whose bytes together are a token, whose rank counts: all ways to cut it are listed.
static void merges_from_ranks(const char *name, Tokenizer *t) {
  enum { LONGEST = 512 };  // keeps the time linear in the file; the longest published token has 128 bytes
  for (int32_t id = 0; id < t->size; id++) {
    size_t n;
    const char *bytes = tokenizer_token(t, id, &n);
    if (n > LONGEST) refuse(name, id + 1, "a token of %zu bytes, at most %d are read", n, LONGEST);
    for (size_t cut = 1; cut < n; cut++) {
      int32_t left = tokenizer_find(t, bytes, cut);
      int32_t right = left < 0 ? -1 : tokenizer_find(t, bytes + cut, n - cut);
      if (right >= 0) tokenizer_add_merge(t, left, right, id, id);
    }
  }
}

static Tokenizer *read_ranks(const char *name) {
  enum { GPT2_RANKS = 50256 };
  size_t size;
  char *text = read_file(name, "tokenizer", MAX_FILE, &size);
  Tokenizer *t = tokenizer_new(TOKENIZER_BPE, PATTERN_GPT4);
  t->whole_words = true;
  const char *line;
  int64_t number = 0;
  Buffer room = {0};
  for (size_t at = 0, n; next_line(text, size, &at, &line, &n);) {
    const char *blank = memchr(line, ' ', n);
    size_t width = blank ? (size_t)(blank - line) : 0, digits = blank ? n - width - 1 : 0, length;
    number++;
    if (digits == 0 || digits > 9) refuse(name, number, "\"%s\" is not a token in base64, a blank and a rank", shown(line, n));
    int64_t rank = 0;
    for (size_t i = 0; i < digits; i++) {
      if (blank[1 + i] < '0' || blank[1 + i] > '9') refuse(name, number, "rank \"%s\" is not a number", shown(blank + 1, digits));
      rank = rank * 10 + (blank[1 + i] - '0');
    }
    buffer_reserve(&room, width);
    if (!from_base64(line, width, room.data, &length) || length == 0)
      refuse(name, number, "\"%s\" is not base64", shown(line, width));
    if (rank != t->size) refuse(name, number, "rank %lld where %d is due: ranks must go up one by one", (long long)rank, t->size);
    tokenizer_add_token(t, room.data, length);
  }
  if (t->size == 0) refuse(name, 0, "0 lines, a rank file has one for each token");
  if (t->size == GPT2_RANKS) {  // these files hold neither pattern nor special tokens; GPT-2's are known by its count
    t->pattern = PATTERN_GPT2;
    tokenizer_add_token(t, END_OF_TEXT, strlen(END_OF_TEXT));
    tokenizer_add_special(t, GPT2_RANKS);
  }
  buffer_free(&room);
  free(text);
  check_tokens(name, t);
  merges_from_ranks(name, t);
  tokenizer_finish(t);
  return t;
}

// ---- by name ----

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

// dir/file if it is there (dir may be empty), else NULL; freed by the caller.
static char *beside(const char *dir, const char *file) {
  char *path = format("%s%s%s", dir, *dir && !ends_with(dir, "/") ? "/" : "", file);
  if (file_exists(path)) return path;
  free(path);
  return NULL;
}

static const char *const pairs[][2] = {{"vocab.bpe", "encoder.json"}, {"merges.txt", "vocab.json"}};

// A name that is one of a pair: the other must lie beside it (vocab.bpe may stand alone).
static Tokenizer *open_pair(const char *path) {
  const char *slash = strrchr(path, '/');
  size_t dir_size = slash ? (size_t)(slash - path) + 1 : 0;
  for (size_t i = 0; i < ARRAY_LEN(pairs); i++)
    for (int which = 0; which < 2; which++) {
      if (strcmp(path + dir_size, pairs[i][which]) != 0) continue;
      char *dir = format("%.*s", (int)dir_size, path), *other = beside(dir, pairs[i][!which]);
      if (which == 1 && !other) fail(EXIT_REQUEST, "%s: the merges are not beside it: %s%s is needed", path, dir, pairs[i][0]);
      Tokenizer *t = which == 0 ? read_pair(path, other) : read_pair(other, path);
      free(dir);
      free(other);
      return t;
    }
  return NULL;
}

static Tokenizer *open_json(const char *path) {
  size_t size;
  char *text = read_file(path, "tokenizer", MAX_FILE, &size);
  Tokenizer *t = tokenizer_from_json(path, text, size);
  free(text);
  return t;
}

// The tokenizer.json of one checkpoint, if it is what the manifest says.
static Tokenizer *open_checkpoint(const char *dir, Refusal *why) {
  Manifest m;
  if (!manifest_read(dir, &m, why)) return NULL;
  const ManifestFile *file = manifest_find(&m, "tokenizer.json");
  if (!file) { refuse_file(why, "%s: no tokenizer.json in this checkpoint", dir); return NULL; }
  int fd = manifest_open(dir, file, why);
  if (fd < 0) return NULL;
  close(fd);
  char *path = beside(dir, file->name);
  Tokenizer *t = open_json(path);
  free(path);
  return t;
}

// That of a run's newest checkpoint whose tokenizer is whole: all have the same. NULL: the folder has no checkpoint.
static Tokenizer *open_run(const char *dir) {
  size_t count;
  int64_t *steps = checkpoint_steps(dir, &count);
  Tokenizer *t = NULL;
  Refusal first = {0};
  for (size_t i = count; !t && i-- > 0;) {
    Refusal why = {0};
    char *path = checkpoint_path(dir, steps[i]);
    t = open_checkpoint(path, first.line.len ? &why : &first);
    free(path);
    buffer_free(&why.line);
  }
  if (count && !t) fail_refused(&first);
  buffer_free(&first.line);
  free(steps);
  return t;
}

static Tokenizer *open_directory(const char *dir) {
  char *path = beside(dir, "tokenizer.json");
  Tokenizer *t = path ? open_json(path) : NULL;
  for (size_t i = 0; !t && i < ARRAY_LEN(pairs); i++) {
    path = beside(dir, pairs[i][0]);
    if (path) t = open_pair(path);
  }
  free(path);
  if (!t) t = open_run(dir);
  if (!t) fail(EXIT_REQUEST, "%s: no tokenizer.json in this directory, nor vocab.bpe with encoder.json, nor a checkpoint", dir);
  return t;
}

Tokenizer *tokenizer_open(const char *spec) {
  if (strcmp(spec, "gpt2") == 0) return tokenizer_gpt2();
  if (strcmp(spec, "byte") == 0) return tokenizer_byte(false);
  if (strcmp(spec, "char") == 0)
    fail(EXIT_REQUEST, "--tokenizer char: which characters? Give the tokenizer.json of a character model");
  if (is_directory(spec)) return open_directory(spec);
  if (!file_exists(spec))
    fail(EXIT_REQUEST,
         "%s: no such tokenizer: it is gpt2, byte, a tokenizer.json, vocab.bpe, encoder.json or .tiktoken file, a model directory or a run", spec);
  if (ends_with(spec, ".tiktoken")) return read_ranks(spec);
  Tokenizer *t = open_pair(spec);
  return t ? t : open_json(spec);
}
