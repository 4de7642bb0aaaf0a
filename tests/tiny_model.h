// tiny_model.h: owns the smallest model that has everything: two layers, grouped heads and no biases in a Llama, odd sizes of what may be odd.
#pragma once
#include "../model.h"   // GptConfig

static inline GptConfig tiny(Family family) {
  bool llama = family == FAMILY_LLAMA;
  return (GptConfig){.family = family, .layers = 2, .heads = 4, .kv_heads = llama ? 2 : 4, .channels = 24, .context = 13, .ffn = 37, .vocab = 29,
                     .bias = !llama, .tie = !llama, .norm_eps = 1e-5, .rope_theta = 10000};
}
