// test_tokenizer_files.c: owns the checks of tokenizer_files.c: every kind written and read back, other programs' files, many wrong ones.
#include "tokenizer_test.h"
#include "manifest.h"   // folder_begin

static void every_kind_is_read_back(void) {
  Tokenizer *all[] = {tokenizer_gpt2(), tokenizer_byte(false), tokenizer_byte(true),
                      tokenizer_char_from_text("prose", prose, sizeof prose - 1, false),
                      tokenizer_char_from_text("prose", prose, sizeof prose - 1, true), train_on(prose, sizeof prose - 1,
                                                                                                 PATTERN_GPT2, 330, true),
                      train_on(prose, sizeof prose - 1, PATTERN_GPT4, 330, true), train_on(prose, sizeof prose - 1,
                                                                                           PATTERN_NONE, 330, false)};
  for (size_t i = 0; i < ARRAY_LEN(all); i++) {
    Buffer json = {0}, again = {0};
    tokenizer_json(all[i], &json);
    replace_file(in_folder("tokenizer.json"), json.data, json.len);
    Tokenizer *back = tokenizer_open(i % 2 ? folder : in_folder("tokenizer.json"));  // by file and by folder
    tokenizer_json(back, &again);
    CHECK_MSG(again.len == json.len && memcmp(again.data, json.data, json.len) == 0, "tokenizer %zu changes when read back", i);
    CHECK(tokenizer_kind(back) == tokenizer_kind(all[i]) && tokenizer_pattern(back) == tokenizer_pattern(all[i]) && tokenizer_eot(back) == tokenizer_eot(all[i]));
    CHECK_EQ(tokenizer_vocab_size(back), tokenizer_vocab_size(all[i]));
    CHECK(same_ids(back, all[i], prose, sizeof prose - 1));
    static const char *const hashes[] = {"bf0b7cdc84484489032cb0009d0ee810dc68a8f87842fb53b06bd3a5f20c1955",
      "50ed9f70137da27d51ce77261c808f6b42c019e5a3a88dc9795b563df9aa0ef8",
      "79f7f2cc332e5789bef44fb9300e017a38b13f25979691b6dc99c6be73fdc648",
      "6670c13c98b6390593fce2d7833c29db5fc2e9d23817ae72abea6cdf11cd0c53",
      "82136c5a9fd505bc2f474f41158c2926ea31af24c048b91d5ebb6f57a8324d5c",
      "95ed7faf3d391a54ebb9d2f47454ff2851aa9f7fc2431f9129be526d56e3660f",
      "55490d435976dccd9f8bd28d7b201d411443131c4a9dfe8e64df64fce218bf27",
      "7f9134ec073d315657a01b8d4b4ff00e42844732d0996592f04769f4493bb1b2"};
    char hex[65];
    tokenizer_sha256(back, hex);
    CHECK_STR(hex, hashes[i]);
    tokenizer_free(back);
    tokenizer_free(all[i]);
    buffer_free(&json);
    buffer_free(&again);
  }
}

static void config_is_written(void) {
  for (int eot = 0; eot < 2; eot++) {
    Tokenizer *t = tokenizer_byte(eot);
    Buffer b = {0};
    char error[200];
    tokenizer_config_json(t, 512, &b);
    Json *j = json_parse(b.data, b.len, error, sizeof error);
    CHECK(json_number(j, "model_max_length", 0) == 512);
    CHECK_STR(json_string(j, "tokenizer_class", ""), "PreTrainedTokenizerFast");
    CHECK_STR(json_string(j, "eos_token", "none"), eot ? END_OF_TEXT : "none");
    CHECK_STR(b.data, eot ? "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"model_max_length\": 512,\n  \"bos_token\": \"<|endoftext|>\",\n  \"eos_token\": \"<|endoftext|>\",\n"
                            "  \"clean_up_tokenization_spaces\": false\n}\n"
                          : "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"model_max_length\": 512,\n  \"clean_up_tokenization_spaces\": false\n}\n");
    json_free(j);
    buffer_free(&b);
    tokenizer_free(t);
  }
}

static void write_alphabet(Buffer *b, const char *bytes, size_t n) {
  for (size_t i = 0; i < n; i++) {
    char text[4];
    buffer_append(b, text, (size_t)utf8_encode(alphabet_code((uint8_t)bytes[i]), text));
  }
}

