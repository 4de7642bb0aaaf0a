// load.c: owns opening a MODEL for use: checkpoint, tokenizer, device, weights on it. See load.h.
#include "load.h"
#include "machine.h"   // machine_memory_available
#include "ranks.h"     // ranks_here
#include <stdlib.h>    // free, getenv

void shape_from_flags(GptConfig *c, const Options *o) {
  config_preset(c, o->model ? o->model : o->family == FAMILY_LLAMA ? "llama-tiny" : "tiny");
  const Family family = o->model && !o->given[FLAG_family] ? c->family : (Family)o->family;
  const bool other_family = c->family != family;
  c->family = family;
  if (family == FAMILY_LLAMA && o->given[FLAG_bias] && o->bias) fail(EXIT_REQUEST, "--bias on with --family llama: it has no biases; leave the flag out");
  if (o->layers != AUTO_INT) c->layers = o->layers;
  if (o->channels != AUTO_INT) c->channels = o->channels;
  if (o->heads != AUTO_INT) c->heads = o->heads;
  if (o->heads != AUTO_INT || other_family) c->kv_heads = c->heads;
  if (o->kv_heads != AUTO_INT) c->kv_heads = o->kv_heads;
  c->ffn = o->ffn != AUTO_INT ? o->ffn : o->channels != AUTO_INT || other_family ? config_default_ffn(c) : c->ffn;
  c->bias = family == FAMILY_GPT2 && o->bias;
  c->tie = o->tie;
}

int threads_of(const Options *o) {
  const int here = cpu_processors();
  // More threads than processors wait for each other's turns. OMP_NUM_THREADS is taken as it is: the bits depend on neither, and tests show it.
  if (o->threads != AUTO_INT && o->threads > here) warn("--threads %lld: this process may run on %d processor%s, so it uses %d", (long long)o->threads, here, here == 1 ? "" : "s", here);
  if (o->threads != AUTO_INT) return (int)MIN(o->threads, (int64_t)here);
  return o->ranks > 1 && !getenv("OMP_NUM_THREADS") ? MAX(1, machine_cores() / ranks_here(o)) : 0;
}

const char *device_reason(const Options *o) {
  return o->device != DEVICE_AUTO || o->gpus ? NULL : o->ranks > 1 ? "several ranks compute on the CPU unless --gpus says otherwise" : cuda_unavailable();
}

Device *device_open(const Options *o, int gpu) {
  if (o->stochastic_rounding && o->precision != PRECISION_BF16) fail(EXIT_REQUEST, "--stochastic-rounding on is for --precision bf16: fp32 weights have no master copies to save");
  if (o->gemm == GEMM_WGMMA && o->precision != PRECISION_BF16) fail(EXIT_REQUEST, "--gemm wgmma is for --precision bf16: the instruction multiplies no fp32; or use --gemm own");
  int threads = threads_of(o);
  cuda_select(gpu);
  const char *why = device_reason(o);
  if (o->gpus || o->device == DEVICE_CUDA || (o->device == DEVICE_AUTO && !why)) return cuda_device(o->precision == PRECISION_BF16 ? CUDA_BF16 : CUDA_FP32, (GemmLibrary)o->gemm);
  if (o->gemm != GEMM_OWN) fail(why ? EXIT_MACHINE : EXIT_REQUEST, "--gemm %s needs --device cuda%s%s; or use --gemm own", o->gemm == GEMM_WGMMA ? "wgmma" : "cublaslt", why ? ", and " : "", why ? why : "");
  if (o->device == DEVICE_REFERENCE) return reference_device();
  return o->precision == PRECISION_BF16 ? cpu_device_bf16(threads) : cpu_device(threads);
}

void require_memory(const Device *d, const MemoryTable *table, size_t more, const char *advice) {
  const char *from;
  size_t available = d->memory_available ? d->memory_available(d, &from) : machine_memory_available(&from), needed;
  if (!add_size(table->total, more, &needed)) needed = SIZE_MAX;
  if (needed <= available) return;
  fail(EXIT_MACHINE, "memory: %.2f GiB are needed, %.2f GiB are left (%s); %s", (double)needed / (1 << 30), (double)available / (1 << 30), from, advice);
}

void checkpoint_get_gpt(void *gpt, Part part, const TensorRow *row, size_t first, size_t n, double *values) { gpt_read(gpt, part, row, first, n, values); }
void checkpoint_put_gpt(void *gpt, Part part, const TensorRow *row, size_t first, size_t n, const double *values) { gpt_write(gpt, part, row, first, n, values); }

void require_same_vocabulary(const Tokenizer *t, const GptConfig *c, const char *where) {
  if (tokenizer_vocab_size(t) > c->vocab)
    fail(EXIT_REQUEST, "%s: the tokenizer has %d ids, the model's vocabulary %lld: they do not belong together", where, tokenizer_vocab_size(t), (long long)c->vocab);
}

LoadedModel load_model(const char *model, const Options *o, Purpose purpose, int64_t B) {
  LoadedModel l = {.checkpoint = checkpoint_resolve(model)};
  char *path = format("%s/config.json", l.checkpoint->dir), *tokenizer = format("%s/tokenizer.json", l.checkpoint->dir);
  config_read_json(&l.config, l.checkpoint->config, path);
  l.config.dropout = 0;
  if (file_exists(tokenizer)) {
    l.tokenizer = tokenizer_open(tokenizer);
    require_same_vocabulary(l.tokenizer, &l.config, l.checkpoint->dir);
  }
  const int64_t T = purpose == PURPOSE_SAMPLE ? MIN(l.config.context, 128) : l.config.context;
  GptOptions options = {.config = l.config, .purpose = purpose, .B = B, .T = T};
  l.device = device_open(o, 0);
  MemoryTable table;
  gpt_memory(&table, l.device, &options);
  require_memory(l.device, &table, gpt_scratch(l.device, &options), purpose == PURPOSE_SAMPLE ? "close other programs or take a smaller model" : "use a smaller --batch");
  l.gpt = gpt_create(l.device, &options);
  checkpoint_load_weights(l.checkpoint, gpt_table(l.gpt), checkpoint_put_gpt, l.gpt);
  gpt_refresh(l.gpt);
  free(path);
  free(tokenizer);
  return l;
}

void unload_model(LoadedModel *l) {
  gpt_destroy(l->gpt);
  l->device->destroy(l->device);
  tokenizer_free(l->tokenizer);
  checkpoint_close(l->checkpoint);
  *l = (LoadedModel){0};
}
