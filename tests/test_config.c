// test_config.c: owns everything about a model's configuration (config.c): presets, what is refused in the words of flags or of a file, and the
// config.json of this program and of others.
#include "test.h"        // CHECK
#include "tiny_model.h"  // tiny

static int64_t parameters_of(const GptConfig *c) {
  TensorTable t;
  tensor_table_build(&t, c, 1);
  int64_t n = t.parameters;
  tensor_table_free(&t);
  return n;
}

static void presets(void) {
  static const struct { const char *name; int64_t parameters; } known[] = {   // Radford et al. 2019, as the released files count
    {"gpt2-124M", 124439808}, {"gpt2-355M", 354823168}, {"gpt2-774M", 774030080}, {"gpt2-1558M", 1557611200}};
  GptConfig c;
  for (size_t i = 0; i < ARRAY_LEN(known); i++) {
    config_preset(&c, known[i].name);
    c.vocab = 50257;
    config_check(&c);
    CHECK_EQ(parameters_of(&c), known[i].parameters);
  }
  config_preset(&c, "llama-125M");
  c.vocab = 32000;
  config_check(&c);
  CHECK_EQ(parameters_of(&c), 32000 * 768 + 12 * (2 * 768 + 4 * 768 * 768 + 3 * 768 * 2048) + 768);
  static const char *const others[] = {"tiny", "small", "llama-tiny"};
  for (size_t i = 0; i < ARRAY_LEN(others); i++) {
    config_preset(&c, others[i]);
    CHECK_EQ(c.vocab, 0);
    c.vocab = 512;
    config_check(&c);
    CHECK_EQ(c.ffn, config_default_ffn(&c));
  }
  EXPECT_FAIL(2, "did you mean gpt2-124M; there are tiny, small", config_preset(&c, "gpt2-123M"));
}

static void flops(void) {
  GptConfig c;
  config_preset(&c, "gpt2-124M");
  c.vocab = 50257;
  CHECK_EQ(config_flops_per_token(&c, 1024), 6LL * (124439808 - 1024 * 768) + 6LL * 12 * 768 * 1024);
  CHECK_EQ(config_flops_per_token(&c, 64), 6LL * (124439808 - 1024 * 768) + 6LL * 12 * 768 * 64);
  int64_t tied = (int64_t)config_flops_per_token(&c, 64);
  c.tie = false;      // the head is multiplied all the same, the lookup is not
  CHECK_EQ(config_flops_per_token(&c, 64), tied);
  c = tiny(FAMILY_LLAMA);
  CHECK_EQ(config_flops_per_token(&c, 13), 6 * (29 * 24 + 2 * (2 * 24 + 2 * 24 * 24 + 2 * 12 * 24 + 3 * 37 * 24) + 24) + 6 * 2 * 24 * 13);
  c = tiny(FAMILY_GPT2);
  c.channels = 40;
  CHECK_EQ(config_default_ffn(&c), 160);
  c.family = FAMILY_LLAMA;
  CHECK_EQ(config_default_ffn(&c), 112);      // 106.67, up to a multiple of 16
}

static void check_with(Family family, size_t offset, int64_t value) {
  GptConfig c = tiny(family);
  memcpy((char *)&c + offset, &value, sizeof value);
  config_check(&c);
}

static void check_with_real(size_t offset, double value) {
  GptConfig c = tiny(FAMILY_GPT2);
  memcpy((char *)&c + offset, &value, sizeof value);
  config_check(&c);
}

#define AT(field) offsetof(GptConfig, field)

static void check_heads(Family family, int64_t heads, int64_t kv_heads, int64_t channels) {
  GptConfig c = tiny(family);
  c.heads = heads, c.kv_heads = kv_heads, c.channels = channels;
  config_check(&c);
}