// vocab.bpe and encoder.json, in the published form, from a tokenizer.
static void write_pair(const Tokenizer *t, const char *merges_name, const char *encoder_name) {
  Buffer merges = {0}, encoder = {0};
  size_t n;
  buffer_printf(&merges, "#version: 0.2\n");
  for (size_t i = 0; i < t->merge_count; i++) {
    const char *left = tokenizer_token(t, t->merges[i].left, &n);
    write_alphabet(&merges, left, n);
    buffer_append(&merges, " ", 1);
    const char *right = tokenizer_token(t, t->merges[i].right, &n);
    write_alphabet(&merges, right, n);
    buffer_append(&merges, "\n", 1);
  }
  buffer_printf(&encoder, "{");
  for (int32_t id = 0; id < t->size; id++) {
    Buffer name = {0};
    const char *bytes = tokenizer_token(t, id, &n);
    if (id == t->eot) buffer_append(&name, bytes, n);
    else write_alphabet(&name, bytes, n);
    buffer_printf(&encoder, id ? ", " : "");
    json_write_string(&encoder, name.data, name.len);
    buffer_printf(&encoder, ": %d", id);
    buffer_free(&name);
  }
  buffer_printf(&encoder, "}");
  replace_file(in_folder(merges_name), merges.data, merges.len);
  if (encoder_name) replace_file(in_folder(encoder_name), encoder.data, encoder.len);
  buffer_free(&merges);
  buffer_free(&encoder);
}

// A checkpoint RUN/step_... with these files, name and text by turns.
static void write_checkpoint(const char *run, int64_t step, const char *const *files, size_t count) {
  FolderWriter w;
  folder_begin(&w, run, step, "0123456789abcdef0123456789abcdef");
  for (size_t i = 0; i < count; i += 2) {
    folder_file_begin(&w, files[i]);
    folder_write(&w, files[i + 1], strlen(files[i + 1]));
    folder_file_end(&w);
  }
  folder_publish(&w);
}

// A run's tokenizer is that of its newest checkpoint whose tokenizer is whole.
static void runs_are_read(void) {
  char *run = xstrdup(in_folder("run")), *damaged = format("%s/step_00000002/tokenizer.json", run);
  Buffer json[3] = {{0}};
  for (int i = 0; i < 3; i++) {
    Tokenizer *t = tokenizer_char_from_text("abc", "abc", (size_t)i + 1, false);
    tokenizer_json(t, &json[i]);
    tokenizer_free(t);
  }
  make_directory(run);
  EXPECT_FAIL(2, "run: no tokenizer.json in this directory, nor vocab.bpe with encoder.json, nor a checkpoint\n", tokenizer_open(run));
  write_checkpoint(run, 7, (const char *[]){"other.json", "{}"}, 2);
  EXPECT_FAIL(2, "run/step_00000007: no tokenizer.json in this checkpoint\n", tokenizer_open(run));
  write_checkpoint(run, 1, (const char *[]){"other.json", "{}", "tokenizer.json", json[0].data}, 4);
  write_checkpoint(run, 2, (const char *[]){"tokenizer.json", json[1].data}, 2);
  static const int letters[] = {2, 1, 3};
  for (int i = 0; i < 3; i++) {
    Tokenizer *t = tokenizer_open(run);
    CHECK_EQ(tokenizer_vocab_size(t), letters[i]);
    tokenizer_free(t);
    if (i == 0) replace_file(damaged, json[2].data, json[2].len);                  // whole by itself, but not what the manifest says
    if (i == 1) replace_file(in_folder("run/tokenizer.json"), json[2].data, json[2].len);
  }
  unlink(in_folder("run/tokenizer.json"));
  unlink(in_folder("run/step_00000001/tokenizer.json"));
  remove_tree(in_folder("run/step_00000007"));
  char *words = format("gpt: %s: has %zu bytes, the manifest says %zu\n", damaged, json[2].len, json[1].len);
  EXPECT_FAIL(2, words, tokenizer_open(run));                                        // the newest's reason
  Tokenizer *t = tokenizer_open(in_folder("run/step_00000002"));
  CHECK_EQ(tokenizer_vocab_size(t), 3);
  tokenizer_free(t);
  for (int i = 0; i < 3; i++) buffer_free(&json[i]);
  remove_tree(run);
  free(words), free(damaged), free(run);
}

static void check_is_gpt2(const char *spec) {
  Tokenizer *t = tokenizer_open(spec);
  char hex[65];
  tokenizer_sha256(t, hex);
  CHECK_STR(hex, "bf0b7cdc84484489032cb0009d0ee810dc68a8f87842fb53b06bd3a5f20c1955");
  tokenizer_free(t);
}

