// config.c: owns the configuration of a model: presets, what is refused, the Hugging Face config.json. See model.h.
#include "model.h"
#include <math.h>     // floor
#include <string.h>   // strcmp, memcmp

static const struct { const char *name; GptConfig config; } presets[] = {
  {"tiny",       {FAMILY_GPT2,  4, 4, 4, 128, 256, 512, 0, true, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"small",      {FAMILY_GPT2,  6, 6, 6, 384, 256, 1536, 0, true, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"gpt2-124M",  {FAMILY_GPT2, 12, 12, 12, 768, 1024, 3072, 0, true, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"gpt2-355M",  {FAMILY_GPT2, 24, 16, 16, 1024, 1024, 4096, 0, true, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"gpt2-774M",  {FAMILY_GPT2, 36, 20, 20, 1280, 1024, 5120, 0, true, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"gpt2-1558M", {FAMILY_GPT2, 48, 25, 25, 1600, 1024, 6400, 0, true, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"llama-tiny", {FAMILY_LLAMA, 4, 4, 2, 128, 256, 352, 0, false, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
  {"llama-125M", {FAMILY_LLAMA, 12, 12, 12, 768, 1024, 2048, 0, false, true, 0, 1e-5, 10000, MASK_CAUSAL, 0, false}},
};

void config_preset(GptConfig *c, const char *name) {
  const char *names[ARRAY_LEN(presets)];
  Buffer list = {0};
  for (size_t i = 0; i < ARRAY_LEN(presets); i++) {
    if (!strcmp(presets[i].name, name)) { *c = presets[i].config; buffer_free(&list); return; }
    names[i] = presets[i].name;
    buffer_printf(&list, "%s%s", i ? ", " : "", presets[i].name);
  }
  const char *near = nearest(name, names, ARRAY_LEN(presets));
  fail(EXIT_REQUEST, "--model %s: no such preset%s%s; there are %s", name, near ? "; did you mean " : "", near ? near : "", list.data);
}

int64_t config_default_ffn(const GptConfig *c) {
  return c->family == FAMILY_GPT2 ? 4 * c->channels : (int64_t)round_up((size_t)(8 * c->channels / 3), 16);
}

// ---- what is refused ----

// The numbers of a model: what flags call them, the key of a config.json of either family (NULL: it has no such number), and their range.
// An epsilon must not be lost in fp32, where a row of zeros would become 0 / 0; the smallest in use is BERT's 1e-12. Rotary bases in use are
// 1e4 to some 1e9; below 1 the later pairs would turn faster than the first.
enum { LAYERS, HEADS, KV_HEADS, CHANNELS, CONTEXT, FFN, VOCAB, DROPOUT, NORM_EPS, ROPE_THETA, NUMBERS };
static const struct { const char *flag, *keys[2]; size_t offset; bool whole; double low, high; } numbers[NUMBERS] = {
  [LAYERS]     = {"--layers",   {"n_layer", "num_hidden_layers"}, offsetof(GptConfig, layers), true, 1, 10000},
  [HEADS]      = {"--heads",    {"n_head", "num_attention_heads"}, offsetof(GptConfig, heads), true, 1, 65536},
  [KV_HEADS]   = {"--kv-heads", {"n_head", "num_key_value_heads"}, offsetof(GptConfig, kv_heads), true, 1, 65536},
  [CHANNELS]   = {"--channels", {"n_embd", "hidden_size"}, offsetof(GptConfig, channels), true, 1, 1 << 20},
  [CONTEXT]    = {"--context",  {"n_positions", "max_position_embeddings"}, offsetof(GptConfig, context), true, 1, 1 << 24},
  [FFN]        = {"--ffn",      {"n_inner", "intermediate_size"}, offsetof(GptConfig, ffn), true, 1, 1 << 24},
  [VOCAB]      = {"--vocab",    {"vocab_size", "vocab_size"}, offsetof(GptConfig, vocab), true, 1, 1 << 28},
  [DROPOUT]    = {"--dropout",  {"resid_pdrop", "attention_dropout"}, offsetof(GptConfig, dropout), false, 0, 0.99},
  [NORM_EPS]   = {"the norm's epsilon", {"layer_norm_epsilon", "rms_norm_eps"}, offsetof(GptConfig, norm_eps), false, 1e-15, 1},
  [ROPE_THETA] = {"the rotary base", {NULL, "rope_theta"}, offsetof(GptConfig, rope_theta), false, 1, 1e12}};

static double number_of(const GptConfig *c, int i) {
  const void *field = (const char *)c + numbers[i].offset;
  return numbers[i].whole ? (double)*(const int64_t *)field : *(const double *)field;
}

static bool in_range(double x, int i) { return x >= numbers[i].low && x <= numbers[i].high; }

// --heads, or "n_head" where the number stands in a file (path not NULL). Used as called(c, path, HEADS).text.
typedef struct { char text[40]; } Name;
static Name called(const GptConfig *c, const char *path, int i) {
  Name n;
  if (path) snprintf(n.text, sizeof n.text, "\"%s\"", numbers[i].keys[c->family]);
  else snprintf(n.text, sizeof n.text, "%s", numbers[i].flag);
  return n;
}

static PRINTF_LIKE(2, 3) _Noreturn void refuse(const char *path, const char *fmt, ...) {
  char text[400];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  fail(EXIT_REQUEST, "%s%s%s", path ? path : "", path ? ": " : "", text);
}

// Flags that make heads and channels fit: fewer heads where some number does, or other channels. The kv heads must go on to divide the heads:
// where a Llama's are as many, it is not known here whether --kv-heads said so, and the advice says both.
typedef struct { char text[120]; } Advice;
static Advice advice_for_heads(const GptConfig *c) {
  Advice a;
  const bool llama = c->family == FAMILY_LLAMA, as_many = c->kv_heads == c->heads;
  const int64_t pair = llama ? 2 : 1, step = as_many ? 1 : c->kv_heads, unit = c->heads * pair;   // the head size must be a multiple of pair
  int64_t heads = c->heads - step, channels = (c->channels / unit + 1) * unit;
  while (heads > 0 && c->channels % (heads * pair)) heads -= step;
  if (channels > (int64_t)numbers[CHANNELS].high) channels -= unit;
  if (heads <= 0) snprintf(a.text, sizeof a.text, "; use --channels %lld", (long long)channels);
  else if (llama && as_many)
    snprintf(a.text, sizeof a.text, "; use --heads %lld --kv-heads %lld or --channels %lld", (long long)heads, (long long)heads, (long long)channels);
  else snprintf(a.text, sizeof a.text, "; use --heads %lld or --channels %lld", (long long)heads, (long long)channels);
  return a;
}

static Advice advice_for_kv_heads(const GptConfig *c) {
  Advice a;
  int64_t fit = MIN(c->kv_heads, c->heads);
  while (c->heads % fit) fit--;
  snprintf(a.text, sizeof a.text, "; use --kv-heads %lld", (long long)fit);
  return a;
}

// The kv heads come first: advice about heads counts on them. No flag mends a file, so there is no advice about one.
static void check_heads(const GptConfig *c, const char *path) {
  const Name heads = called(c, path, HEADS), kv_heads = called(c, path, KV_HEADS), channels = called(c, path, CHANNELS);
  const long long H = c->heads, KV = c->kv_heads, C = c->channels;
  if (c->family == FAMILY_GPT2 && KV != H)
    refuse(path, "%s %lld with --family gpt2: no transformers class has GPT-2 with grouped heads; leave it out or use --family llama", kv_heads.text, KV);
  if (H % KV) refuse(path, "%s %lld does not divide %s %lld%s", kv_heads.text, KV, heads.text, H, path ? "" : advice_for_kv_heads(c).text);
  if (C % H) refuse(path, "%s %lld does not divide %s %lld%s", heads.text, H, channels.text, C, path ? "" : advice_for_heads(c).text);
  if (c->family == FAMILY_LLAMA && C / H % 2)
    refuse(path, "head size %lld (%s %lld / %s %lld) is odd, rotary positions turn pairs%s", C / H, channels.text, C, heads.text, H,
           path ? "" : advice_for_heads(c).text);
}

// path: the config.json that the numbers come from, NULL where they come from flags; the refusal speaks of the one or the other.
static void check(const GptConfig *c, const char *path) {
  for (int i = 0; i < NUMBERS; i++)
    if (numbers[i].keys[c->family] && !in_range(number_of(c, i), i))
      refuse(path, "%s is %.10g, it must be from %.10g to %.10g", called(c, path, i).text, number_of(c, i), numbers[i].low, numbers[i].high);
  check_heads(c, path);
}

void config_check(const GptConfig *c) { check(c, NULL); }

double config_flops_per_token(const GptConfig *c, int64_t T) {
  TensorTable t;
  tensor_table_build(&t, c, 1);
  double looked_up = 0;
  const TensorRow *wpe = tensor_of(&t, ROLE_WPE, -1), *wte = tensor_of(&t, ROLE_WTE, -1);
  if (wpe) looked_up += (double)wpe->rows * (double)wpe->cols;
  if (!c->tie) looked_up += (double)wte->rows * (double)wte->cols;
  double n = (double)t.parameters - looked_up;
  tensor_table_free(&t);
  return 6 * n + 6.0 * (double)c->layers * (double)c->channels * (double)T;
}

// ---- config.json ----

static void write_token_ids(int32_t eot_id, Buffer *out) {
  if (eot_id < 0) buffer_printf(out, "  \"bos_token_id\": null,\n  \"eos_token_id\": null,\n");
  else buffer_printf(out, "  \"bos_token_id\": %d,\n  \"eos_token_id\": %d,\n", eot_id, eot_id);
}

static const char *json_word(bool b) { return b ? "true" : "false"; }

void config_write_json(const GptConfig *c, int32_t eot_id, Buffer *out) {
  buffer_printf(out, "{\n");
  if (c->family == FAMILY_GPT2) {
    buffer_printf(out, "  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"model_type\": \"gpt2\",\n  \"activation_function\": \"gelu_new\",\n");
    buffer_printf(out, "  \"n_layer\": %lld,\n  \"n_head\": %lld,\n  \"n_embd\": %lld,\n  \"n_positions\": %lld,\n  \"n_inner\": %lld,\n",
                  (long long)c->layers, (long long)c->heads, (long long)c->channels, (long long)c->context, (long long)c->ffn);
    buffer_printf(out, "  \"embd_pdrop\": %.17g,\n  \"attn_pdrop\": %.17g,\n  \"resid_pdrop\": %.17g,\n", c->dropout, c->dropout, c->dropout);
    buffer_printf(out, "  \"layer_norm_epsilon\": %.17g,\n  \"gpt_bias\": %s,\n", c->norm_eps, json_word(c->bias));
  } else {
    buffer_printf(out, "  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n  \"hidden_act\": \"silu\",\n");
    buffer_printf(out, "  \"num_hidden_layers\": %lld,\n  \"num_attention_heads\": %lld,\n  \"num_key_value_heads\": %lld,\n",
                  (long long)c->layers, (long long)c->heads, (long long)c->kv_heads);
    buffer_printf(out, "  \"hidden_size\": %lld,\n  \"intermediate_size\": %lld,\n  \"max_position_embeddings\": %lld,\n",
                  (long long)c->channels, (long long)c->ffn, (long long)c->context);
    buffer_printf(out, "  \"attention_bias\": false,\n  \"mlp_bias\": false,\n  \"attention_dropout\": %.17g,\n", c->dropout);
    buffer_printf(out, "  \"rms_norm_eps\": %.17g,\n  \"rope_theta\": %.17g,\n", c->norm_eps, c->rope_theta);
  }
  write_token_ids(eot_id, out);
  if (c->starts_with_eot) buffer_printf(out, "  \"gpt_starts_with_eot\": true,\n");
  buffer_printf(out, "  \"initializer_range\": %.17g,\n  \"tie_word_embeddings\": %s,\n  \"torch_dtype\": \"float32\",\n  \"vocab_size\": %lld\n}\n",
                c->init_std > 0 ? c->init_std : 0.02, json_word(c->tie), (long long)c->vocab);
}

// What stands there, for a message; so it is never freed.
static const char *found(const Json *value) {
  Buffer text = {0};
  switch (value->type) {
    case JSON_NULL: return "null";
    case JSON_BOOL: return json_word(value->number != 0);
    case JSON_ARRAY: return "an array";
    case JSON_OBJECT: return "an object";
    case JSON_NUMBER: json_write_number(&text, value->number); break;
    case JSON_STRING:
      buffer_printf(&text, "the string ");
      json_write_string(&text, value->string, MIN(value->length, (size_t)40));
  }
  return text.data;
}

static bool is_string(const Json *value, const char *text) {
  return value && value->type == JSON_STRING && value->length == strlen(text) && !memcmp(value->string, text, value->length);
}

static const Json *need(const Json *j, const char *key, const char *path) {
  const Json *value = json_get(j, key);
  if (!value) fail(EXIT_REQUEST, "%s: \"%s\" is missing; this is no config.json of a GPT-2 or Llama model", path, key);
  return value;
}

// The number i of the table where it stands under this key: most have one, a few another or two.
static double need_number(const Json *j, const char *key, int i, const char *path) {
  const Json *value = need(j, key, path);
  if (value->type != JSON_NUMBER || !in_range(value->number, i) || (numbers[i].whole && value->number != floor(value->number)))
    fail(EXIT_REQUEST, "%s: \"%s\" is %s, it must be a %snumber from %.10g to %.10g (line %lld)", path, key, found(value), numbers[i].whole ? "whole " : "",
         numbers[i].low, numbers[i].high, (long long)value->line);
  return value->number;
}

static int64_t need_int(const Json *j, const char *key, int i, const char *path) { return (int64_t)need_number(j, key, i, path); }

static void read_size(GptConfig *c, int i, const Json *j, const char *path) {
  *(int64_t *)((char *)c + numbers[i].offset) = need_int(j, numbers[i].keys[c->family], i, path);
}

// What is missing stays as it is. What is there is never taken for missing, null neither (some write it for "no rotary positions"): the model
// would compute something else.
static void read_real(GptConfig *c, int i, const Json *j, const char *path) {
  const char *key = numbers[i].keys[c->family];
  if (json_get(j, key)) *(double *)((char *)c + numbers[i].offset) = need_number(j, key, i, path);
}

static bool read_bool(const Json *j, const char *key, bool otherwise, const char *path) {
  const Json *value = json_get(j, key);
  if (!value) return otherwise;
  if (value->type != JSON_BOOL) fail(EXIT_REQUEST, "%s: \"%s\" is %s, it must be true or false (line %lld)", path, key, found(value), (long long)value->line);
  return value->number != 0;
}

// Of a key where transformers takes null for its absence.
static bool is_set(const Json *j, const char *key) { return json_get(j, key) && json_get(j, key)->type != JSON_NULL; }

// A key whose value changes the computation and that we know in one form only.
static void need_word(const Json *j, const char *key, const char *wanted, const char *path) {
  const Json *value = json_get(j, key);
  if (value && !is_string(value, wanted))
    fail(EXIT_REQUEST, "%s: \"%s\" is %s, only \"%s\" is supported (line %lld)", path, key, found(value), wanted, (long long)value->line);
}

static void need_absent_or_false(const Json *j, const char *key, const char *path) {
  const Json *value = json_get(j, key);
  if (!is_set(j, key) || (value->type == JSON_BOOL && value->number == 0)) return;
  fail(EXIT_REQUEST, "%s: \"%s\" is %s, only false is supported (line %lld)", path, key, found(value), (long long)value->line);
}

static void read_gpt2(GptConfig *c, const Json *j, const char *path) {
  read_size(c, LAYERS, j, path);
  read_size(c, HEADS, j, path);
  c->kv_heads = c->heads;
  read_size(c, CHANNELS, j, path);
  c->context = need_int(j, json_get(j, "n_positions") ? "n_positions" : "n_ctx", CONTEXT, path);
  c->ffn = is_set(j, "n_inner") ? need_int(j, "n_inner", FFN, path) : 4 * c->channels;
  c->bias = read_bool(j, "gpt_bias", true, path);
  read_real(c, NORM_EPS, j, path);
  read_real(c, DROPOUT, j, path);
  need_word(j, "activation_function", "gelu_new", path);
  need_absent_or_false(j, "scale_attn_by_inverse_layer_idx", path);
  need_absent_or_false(j, "reorder_and_upcast_attn", path);
  need_absent_or_false(j, "add_cross_attention", path);
  if (!read_bool(j, "scale_attn_weights", true, path)) fail(EXIT_REQUEST, "%s: \"scale_attn_weights\" is false, which is not supported", path);
}

// transformers 5 writes rope_theta inside rope_parameters, older versions beside it; rope_type was called type once, and still may be.
static void read_rope(GptConfig *c, const Json *j, const char *path) {
  const Json *rope = json_get(j, "rope_parameters");
  read_real(c, ROPE_THETA, j, path);
  need_absent_or_false(j, "rope_scaling", path);
  if (!is_set(j, "rope_parameters")) return;
  if (rope->type != JSON_OBJECT) fail(EXIT_REQUEST, "%s: \"rope_parameters\" is %s, it must be an object (line %lld)", path, found(rope), (long long)rope->line);
  read_real(c, ROPE_THETA, rope, path);
  need_word(rope, json_get(rope, "rope_type") ? "rope_type" : "type", "default", path);
}

static void read_llama(GptConfig *c, const Json *j, const char *path) {
  read_size(c, LAYERS, j, path);
  read_size(c, HEADS, j, path);
  c->kv_heads = is_set(j, "num_key_value_heads") ? need_int(j, "num_key_value_heads", KV_HEADS, path) : c->heads;
  read_size(c, CHANNELS, j, path);
  read_size(c, CONTEXT, j, path);
  read_size(c, FFN, j, path);
  read_real(c, NORM_EPS, j, path);
  read_real(c, DROPOUT, j, path);
  read_rope(c, j, path);
  need_word(j, "hidden_act", "silu", path);
  need_absent_or_false(j, "attention_bias", path);
  need_absent_or_false(j, "mlp_bias", path);
  const int64_t head_size = is_set(j, "head_dim") ? need_int(j, "head_dim", CHANNELS, path) : 0;
  if (head_size && head_size * c->heads != c->channels)
    fail(EXIT_REQUEST, "%s: \"head_dim\" %lld x \"num_attention_heads\" %lld is %lld, not \"hidden_size\" %lld: not supported", path,
         (long long)head_size, (long long)c->heads, (long long)(head_size * c->heads), (long long)c->channels);
}

void config_read_json(GptConfig *c, const Json *j, const char *path) {
  const Json *type = need(j, "model_type", path);
  const bool llama = is_string(type, "llama");
  if (!llama && !is_string(type, "gpt2")) fail(EXIT_REQUEST, "%s: \"model_type\" is %s, only \"gpt2\" and \"llama\" are supported", path, found(type));
  // what is missing has transformers' defaults
  *c = (GptConfig){.family = llama ? FAMILY_LLAMA : FAMILY_GPT2, .mask = MASK_CAUSAL, .dropout = llama ? 0 : 0.1, .norm_eps = llama ? 1e-6 : 1e-5, .rope_theta = 10000};
  if (llama) read_llama(c, j, path); else read_gpt2(c, j, path);
  read_size(c, VOCAB, j, path);
  c->starts_with_eot = read_bool(j, "gpt_starts_with_eot", false, path);
  c->tie = read_bool(j, "tie_word_embeddings", !llama, path);
  check(c, path);
}