static void what_cannot_be_is_refused(void) {
  EXPECT_FAIL(2, "--layers is 0, it must be from 1 to 10000", check_with(FAMILY_GPT2, AT(layers), 0));
  EXPECT_FAIL(2, "--channels is -24", check_with(FAMILY_GPT2, AT(channels), -24));
  EXPECT_FAIL(2, "--vocab is 0", check_with(FAMILY_GPT2, AT(vocab), 0));
  EXPECT_FAIL(2, "--ffn is 99999999", check_with(FAMILY_GPT2, AT(ffn), 99999999));
  EXPECT_FAIL(2, "--context is 0", check_with(FAMILY_LLAMA, AT(context), 0));
  EXPECT_FAIL(2, "--kv-heads 3 does not divide --heads 4; use --kv-heads 2", check_with(FAMILY_LLAMA, AT(kv_heads), 3));
  EXPECT_FAIL(2, "--kv-heads 8 does not divide --heads 4; use --kv-heads 4", check_with(FAMILY_LLAMA, AT(kv_heads), 8));
  EXPECT_FAIL(2, "--kv-heads 2 with --family gpt2: no transformers class has GPT-2 with grouped heads; leave it out or use --family llama", check_with(FAMILY_GPT2, AT(kv_heads), 2));
  EXPECT_FAIL(2, "--kv-heads 3 with --family gpt2", check_with(FAMILY_GPT2, AT(kv_heads), 3));     // another number of them would not do either
  EXPECT_FAIL(2, "--dropout is 1, it must be from 0 to 0.99", check_with_real(AT(dropout), 1));
  EXPECT_FAIL(2, "--dropout is -0.1", check_with_real(AT(dropout), -0.1));
  EXPECT_FAIL(2, "--dropout is nan", check_with_real(AT(dropout), fabs(NAN)));
  EXPECT_FAIL(2, "epsilon is 0, it must be from 1e-15 to 1", check_with_real(AT(norm_eps), 0));
  EXPECT_FAIL(2, "epsilon is 1.5", check_with_real(AT(norm_eps), 1.5));
  check_with_real(AT(rope_theta), 0);        // GPT-2 has none
  EXPECT_FAIL(2, "the rotary base is 0, it must be from 1 to 1e+12", { GptConfig c = tiny(FAMILY_LLAMA); c.rope_theta = 0; config_check(&c); });
}

// What the advice says is no empty word: each of its ways passes.
static void advice_about_heads_works(void) {
  static const struct { Family family; int64_t heads, kv_heads, channels; const char *says; int64_t fewer, wider; } cases[] = {
    {FAMILY_GPT2, 5, 5, 24, "--heads 5 does not divide --channels 24; use --heads 4 or --channels 25", 4, 25},
    {FAMILY_GPT2, 8, 8, 7, "--heads 8 does not divide --channels 7; use --heads 7 or --channels 8", 7, 8},
    {FAMILY_GPT2, 65535, 65535, 1 << 20, "use --heads 32768 or --channels 1048560", 32768, 1048560},      // more channels than may be
    {FAMILY_LLAMA, 5, 5, 24, "--heads 5 does not divide --channels 24; use --heads 4 --kv-heads 4 or --channels 30", 4, 30},
    {FAMILY_LLAMA, 8, 8, 24, "head size 3 (--channels 24 / --heads 8) is odd, rotary positions turn pairs; use --heads 6 --kv-heads 6 or --channels 32", 6, 32},
    {FAMILY_LLAMA, 8, 4, 24, "is odd, rotary positions turn pairs; use --heads 4 or --channels 32", 4, 32},
    {FAMILY_LLAMA, 6, 2, 18, "use --channels 24", 0, 24},                                                 // 3 heads, but for the kv heads
    {FAMILY_LLAMA, 1, 1, 9, "head size 9 (--channels 9 / --heads 1) is odd, rotary positions turn pairs; use --channels 10", 0, 10},
    {FAMILY_LLAMA, 3, 3, 9, "head size 3 (--channels 9 / --heads 3) is odd, rotary positions turn pairs; use --channels 12", 0, 12},
    {FAMILY_LLAMA, 2, 2, 9, "--heads 2 does not divide --channels 9; use --channels 12", 0, 12},
    {FAMILY_LLAMA, 65535, 65535, 1 << 20, "use --heads 32768 --kv-heads 32768 or --channels 1048560", 32768, 1048560}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    const int64_t heads = cases[i].heads, kv_heads = cases[i].kv_heads;
    EXPECT_FAIL(2, cases[i].says, check_heads(cases[i].family, heads, kv_heads, cases[i].channels));
    check_heads(cases[i].family, heads, kv_heads, cases[i].wider);
    if (cases[i].fewer) check_heads(cases[i].family, cases[i].fewer, kv_heads == heads ? cases[i].fewer : kv_heads, cases[i].channels);
  }
}

static Json *parse(const char *text) {
  char error[256];
  Json *j = json_parse(text, strlen(text), error, sizeof error);
  if (!j) { printf("%s: %s\n", error, text); abort(); }
  return j;
}