static void merges_files_are_read(void) {
  Tokenizer *t = tokenizer_gpt2();
  unlink(in_folder("tokenizer.json"));
  EXPECT_FAIL(2, "no tokenizer.json in this directory", tokenizer_open(folder));
  write_pair(t, "vocab.bpe", NULL);  // alone: the ids follow from the order
  check_is_gpt2(in_folder("vocab.bpe"));
  write_pair(t, "vocab.bpe", "encoder.json");
  check_is_gpt2(in_folder("vocab.bpe"));
  check_is_gpt2(in_folder("encoder.json"));
  check_is_gpt2(folder);
  char *with_slash = format("%s/", folder), before[4096];
  check_is_gpt2(with_slash);
  free(with_slash);
  if (!getcwd(before, sizeof before) || chdir(folder)) abort();
  check_is_gpt2("vocab.bpe");      // names without a folder
  check_is_gpt2("encoder.json");
  if (chdir(before)) abort();
  unlink(in_folder("vocab.bpe"));
  EXPECT_FAIL(2, "vocab.bpe is needed", tokenizer_open(in_folder("encoder.json")));
  unlink(in_folder("encoder.json"));
  write_pair(t, "merges.txt", "vocab.json");
  check_is_gpt2(in_folder("vocab.json"));
  check_is_gpt2(folder);
  replace_file(in_folder("merges.txt"), "#version: 0.2\na b\na\n", 20);
  EXPECT_FAIL(2, "merges.txt: line 2: merge 0 gives \"ab\"",
              (unlink(in_folder("vocab.json")), write_pair(tokenizer_byte(true), "x", "vocab.json"),
               tokenizer_open(in_folder("merges.txt"))));
  unlink(in_folder("vocab.json"));
  EXPECT_FAIL(2, "merges.txt: line 3: \"a\" is not two parts", tokenizer_open(in_folder("merges.txt")));
  replace_file(in_folder("merges.txt"), "a b\nc ab\na b\n", 13);
  EXPECT_FAIL(2, "are the same token", tokenizer_open(in_folder("merges.txt")));
  replace_file(in_folder("merges.txt"), "a b\n\xc3\xbf\xc3\xbf\xc3\xbf x\n", 13);
  EXPECT_FAIL(2, "line 2: merge 1 of an unknown part", tokenizer_open(in_folder("merges.txt")));
  replace_file(in_folder("merges.txt"), "#version: 0.2\r\na b\r\n\r\nab c\r\n", 28);  // line ends of Windows
  Tokenizer *two = tokenizer_open(in_folder("merges.txt"));
  CHECK(tokenizer_vocab_size(two) == 259 && tokenizer_merge_count(two) == 2);
  tokenizer_free(two);
  static const struct { const char *text, *reason; } rows[] = {   // of a merges.txt by itself
    {"a b\n#version: 0.2\n", "line 2: merge 1 of an unknown part \"#version:\""}, {"#versio\n", "line 1: \"#versio\" is not two parts with a blank between"}, {"\n#version\n", "line 2: \"#version\" is not"},
    {" b\n", "line 1: \" b\" is not two parts in the alphabet"}, {"a \n", "line 1: \"a \" is not two parts in the alphabet"}, {"a b c\n", "line 1: \"a b c\" is not two parts in the alphabet"},
    {"a b\n\n\n\xe2\x82\xac b\n", "line 4: \"\xe2\x82\xac b\" is not two"}, {"a \xff\n", "line 1: \"a ...\" is not two parts"}, {"\xc4\x80 b\n#", "line 2: \"#\" is not two parts with a blank"}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    replace_file(in_folder("merges.txt"), rows[i].text, strlen(rows[i].text));
    EXPECT_FAIL(2, rows[i].reason, tokenizer_open(in_folder("merges.txt")));
  }
  replace_file(in_folder("merges.txt"), "#version\n\na b\n\n", 15);   // eight letters are enough; blank lines mean nothing
  two = tokenizer_open(in_folder("merges.txt"));
  CHECK(tokenizer_vocab_size(two) == 258 && tokenizer_merge_count(two) == 1 && tokenizer_eot(two) == 257);
  tokenizer_free(two);
  replace_file(in_folder("merges.txt"), "\nb a\nba c", 9);
  two = tokenizer_open(in_folder("merges.txt"));
  CHECK(tokenizer_vocab_size(two) == 259 && tokenizer_merge_count(two) == 2);
  tokenizer_free(two);
  static const char *const vocabularies[][2] = {{"{}", "vocab.json: line 1: an empty vocabulary"}, {"[]", "vocab.json: line 1: no vocabulary: it must be one object"}, {"{", "vocab.json: no vocabulary: "}};
  for (size_t i = 0; i < ARRAY_LEN(vocabularies); i++) {
    replace_file(in_folder("vocab.json"), vocabularies[i][0], strlen(vocabularies[i][0]));
    EXPECT_FAIL(2, vocabularies[i][1], tokenizer_open(in_folder("merges.txt")));
  }
  unlink(in_folder("vocab.json"));
  unlink(in_folder("merges.txt"));
  EXPECT_FAIL(2, "no such tokenizer", tokenizer_open(in_folder("none.json")));
  EXPECT_FAIL(2, "which characters", tokenizer_open("char"));
  tokenizer_free(t);
}

