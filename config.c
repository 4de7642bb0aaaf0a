// config.c: owns the configuration of a model: presets, what is refused, the Hugging Face config.json. See model.h.
#include "model.h"
#include <string.h>   // strcmp

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

void config_check(const GptConfig *c) {
  const struct { const char *flag; int64_t value, most; } sizes[] = {
    {"layers", c->layers, 10000}, {"heads", c->heads, 65536}, {"kv-heads", c->kv_heads, 65536}, {"channels", c->channels, 1 << 20},
    {"context", c->context, 1 << 24}, {"ffn", c->ffn, 1 << 24}, {"vocab", c->vocab, 1 << 28}};
  for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
    if (sizes[i].value < 1 || sizes[i].value > sizes[i].most)
      fail(EXIT_REQUEST, "--%s is %lld, it must be from 1 to %lld", sizes[i].flag, (long long)sizes[i].value, (long long)sizes[i].most);
  if (c->channels % c->heads) {
    int64_t fit = c->heads;
    while (c->channels % fit) fit--;
    fail(EXIT_REQUEST, "--heads %lld does not divide --channels %lld; use --heads %lld or --channels %lld",
         (long long)c->heads, (long long)c->channels, (long long)fit, (long long)((c->channels / c->heads + 1) * c->heads));
  }
  if (c->heads % c->kv_heads) {
    int64_t fit = MIN(c->kv_heads, c->heads);
    while (c->heads % fit) fit--;
    fail(EXIT_REQUEST, "--kv-heads %lld does not divide --heads %lld; use --kv-heads %lld", (long long)c->kv_heads, (long long)c->heads, (long long)fit);
  }
  if (c->family == FAMILY_GPT2 && c->kv_heads != c->heads)
    fail(EXIT_REQUEST, "--kv-heads %lld with --family gpt2: no transformers class has GPT-2 with grouped heads; use --family llama", (long long)c->kv_heads);
  if (c->family == FAMILY_LLAMA && config_head_size(c) % 2)
    fail(EXIT_REQUEST, "head size %lld (channels / heads) is odd; rotary positions turn pairs: use --heads %lld",
         (long long)config_head_size(c), (long long)(c->channels % 2 ? 1 : c->channels / 2));
  if (!(c->dropout >= 0 && c->dropout < 1)) fail(EXIT_REQUEST, "--dropout is %g, it must be from 0 to below 1", c->dropout);
  if (!(c->norm_eps > 0 && c->norm_eps < 1)) fail(EXIT_REQUEST, "the norm's epsilon is %g, it must lie between 0 and 1", c->norm_eps);
}

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

static int64_t need_int(const Json *j, const char *key, const char *path, int64_t most) {
  int64_t value;
  if (!json_get(j, key)) fail(EXIT_REQUEST, "%s: \"%s\" is missing; this is no config.json of a GPT-2 or Llama model", path, key);
  if (!json_int(j, key, 1, most, &value))
    fail(EXIT_REQUEST, "%s: \"%s\" must be a whole number from 1 to %lld (line %lld)", path, key, (long long)most, (long long)json_get(j, key)->line);
  return value;
}

// A key whose value changes the computation and that we know in one form only.
static void need_word(const Json *j, const char *key, const char *wanted, const char *path) {
  const Json *value = json_get(j, key);
  if (!value || value->type == JSON_NULL) return;
  if (value->type != JSON_STRING || strcmp(value->string, wanted))
    fail(EXIT_REQUEST, "%s: \"%s\" is \"%s\", only \"%s\" is supported", path, key, value->type == JSON_STRING ? value->string : "?", wanted);
}

static void need_absent_or_false(const Json *j, const char *key, const char *path) {
  const Json *value = json_get(j, key);
  if (!value || value->type == JSON_NULL || (value->type == JSON_BOOL && value->number == 0)) return;
  fail(EXIT_REQUEST, "%s: \"%s\" is set, which is not supported (line %lld)", path, key, (long long)value->line);
}