static void round_trip(GptConfig c, int32_t eot) {
  Buffer text = {0};
  GptConfig back;
  config_write_json(&c, eot, &text);
  Json *j = parse(text.data);
  config_read_json(&back, j, "config.json");
  CHECK(back.family == c.family && back.layers == c.layers && back.heads == c.heads && back.kv_heads == c.kv_heads && back.channels == c.channels);
  CHECK(back.context == c.context && back.ffn == c.ffn && back.vocab == c.vocab && back.bias == c.bias && back.tie == c.tie && back.mask == c.mask);
  CHECK(back.dropout == c.dropout && back.norm_eps == c.norm_eps && back.rope_theta == c.rope_theta && back.starts_with_eot == c.starts_with_eot);
  if (eot >= 0) CHECK_EQ(json_number(j, "eos_token_id", -2), eot);
  else CHECK_EQ(json_get(j, "eos_token_id")->type, JSON_NULL);
  json_free(j);
  buffer_free(&text);
}

static void config_json_comes_back(void) {
  for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++)
    for (int option = 0; option < 8; option++) {
      GptConfig c = tiny(family);
      c.tie = option & 1;
      c.starts_with_eot = option & 2;
      c.dropout = option & 4 ? 0.1 : 0;
      c.norm_eps = option & 4 ? 3e-6 : 1e-5;
      if (family == FAMILY_GPT2) c.bias = option & 4;
      else c.rope_theta = option & 4 ? 500000 : 10000;
      round_trip(c, option & 2 ? 28 : -1);
    }
}

static void read_text(const char *text) {
  GptConfig c;
  config_read_json(&c, parse(text), "m/config.json");
}

#define GPT2_KEYS "\"model_type\": \"gpt2\", \"n_embd\": 24, \"n_head\": 4, \"n_positions\": 13, \"vocab_size\": 29"
#define LLAMA_KEYS "\"model_type\": \"llama\", \"hidden_size\": 24, \"num_attention_heads\": 4, \"num_hidden_layers\": 2, \"intermediate_size\": 37, " \
                   "\"max_position_embeddings\": 13, \"vocab_size\": 29"
#define GPT2(more) read_text("{" GPT2_KEYS ", \"n_layer\": 2, " more "}")
#define LLAMA(more) read_text("{" LLAMA_KEYS ", " more "}")

static void config_json_of_others(void) {
  GptConfig c;
  config_read_json(&c, parse("{" GPT2_KEYS ", \"n_layer\": 3, \"n_inner\": null}"), "config.json");
  CHECK(c.ffn == 96 && c.bias && c.tie && c.norm_eps == 1e-5 && c.layers == 3 && c.mask == MASK_CAUSAL);
  config_read_json(&c, parse("{" LLAMA_KEYS "}"), "config.json");
  CHECK(c.kv_heads == 4 && !c.bias && !c.tie && c.norm_eps == 1e-6 && c.rope_theta == 10000 && c.dropout == 0);
  config_read_json(&c, parse("{" LLAMA_KEYS ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 7}, \"num_key_value_heads\": 1, \"head_dim\": 6}"), "config.json");
  CHECK(c.rope_theta == 7 && c.kv_heads == 1);
  config_read_json(&c, parse("{" LLAMA_KEYS ", \"rope_parameters\": null, \"num_key_value_heads\": null, \"head_dim\": null, \"rope_scaling\": null, \"attention_bias\": false}"), "config.json");
  CHECK(c.rope_theta == 10000 && c.kv_heads == 4);
  EXPECT_FAIL(2, "m/config.json: \"model_type\" is the string \"bert\", only", read_text("{\"model_type\": \"bert\"}"));
  EXPECT_FAIL(2, "m/config.json: \"model_type\" is 7, only", read_text("{\"model_type\": 7}"));
  EXPECT_FAIL(2, "m/config.json: \"model_type\" is missing", read_text("[]"));
  EXPECT_FAIL(2, "\"n_layer\" is missing", read_text("{" GPT2_KEYS "}"));
  EXPECT_FAIL(2, "\"n_layer\" is 0, it must be a whole number from 1 to 10000 (line 1)", read_text("{" GPT2_KEYS ", \"n_layer\": 0}"));
  EXPECT_FAIL(2, "\"n_layer\" is 1000000000, it must be a whole number", read_text("{" GPT2_KEYS ", \"n_layer\": 1e9}"));
  EXPECT_FAIL(2, "\"n_layer\" is 2.5, it must be a whole number", read_text("{" GPT2_KEYS ", \"n_layer\": 2.5}"));
  EXPECT_FAIL(2, "\"n_layer\" is the string \"2\", it must be a whole number", read_text("{" GPT2_KEYS ", \n\"n_layer\": \"2\"}"));
  EXPECT_FAIL(2, "only \"gelu_new\" is supported", GPT2("\"activation_function\": \"relu\""));
  EXPECT_FAIL(2, "\"scale_attn_by_inverse_layer_idx\" is true, only false is supported", GPT2("\"scale_attn_by_inverse_layer_idx\": true"));
  EXPECT_FAIL(2, "\"scale_attn_weights\" is false", GPT2("\"scale_attn_weights\": false"));
  EXPECT_FAIL(2, "only \"silu\" is supported", LLAMA("\"hidden_act\": \"gelu\""));
  EXPECT_FAIL(2, "\"attention_bias\" is true, only false", LLAMA("\"attention_bias\": true"));
  EXPECT_FAIL(2, "\"rope_scaling\" is an object, only false", LLAMA("\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}"));
  EXPECT_FAIL(2, "\"rope_type\" is the string \"yarn\", only \"default\"", LLAMA("\"rope_parameters\": {\"rope_type\": \"yarn\"}"));
  EXPECT_FAIL(2, "\"type\" is the string \"linear\", only \"default\"", LLAMA("\"rope_parameters\": {\"type\": \"linear\", \"factor\": 2}"));
}