static void write_ranks(const Tokenizer *t, int32_t count, const char *name) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  Buffer b = {0};
  for (int32_t id = 0; id < count; id++) {
    size_t n;
    const uint8_t *p = (const uint8_t *)tokenizer_token(t, id, &n);
    for (size_t i = 0; i < n; i += 3) {
      uint32_t bits = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0u);
      char four[4] = {digits[bits >> 18], digits[bits >> 12 & 63], i + 1 < n ? digits[bits >> 6 & 63] : '=',
                      i + 2 < n ? digits[bits & 63] : '='};
      buffer_append(&b, four, 4);
    }
    buffer_printf(&b, " %d\n", id);
  }
  replace_file(in_folder(name), b.data, b.len);
  buffer_free(&b);
}

static void rank_files_are_read(void) {
  Tokenizer *t = tokenizer_gpt2();
  write_ranks(t, 50256, "gpt2.tiktoken");
  Tokenizer *ranks = tokenizer_open(in_folder("gpt2.tiktoken"));
  CHECK(tokenizer_vocab_size(ranks) == 50257 && tokenizer_eot(ranks) == 50256 && tokenizer_pattern(ranks) == PATTERN_GPT2);
  char text[400];
  for (int i = 0; i < 300; i++) CHECK(same_ids(t, ranks, text, random_text(text, sizeof text)));
  CHECK(same_ids(t, ranks, prose, sizeof prose - 1));
  tokenizer_free(ranks);
  tokenizer_free(t);
  t = train_on(prose, sizeof prose - 1, PATTERN_GPT4, 350, false);
  write_ranks(t, tokenizer_vocab_size(t), "own.tiktoken");
  ranks = tokenizer_open(in_folder("own.tiktoken"));
  CHECK(tokenizer_pattern(ranks) == PATTERN_GPT4 && tokenizer_eot(ranks) == -1 && same_ids(t, ranks, prose, sizeof prose - 1));
  Buffer json = {0}, again = {0};  // written as tokenizer.json it is the same again
  tokenizer_json(ranks, &json);
  Tokenizer *back = tokenizer_from_json("json", json.data, json.len);
  tokenizer_json(back, &again);
  CHECK_STR(again.data, json.data);
  CHECK(same_ids(t, back, prose, sizeof prose - 1));
  buffer_free(&json);
  buffer_free(&again);
  tokenizer_free(back);
  tokenizer_free(ranks);
  tokenizer_free(t);
  static const char *const rows[][2] = {  // the whole file, the reason
      {"", "0 lines"}, {"\n", "line 1: \"\" is not a token"}, {"YQ== 0 1\n", "is not a number"}, {"YQ==\n",
                                                                                                  "is not a token in base64, a blank and a rank"},
      {"YQ== \n", "is not a token"}, {"YQ== x\n", "rank \"x\" is not a number"}, {"YQ== 1\n",
                                                                                  "rank 1 where 0 is due"}, {"YQ= 0\n",
                                                                                                             "is not base64"},
      {"Y!== 0\n", "is not base64"}, {"==== 0\n", "is not base64"}, {"YQ== 0\nYQ== 1\n",
                                                                     "ids 0 and 1 are the same token"}, {"YQ== 0\nYg== 0\n",
                                                                                                         "line 2: rank 0 where 1 is due"},
      {"YQ== 0\n", "no token is byte 0x00"}, {"YQ== 99999999999\n", "is not a token"}, {"YQ==YQ== 0\n", "is not base64"},
      {"YQ== 0000000000\n", "line 1: \"YQ== 0000000000\" is not a token in base64"}, {"YQ== 000000001\n", "line 1: rank 1 where 0 is due"}, {"YQ== /\n", "rank \"/\" is not a number"}, {"YQ== :\n", "rank \":\" is not a number"},
      {" 0\n", "line 1: \"\" is not base64"}, {"Y=== 0\n", "is not base64"}, {"=Q== 0\n", "is not base64"}, {"YQ=a 0\n", "is not base64"}, {"YQ== 0\r\nYg== 0\r\n", "line 2: rank 0 where 1 is due"}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    replace_file(in_folder("bad.tiktoken"), rows[i][0], strlen(rows[i][0]));
    EXPECT_FAIL(2, rows[i][1], tokenizer_open(in_folder("bad.tiktoken")));
  }
  for (size_t longest = 512; longest <= 513; longest++) {   // the longest token that is read, and one more byte
    Tokenizer *made = tokenizer_byte(false);
    char token[513];
    memset(token, 'z', sizeof token);
    tokenizer_add_token(made, token, longest);
    write_ranks(made, 257, "long.tiktoken");
    if (longest == 513) EXPECT_FAIL(2, "line 257: a token of 513 bytes, at most 512 are read", tokenizer_open(in_folder("long.tiktoken")));
    else tokenizer_free(tokenizer_open(in_folder("long.tiktoken")));
    tokenizer_free(made);
  }
}

