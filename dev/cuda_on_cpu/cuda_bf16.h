// cuda_bf16.h: owns nothing; the type lives in cuda_runtime.h.
#pragma once
#include "cuda_runtime.h"