// What stands at a key is refused where it is of another type, and never taken for missing: of each kind of key, and each type.
static void config_json_of_other_types(void) {
  EXPECT_FAIL(2, "m/config.json: \"rope_theta\" is the string \"500000\", it must be a number from 1 to 1e+12 (line 2)", LLAMA("\n\"rope_theta\": \"500000\""));
  EXPECT_FAIL(2, "\"rope_theta\" is null, it must be a number", LLAMA("\"rope_theta\": null"));
  EXPECT_FAIL(2, "\"rope_theta\" is the string \"NaN\", it must be a number", LLAMA("\"rope_parameters\": {\"rope_theta\": \"NaN\"}"));
  EXPECT_FAIL(2, "\"rope_parameters\" is 500000, it must be an object (line 1)", LLAMA("\"rope_parameters\": 500000"));
  EXPECT_FAIL(2, "\"rope_type\" is null, only \"default\"", LLAMA("\"rope_parameters\": {\"rope_type\": null}"));
  EXPECT_FAIL(2, "\"layer_norm_epsilon\" is the string \"1e-3\", it must be a number from 1e-15 to 1", GPT2("\"layer_norm_epsilon\": \"1e-3\""));
  EXPECT_FAIL(2, "\"rms_norm_eps\" is true, it must be a number", LLAMA("\"rms_norm_eps\": true"));
  EXPECT_FAIL(2, "\"resid_pdrop\" is an array, it must be a number from 0 to 0.99", GPT2("\"resid_pdrop\": [0.1]"));
  EXPECT_FAIL(2, "\"attention_dropout\" is an object, it must be a number", LLAMA("\"attention_dropout\": {}"));
  EXPECT_FAIL(2, "\"gpt_bias\" is the string \"false\", it must be true or false (line 1)", GPT2("\"gpt_bias\": \"false\""));
  EXPECT_FAIL(2, "\"tie_word_embeddings\" is the string \"true\", it must be true or false", LLAMA("\"tie_word_embeddings\": \"true\""));
  EXPECT_FAIL(2, "\"tie_word_embeddings\" is null, it must be true or false", GPT2("\"tie_word_embeddings\": null"));
  EXPECT_FAIL(2, "\"gpt_starts_with_eot\" is 1, it must be true or false", GPT2("\"gpt_starts_with_eot\": 1"));
  EXPECT_FAIL(2, "\"scale_attn_weights\" is the string \"false\", it must be true or false", GPT2("\"scale_attn_weights\": \"false\""));
  EXPECT_FAIL(2, "\"attention_bias\" is the string \"true\", only false", LLAMA("\"attention_bias\": \"true\""));
  EXPECT_FAIL(2, "\"hidden_act\" is null, only \"silu\"", LLAMA("\"hidden_act\": null"));
  EXPECT_FAIL(2, "\"activation_function\" is the string \"gelu_new\\u0000\", only \"gelu_new\"", GPT2("\"activation_function\": \"gelu_new\\u0000\""));
  EXPECT_FAIL(2, "\"n_inner\" is true, it must be a whole number from 1 to 16777216", GPT2("\"n_inner\": true"));
  EXPECT_FAIL(2, "\"num_key_value_heads\" is the string \"2\", it must be a whole number from 1 to 65536", LLAMA("\"num_key_value_heads\": \"2\""));
  EXPECT_FAIL(2, "\"head_dim\" is the string \"6\", it must be a whole number", LLAMA("\"head_dim\": \"6\""));
  EXPECT_FAIL(2, "it must be true or false", GPT2("\"gpt_bias\": \"0123456789012345678901234567890123456789 and so on\""));
}