// A vocabulary in an order of its own, in which ids 0 and 1 are merged and made: each token of `order` is written in the byte alphabet.
static Buffer small_vocabulary(const char *const *merges, size_t merge_count, bool ignore_merges) {
  Buffer j = {0};
  buffer_printf(&j, "{\"model\": {\"type\": \"BPE\", \"ignore_merges\": %s, \"vocab\": {\"ab\": 0, \"b\": 1, \"a\": 2, \"xyz\": 3, \"abb\": 4", ignore_merges ? "true" : "false");
  for (int i = 0, id = 5; i < 256; i++) {
    const uint8_t byte = alphabet_in_order(i);
    Buffer letter = {0};
    if (byte == 'a' || byte == 'b') continue;
    write_alphabet(&letter, &(char){(char)byte}, 1);
    buffer_printf(&j, ", ");
    json_write_string(&j, letter.data, letter.len);
    buffer_printf(&j, ": %d", id++);
    buffer_free(&letter);
  }
  buffer_printf(&j, "}, \"merges\": [");
  for (size_t i = 0; i < merge_count; i++) buffer_printf(&j, "%s\"%s\"", i ? ", " : "", merges[i]);
  buffer_printf(&j, "]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}}");
  return j;
}

static void check_ids(const Tokenizer *t, const char *text, const char *expected) {
  Buffer got = {0};
  TokenBuffer ids = {0};
  tokenizer_encode(t, text, strlen(text), &ids, SPECIAL_NONE);
  for (size_t i = 0; i < ids.count; i++) buffer_printf(&got, "%s%d", i ? " " : "", ids.ids[i]);
  CHECK_STR(got.data, expected);
  buffer_free(&got);
  token_buffer_free(&ids);
}

// Id 0 may be a part and a result; with ignore_merges a word that is a token is that token, in a short text and in a long one.
static void any_id_may_be_merged(void) {
  static const char *const merges[] = {"a b", "ab b"};
  for (int ignore = 0; ignore < 2; ignore++) {
    guarded = true;
    Buffer json = small_vocabulary(merges, 2, ignore);
    Tokenizer *t = tokenizer_from_json("j", json.data, json.len);
    guarded = false;
    check_ids(t, "abba", "4 2");
    check_ids(t, "bab", "1 0");
    TokenBuffer ids = {0};
    CHECK_EQ(tokenizer_encode(t, "xyz", 3, &ids, SPECIAL_NONE), ignore ? 1 : 3);
    CHECK(!ignore || ids.ids[0] == 3);
    token_buffer_free(&ids);
    Buffer text = {0};
    while (text.len < 300000) buffer_append(&text, "xyz\n", 4);   // a cache that begins with the vocabulary
    CHECK_EQ(tokenizer_encode(t, text.data, text.len, &ids, SPECIAL_NONE), (int64_t)text.len / 4 * (ignore ? 2 : 4));
    CHECK_EQ(tokenizer_words_merged(&ids), ignore ? 0 : 1);
    token_buffer_free(&ids);
    char *word = at_the_edge("abbabbabbabbabbabbabbabbabbabbabbabbabbabbabbabbabbabb", 54);   // a long word
    CHECK_EQ(tokenizer_encode(t, word, 54, &ids, SPECIAL_NONE), 18);
    for (size_t i = 0; i < ids.count; i++) CHECK_EQ(ids.ids[i], 4);
    free(word);
    buffer_free(&text);
    token_buffer_free(&ids);
    tokenizer_free(t);
    buffer_free(&json);
  }
  static const struct { const char *merge, *reason; } rows[] = {{"b ba", "merge 0 of an unknown part \"ba\""}, {"b b", "merge 0 gives \"bb\", which is not in the vocabulary"}, {"b a", "merge 0 gives \"ba\""}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    Buffer json = small_vocabulary(&rows[i].merge, 1, false);
    EXPECT_FAIL(2, rows[i].reason, tokenizer_from_json("j", json.data, json.len));
    buffer_free(&json);
  }
}

// Small files of every kind on a heap where nothing goes astray unseen.
static void readers_and_writers_stay_inside(void) {
  guarded = true;
  for (int kind = 0; kind < 5; kind++) {
    Tokenizer *t = kind < 3 ? train_on(prose, sizeof prose - 1, (TokenizerPattern)kind, 290, kind != 1) : kind == 3 ? tokenizer_byte(true) : tokenizer_char_from_text("t", prose, sizeof prose - 1, true);
    Buffer json = {0}, room = {0};
    tokenizer_json(t, &json);
    char *text = at_the_edge(json.data, json.len);
    Tokenizer *back = tokenizer_from_json("json", text, json.len);
    free(text);
    for (size_t from = 0; from < sizeof prose; from += 7) {
      size_t n = sizeof prose - 1 - from;
      text = at_the_edge(prose + from, n);
      check_round_trip(back, text, n, "guarded");
      CHECK(same_ids(t, back, text, n));
      free(text);
    }
    if (kind < 2) {
      write_ranks(t, tokenizer_vocab_size(t) - (kind != 1), "guarded.tiktoken");
      tokenizer_free(tokenizer_open(in_folder("guarded.tiktoken")));
    }
    if (kind == 0) {
      write_pair(t, "vocab.bpe", "encoder.json");
      tokenizer_free(tokenizer_open(in_folder("vocab.bpe")));
      unlink(in_folder("encoder.json"));
      tokenizer_free(tokenizer_open(in_folder("vocab.bpe")));
      unlink(in_folder("vocab.bpe"));
    }
    buffer_free(&json), buffer_free(&room);
    tokenizer_free(back);
    tokenizer_free(t);
  }
  guarded = false;
}