static void read_gpt2(GptConfig *c, const Json *j, const char *path) {
  c->family = FAMILY_GPT2;
  c->layers = need_int(j, "n_layer", path, 10000);
  c->heads = c->kv_heads = need_int(j, "n_head", path, 65536);
  c->channels = need_int(j, "n_embd", path, 1 << 20);
  c->context = need_int(j, json_get(j, "n_positions") ? "n_positions" : "n_ctx", path, 1 << 24);
  const Json *inner = json_get(j, "n_inner");
  c->ffn = inner && inner->type != JSON_NULL ? need_int(j, "n_inner", path, 1 << 24) : 4 * c->channels;
  c->bias = json_bool(j, "gpt_bias", true);
  c->norm_eps = json_number(j, "layer_norm_epsilon", 1e-5);
  c->dropout = json_number(j, "resid_pdrop", 0.1);
  need_word(j, "activation_function", "gelu_new", path);
  need_absent_or_false(j, "scale_attn_by_inverse_layer_idx", path);
  need_absent_or_false(j, "reorder_and_upcast_attn", path);
  need_absent_or_false(j, "add_cross_attention", path);
  if (!json_bool(j, "scale_attn_weights", true)) fail(EXIT_REQUEST, "%s: \"scale_attn_weights\" is false, which is not supported", path);
}

static void read_llama(GptConfig *c, const Json *j, const char *path) {
  c->family = FAMILY_LLAMA;
  c->layers = need_int(j, "num_hidden_layers", path, 10000);
  c->heads = need_int(j, "num_attention_heads", path, 65536);
  c->kv_heads = json_get(j, "num_key_value_heads") ? need_int(j, "num_key_value_heads", path, 65536) : c->heads;
  c->channels = need_int(j, "hidden_size", path, 1 << 20);
  c->context = need_int(j, "max_position_embeddings", path, 1 << 24);
  c->ffn = need_int(j, "intermediate_size", path, 1 << 24);
  c->norm_eps = json_number(j, "rms_norm_eps", 1e-6);
  c->dropout = json_number(j, "attention_dropout", 0);
  // transformers 5 writes rope_theta inside rope_parameters, older versions beside it
  const Json *rope = json_get(j, "rope_parameters");
  c->rope_theta = json_number(rope, "rope_theta", json_number(j, "rope_theta", 10000));
  need_word(rope, "rope_type", "default", path);
  need_word(j, "hidden_act", "silu", path);
  need_absent_or_false(j, "attention_bias", path);
  need_absent_or_false(j, "mlp_bias", path);
  need_absent_or_false(j, "rope_scaling", path);
  if (json_get(j, "head_dim") && json_get(j, "head_dim")->type != JSON_NULL && need_int(j, "head_dim", path, 1 << 20) * c->heads != c->channels)
    fail(EXIT_REQUEST, "%s: \"head_dim\" x heads is %lld, not hidden_size %lld: not supported", path,
         (long long)(need_int(j, "head_dim", path, 1 << 20) * c->heads), (long long)c->channels);
}

void config_read_json(GptConfig *c, const Json *j, const char *path) {
  const char *type = json_string(j, "model_type", "");
  *c = (GptConfig){.mask = MASK_CAUSAL, .rope_theta = 10000};
  if (!strcmp(type, "gpt2")) read_gpt2(c, j, path);
  else if (!strcmp(type, "llama")) read_llama(c, j, path);
  else fail(EXIT_REQUEST, "%s: \"model_type\" is \"%s\", only gpt2 and llama are supported", path, type);
  c->vocab = need_int(j, "vocab_size", path, 1 << 28);
  c->starts_with_eot = json_bool(j, "gpt_starts_with_eot", false);
  c->tie = json_bool(j, "tie_word_embeddings", c->family == FAMILY_GPT2);   // the defaults of transformers
  config_check(c);
}