// Numbers that compute nothing: found where they stand, not in what the model says.
static void config_json_of_other_numbers(void) {
  static const char *const thetas[] = {"-5", "0", "0.5", "1e13", "1e300"}, *const epsilons[] = {"0", "-1e-5", "1e-16", "1e-320", "1.5", "1e30"};
  char text[80], needle[120];
  for (int inside = 0; inside < 2; inside++)
    for (size_t i = 0; i < ARRAY_LEN(thetas); i++) {
      snprintf(text, sizeof text, inside ? "\"rope_parameters\": {\"rope_theta\": %s}" : "\"rope_theta\": %s", thetas[i]);
      snprintf(needle, sizeof needle, "m/config.json: \"rope_theta\" is %s, it must be a number from 1 to 1e+12", i < 3 ? thetas[i] : i == 3 ? "10000000000000" : "1e+300");
      char *all = format("{" LLAMA_KEYS ", %s}", text);
      EXPECT_FAIL(2, needle, read_text(all));
      free(all);
    }
  for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++)
    for (size_t i = 0; i < ARRAY_LEN(epsilons); i++) {
      const char *key = family == FAMILY_LLAMA ? "rms_norm_eps" : "layer_norm_epsilon";
      snprintf(needle, sizeof needle, "m/config.json: \"%s\" is ", key);
      char *all = format("{%s, \"n_layer\": 2, \"%s\": %s}", family == FAMILY_LLAMA ? LLAMA_KEYS : GPT2_KEYS, key, epsilons[i]);
      EXPECT_FAIL(2, needle, read_text(all));
      EXPECT_FAIL(2, ", it must be a number from 1e-15 to 1 (line 1)", read_text(all));
      free(all);
    }
  EXPECT_FAIL(2, "m/config.json: \"resid_pdrop\" is 1, it must be a number from 0 to 0.99", GPT2("\"resid_pdrop\": 1"));
  EXPECT_FAIL(2, "m/config.json: \"attention_dropout\" is -0.5", LLAMA("\"attention_dropout\": -0.5"));
  GptConfig c;      // the ends of the ranges
  config_read_json(&c, parse("{" LLAMA_KEYS ", \"rope_theta\": 1, \"rms_norm_eps\": 1e-15, \"attention_dropout\": 0}"), "config.json");
  CHECK(c.rope_theta == 1 && c.norm_eps == 1e-15 && c.dropout == 0);
  config_read_json(&c, parse("{" LLAMA_KEYS ", \"rope_theta\": 1e12, \"rms_norm_eps\": 1, \"attention_dropout\": 0.99}"), "config.json");
  CHECK(c.rope_theta == 1e12 && c.norm_eps == 1 && c.dropout == 0.99);
}

// A shape that cannot be, in the words of the file that has it: its name, its keys, and no flag, which would not help.
#define SHAPE(needle, layout, ...) do { char *text_ = format(layout, __VA_ARGS__); EXPECT_FAIL(2, needle, read_text(text_)); free(text_); } while (0)
#define GPT2_SHAPE "{\"model_type\": \"gpt2\", \"n_layer\": 2, \"n_positions\": 13, \"vocab_size\": 29, \"n_head\": %d, \"n_embd\": %d}"
#define LLAMA_SHAPE "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"intermediate_size\": 37, \"max_position_embeddings\": 13, \"vocab_size\": 29, " \
                    "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"hidden_size\": %d}"
static void config_json_of_other_shapes(void) {
  SHAPE("gpt: m/config.json: \"n_head\" 3 does not divide \"n_embd\" 16\n", GPT2_SHAPE, 3, 16);
  SHAPE("gpt: m/config.json: \"num_attention_heads\" 3 does not divide \"hidden_size\" 16\n", LLAMA_SHAPE, 3, 3, 16);
  SHAPE("gpt: m/config.json: \"num_key_value_heads\" 3 does not divide \"num_attention_heads\" 4\n", LLAMA_SHAPE, 4, 3, 24);
  SHAPE("gpt: m/config.json: head size 3 (\"hidden_size\" 24 / \"num_attention_heads\" 8) is odd, rotary positions turn pairs\n", LLAMA_SHAPE, 8, 8, 24);
  EXPECT_FAIL(2, "m/config.json: \"head_dim\" 8 x \"num_attention_heads\" 4 is 32, not \"hidden_size\" 24", LLAMA("\"head_dim\": 8"));
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(presets);
  RUN(flops);
  RUN(what_cannot_be_is_refused);
  RUN(advice_about_heads_works);
  RUN(config_json_comes_back);
  RUN(config_json_of_others);
  RUN(config_json_of_other_types);
  RUN(config_json_of_other_numbers);
  RUN(config_json_of_other_shapes);
  return TEST_END();
}