// ---- wrong files ----

// The text with the first `from` replaced by `to`.
static Buffer edited(const Buffer *text, const char *from, const char *to) {
  Buffer b = {0};
  const char *at = strstr(text->data, from);
  CHECK_MSG(at != NULL, "the file has no %s", from);
  if (!at) at = text->data;
  buffer_append(&b, text->data, (size_t)(at - text->data));
  buffer_append(&b, to, strlen(to));
  buffer_append(&b, at + strlen(from), strlen(at + strlen(from)));
  return b;
}

static const char *const wrong_edits[][3] = {  // what, replaced by what, the reason
    {"{", "", "no tokenizer.json: ':' where the end of the text"},
    {"{", "[", "no tokenizer.json: ':' where"},
    {"\"model\"", "\"mode\"", "it has no \"model\""},
    {"\"model\": {", "\"model\": 1, \"x\": {", "it has no \"model\""},
    {"\"BPE\"", "\"WordPiece\"", "the model is \"WordPiece\", it must be BPE"},
    {"\"BPE\"", "7", "the model is \"none\""},
    {"\"vocab\"", "\"vocal\"", "\"vocab\" is missing"},
    {"\"vocab\": {", "\"vocab\": [], \"x\": {", "\"vocab\" is missing or no object"},
    {"\"vocab\": {", "\"vocab\": {}, \"x\": {", "leaves a hole: 1 entries"},
    {"\"merges\": [", "\"x\": [", "\"merges\" is missing"},
    {"\"merges\": [", "\"merges\": {}, \"x\": [", "\"merges\" is missing or no list"},
    {"\"added_tokens\": [", "\"added_tokens\": 3, \"x\": [", "\"added_tokens\" is no list"},
    {"\"!\": 0", "\"!\": 1", "id 1 stands twice: \"!\" and \"\"\""},
    {"\"!\": 0", "\"!\": 299", "id 299 of \"!\" leaves a hole: 280 entries need the ids 0 to 279"},
    {"\"!\": 0", "\"!\": -1", "id -1 of \"!\""},
    {"\"!\": 0", "\"!\": 0.5", "the id of \"!\" is not a whole number"},
    {"\"!\": 0", "\"!\": \"0\"", "the id of \"!\" is not a whole number"},
    {"\"!\": 0", "\"!\": 1e300", "not a whole number"},
    {"\"!\": 0", "\"!\": null", "not a whole number"},
    {"\"!\": 0", "\"!!!\": 0", "no token is byte 0x21 alone"},
    {"\"!\": 0", "\"\": 0", "a token without text"},
    {"\"!\": 0", "\"\xe2\x82\xac\": 0", "is not written in the alphabet"},
    {"\"!\": 0", "\" \": 0", "is not written in the alphabet"},
    {"\"!\": 0,", "\"!\": 0, \"!\": 0,", "key \"!\" stands twice"},
    {"\"!\": 0,", "", "leaves a hole"},
    {"\"!\": 0,", "\"!\": 0", "'\"' where ',' or '}' is expected"},
    {"\"!\": 0", "\"\\ud800\": 0", "a lone high surrogate"},
    {"\"!\": 0", "\"\xff\": 0", "not valid UTF-8"},
    {"\"e d\"", "\"ed\"", "is not two parts with a blank between"},
    {"\"e d\"", "\"e \"", "unknown part \"\""},
    {"\"e d\"", "\"e qq\"", "unknown part \"qq\""},
    {"\"e d\"", "\"qq e\"", "unknown part \"qq\""},
    {"\"e d\"", "\"q z\"", "gives \"qz\", which is not in the vocabulary"},
    {"\"e d\"", "7", "is not a pair of texts"},
    {"\"e d\"", "[\"e\"]", "is not a pair of texts"},
    {"\"e d\"", "[\"e\", 4]", "is not a pair of texts"},
    {"\"e d\"", "[\"e\", \"d\", \"\"]", "is not a pair of texts"},
    {"\"e d\"", "\"e d\", \"e d\"", "are the same pair"},
    {"\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", "a normalizer is not supported"},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": null, \"x\": {", "pre-tokenizer \"null\" is not supported"},
    {"\"pre_tokenizer\"", "\"x\"", "gpt: t.json: pre-tokenizer \"null\" is not supported"},
    {"\"pre_tokenizer\": {\"type\":\"ByteLevel\"", "\"pre_tokenizer\": {\"type\":\"Metaspace\"",
     "pre-tokenizer \"Metaspace\" is not supported"},
    {"\"pre_tokenizer\": {\"type\":\"ByteLevel\"", "\"pre_tokenizer\": {\"type\":\"Sequence\"",
     "pre-tokenizer \"Sequence\" is not supported"},
    {"\"add_prefix_space\":false", "\"add_prefix_space\":true", "\"add_prefix_space\": true is not supported"},
    {"\"dropout\": null", "\"dropout\": 0.1", "\"dropout\" is set"},
    {"\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"##\"", "\"continuing_subword_prefix\" is set"},
    {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\"", "\"end_of_word_suffix\" is set"},
    {"\"byte_fallback\": false", "\"byte_fallback\": true", "\"byte_fallback\": true is not supported"},
    {"\"content\":\"<|endoftext|>\"", "\"x\":1", "an added token without"},
    {"\"content\":\"<|endoftext|>\"", "\"content\":\"\"", "an added token without text"},
    {"\"content\":\"<|endoftext|>\"", "\"content\":\"a\\u0000b\"", "zero byte"},
    {"\"content\":\"<|endoftext|>\"", "\"content\":\"<|other|>\"", "stands twice"},
    {"\"id\":279,", "\"id\":12,", "has another id than in the vocabulary"},
    {"\"id\":279,", "\"id\":\"x\",", "is not a whole number"},
    {"\"id\":279,", "", "an added token without"},
    {"\"special\":true}", "\"special\":true},{\"id\":279,\"content\":\"<|endoftext|>\"}", "stands twice"},
    {"\"special\":true}", "\"special\":true},{\"id\":290,\"content\":\"<|x|>\"}", "leaves a hole"},
    {"\"special\":true}", "\"special\":true},4", "an added token without"},
    {"\"!\": 0", "\"!\": 1e15", "t.json: line 22: the id of \"!\" is not a whole number"},
    {"\"!\": 0", "\"!\": -1e15", "the id of \"!\" is not a whole number"},
    {"\"!\": 0", "\"!\": 999999999999999", "id 999999999999999 of \"!\" leaves a hole"},
    {"\"!\": 0", "\"!\": 280", "id 280 of \"!\" leaves a hole"},
    {"\"!\": 0", "\"1234567890123456789012345678901234567890\": null", "the id of \"1234567890123456789012345678901234567890\" is"},
    {"\"!\": 0", "\"12345678901234567890123456789012345678901\": null", "the id of \"1234567890123456789012345678901234567890...\" is"},
    {"\"!\": 0", "\"123456789012345678901234567890123456789\xc3\xa9\": null", "the id of \"123456789012345678901234567890123456789\xc3\xa9\" is"},
    {"\"!\": 0", "\"123456789012345678901234567890123456789\xf0\x9f\x98\x80z\": null", "the id of \"123456789012345678901234567890123456789\xf0\x9f\x98\x80...\" is"},
    {"\"add_prefix_space\":false,", "", "\"add_prefix_space\": true is not supported"},
    {"\"dropout\": null", "\"dropout\": \"0\"", "\"dropout\" is set"},
    {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": 0", "\"end_of_word_suffix\" is set"},
    {"\"model\": {", "\"model\": {}, \"x\": {", "t.json: line 12: the model is \"none\", it must be BPE"},
    {"\"normalizer\": null", "\"normalizer\": 0", "t.json: line 8: a normalizer is not supported"},
    {"\"merges\": [", "\"merges\": [\"a b\", \"a b\"], \"x\": [", "merge 0 gives \"ab\""},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [1]}, \"x\": {", "pre-tokenizer \"Sequence\" is not supported"},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": {}}, \"x\": {", "pre-tokenizer \"Sequence\" is not supported"},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\"}, {\"type\": \"Split\"}]}, \"x\": {", "pre-tokenizer \"Sequence\" is not supported"},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\"}, {\"type\": \"ByteLevel\"}, {}]}, \"x\": {", "pre-tokenizer \"Sequence\" is not supported"},
    {"\"pre_tokenizer\": {", "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\"}, {\"type\": \"ByteLevel\"}]}, \"x\": {", "line 9: a Split without a \"Regex\" is not supported"},
};
static const char *const meaningless_edits[][2] = {   // what, replaced by what: it is read, and is the same
    {"\"dropout\": null", "\"dropout\": 0.0"}, {"\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"\""}, {"\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"\""},
    {",\"use_regex\":true}", "}"}, {"\"normalizer\": null,", ""}, {"\"ignore_merges\": false,", ""}, {"\"byte_fallback\": false,", ""}, {"\"dropout\": null,", ""}, {"\"version\": \"1.0\",", ""},
    {"\"e d\"", "[\"e\", \"d\"]"}, {"\"!\": 0", "\"!\": 0.0"}, {"\"!\": 0", "\"\\u0021\": 0e5"}};

static void wrong_edits_are_refused(const Buffer *json) {
  CHECK(ARRAY_LEN(wrong_edits) >= 40);
  for (size_t i = 0; i < ARRAY_LEN(wrong_edits); i++) {
    Buffer bad = edited(json, wrong_edits[i][0], wrong_edits[i][1]);
    EXPECT_FAIL(2, wrong_edits[i][2], tokenizer_from_json("t.json", bad.data, bad.len));
    buffer_free(&bad);
  }
}

static void meaningless_edits_change_nothing(const Buffer *json) {
  for (size_t i = 0; i < ARRAY_LEN(meaningless_edits); i++) {
    Buffer other = edited(json, meaningless_edits[i][0], meaningless_edits[i][1]), again = {0};
    Tokenizer *t = tokenizer_from_json("t.json", other.data, other.len);
    tokenizer_json(t, &again);
    CHECK_STR(again.data, json->data);
    tokenizer_free(t);
    buffer_free(&other), buffer_free(&again);
  }
}

static void wrong_files_are_refused(void) {
  Tokenizer *t = train_on("feed the bed, red bed; weed led shed; bled sled fed wed fled", 60, PATTERN_GPT2, 280, true);
  CHECK_EQ(tokenizer_vocab_size(t), 280);
  Buffer json = {0};
  tokenizer_json(t, &json);
  tokenizer_free(t);
  wrong_edits_are_refused(&json);
  meaningless_edits_change_nothing(&json);
  for (size_t cut = 0; cut + 2 < json.len; cut += 397) EXPECT_FAIL(2, "t.json: no tokenizer.json: ",
                                                                   tokenizer_from_json("t.json", json.data, cut));
  buffer_free(&json);
  Buffer deep = {0};
  for (int i = 0; i < 1 << 20; i++) buffer_append(&deep, "[", 1);
  EXPECT_FAIL(2, "nested deeper than 64", tokenizer_from_json("t.json", deep.data, deep.len));
  buffer_free(&deep);
}

static void wrong_patterns_and_characters_are_refused(void) {
  Tokenizer *t = train_on(prose, sizeof prose - 1, PATTERN_GPT4, 300, false);
  Buffer json = {0};
  tokenizer_json(t, &json);
  tokenizer_free(t);
  static const char *const rows[][3] = {{"(?i:", "(?x:", "a pattern this program does not have"},
                                        {"\"Regex\"", "\"String\"", "a Split without a \"Regex\""},
                                        {"\"Isolated\"", "\"Removed\"", "must have \"behavior\": \"Isolated\""},
                                        {"\"invert\":false", "\"invert\":true", "\"invert\": false"},
                                        {"\"use_regex\":false", "\"use_regex\":true", "must have \"use_regex\": false"},
                                        {"\"Split\"", "\"Digits\"", "pre-tokenizer \"Sequence\" is not supported"}};
  for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
    Buffer bad = edited(&json, rows[i][0], rows[i][1]);
    EXPECT_FAIL(2, rows[i][2], tokenizer_from_json("t.json", bad.data, bad.len));
    buffer_free(&bad);
  }
  buffer_free(&json);
  t = tokenizer_char_from_text("prose", "abc", 3, false);
  tokenizer_json(t, &json);
  tokenizer_free(t);
  Buffer bad = edited(&json, "\"b\"", "\"bb\"");
  EXPECT_FAIL(2, "token \"bb\" of a character vocabulary is not one character", tokenizer_from_json("t.json", bad.data, bad.len));
  buffer_free(&bad);
  buffer_free(&json);
}

// Every byte of a small file changed: read or refused in one line, never a crash.
static void damaged_files_are_survived(void) {
  Tokenizer *t = tokenizer_char_from_text("prose", "ab", 2, true);
  Buffer json = {0};
  tokenizer_json(t, &json);
  tokenizer_free(t);
  for (size_t at = 0; at < json.len; at += 7) {
    char old = json.data[at];
    json.data[at] = (char)draw(256);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
      if (!freopen("/dev/null", "w", stderr)) _exit(99);
      tokenizer_free(tokenizer_from_json("t.json", json.data, json.len));
      _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK_MSG(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 2), "byte %zu: status %d", at, status);
    json.data[at] = old;
  }
  buffer_free(&json);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  open_folder();
  RUN(every_kind_is_read_back);
  RUN(runs_are_read);
  RUN(config_is_written);
  RUN(merges_files_are_read);
  RUN(rank_files_are_read);
  RUN(any_id_may_be_merged);
  RUN(readers_and_writers_stay_inside);
  RUN(wrong_files_are_refused);
  RUN(wrong_patterns_and_characters_are_refused);
  RUN(damaged_files_are_survived);
  remove_tree(folder);
  return TEST_END();
}
