// ptx_ops.cpp: owns what PTX instructions compute: one function a form, over the lanes of a warp; and the choice of the function for an opcode.
//
// Functions are templates over the operation and the type, so that each is a loop over 32 neighbours which the compiler vectorises (built with
// -O3 and without contraction). To add an instruction: write its function, and name it in choose() at the end.
// What is not modelled: approximate functions are the exact ones of the C library; .approx and .full divisions are exact.
#include "ptx.h"
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <unordered_map>

namespace ptx {
Type type_named(const std::string &name) {
  static const std::unordered_map<std::string, Type> types = {
    {"pred", PRED}, {"b8", B8}, {"u8", U8}, {"s8", S8}, {"b16", B16}, {"u16", U16}, {"s16", S16}, {"bf16", BF16}, {"f16", B16}, {"b32", B32}, {"u32", U32}, {"s32", S32},
    {"f32", F32}, {"bf16x2", BF16X2}, {"b64", B64}, {"u64", U64}, {"s64", S64}, {"f64", F64}};
  auto found = types.find(name);
  return found == types.end() ? NO_TYPE : found->second;
}

namespace {
// ---- lanes ----

template <class T> using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T> inline T as(Word<T> w) {
  if constexpr (std::is_floating_point_v<T>) { T x; memcpy(&x, &w, sizeof x); return x; }
  else return (T)w;
}
template <class T> inline Word<T> word(T x) {
  if constexpr (std::is_floating_point_v<T>) { Word<T> w; memcpy(&w, &x, sizeof w); return w; }
  else return (Word<T>)(std::make_unsigned_t<T>)x;
}
template <class F> inline __attribute__((always_inline)) void over(uint32_t lanes, F f) {
  if (lanes == ALL_LANES) {
    #pragma GCC ivdep
    for (int l = 0; l < LANES; l++) f(l);
  } else {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }
}
// Writes a predicate's bits of these lanes.
inline void put_bits(Warp &w, int place, uint32_t lanes, uint32_t bits) {
  uint32_t &p = predicate_at(w, place);
  p = (p & ~lanes) | (bits & lanes);
}

template <class Op, class T> void unary(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<T>>(w, i.operand[0]);
  auto *a = lanes_at<Word<T>>(w, i.operand[1]);
  over(lanes, [=](int l) { d[l] = word<T>(Op::of(as<T>(a[l]))); });
}
template <class Op, class T> void binary(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<T>>(w, i.operand[0]);
  auto *a = lanes_at<Word<T>>(w, i.operand[1]), *b = lanes_at<Word<T>>(w, i.operand[2]);
  over(lanes, [=](int l) { d[l] = word<T>(Op::of(as<T>(a[l]), as<T>(b[l]))); });
}
template <class Op, class T> void ternary(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<T>>(w, i.operand[0]);
  auto *a = lanes_at<Word<T>>(w, i.operand[1]), *b = lanes_at<Word<T>>(w, i.operand[2]), *c = lanes_at<Word<T>>(w, i.operand[3]);
  over(lanes, [=](int l) { d[l] = word<T>(Op::of(as<T>(a[l]), as<T>(b[l]), as<T>(c[l]))); });
}

// ---- arithmetic; whole numbers wrap around ----

#define WHOLE std::is_integral_v<T>
struct Add { template <class T> static T of(T a, T b) { if constexpr (WHOLE) return (T)((uint64_t)a + (uint64_t)b); else return a + b; } };
struct Subtract { template <class T> static T of(T a, T b) { if constexpr (WHOLE) return (T)((uint64_t)a - (uint64_t)b); else return a - b; } };
struct Multiply { template <class T> static T of(T a, T b) { if constexpr (WHOLE) return (T)((uint64_t)a * (uint64_t)b); else return a * b; } };
struct MultiplyHigh { template <class T> static T of(T a, T b) {
  if constexpr (sizeof(T) == 8) { typedef std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128> Long; return (T)(((Long)a * (Long)b) >> 64); }
  else return (T)(((std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>)a * b) >> (8 * sizeof(T)));
} };
struct MultiplyAdd { template <class T> static T of(T a, T b, T c) { return (T)((uint64_t)a * (uint64_t)b + (uint64_t)c); } };
struct MultiplyHighAdd { template <class T> static T of(T a, T b, T c) { return Add::of(MultiplyHigh::of(a, b), c); } };
struct Fused { template <class T> static T of(T a, T b, T c) { return std::fma(a, b, c); } };
// Rounded towards minus infinity. a b is exact in double; s + rest is the exact sum (Knuth's TwoSum).
struct FusedDown { template <class T> static T of(T a, T b, T c) {
  const double p = (double)a * (double)b, s = p + (double)c, part = s - p, rest = (p - (s - part)) + ((double)c - part);
  const float r = (float)s;
  return (double)r > s || ((double)r == s && rest < 0) ? std::nextafter(r, -INFINITY) : r;
} };
// Of whole numbers: by zero gives all ones, as it does on the hardware.
struct Divide { template <class T> static T of(T a, T b) {
  if constexpr (WHOLE) return b == 0 ? (T)-1 : std::is_signed_v<T> && b == (T)-1 ? Subtract::of((T)0, a) : (T)(a / b);
  else return a / b;
} };
struct Remainder { template <class T> static T of(T a, T b) { return b == 0 ? a : std::is_signed_v<T> && b == (T)-1 ? (T)0 : (T)(a % b); } };
// Of a NaN and a number the number.
struct Minimum { template <class T> static T of(T a, T b) { if constexpr (WHOLE) return b < a ? b : a; else return std::fmin(a, b); } };
struct Maximum { template <class T> static T of(T a, T b) { if constexpr (WHOLE) return a < b ? b : a; else return std::fmax(a, b); } };
struct MinimumOrNan { template <class T> static T of(T a, T b) { return a != a || b != b ? (T)NAN : std::fmin(a, b); } };
struct MaximumOrNan { template <class T> static T of(T a, T b) { return a != a || b != b ? (T)NAN : std::fmax(a, b); } };
struct And { template <class T> static T of(T a, T b) { return a & b; } };
struct Or { template <class T> static T of(T a, T b) { return a | b; } };
struct Xor { template <class T> static T of(T a, T b) { return a ^ b; } };
struct CopySign { template <class T> static T of(T a, T b) { return std::copysign(b, a); } };
struct Not { template <class T> static T of(T a) { return (T)~a; } };
struct Negate { template <class T> static T of(T a) { if constexpr (WHOLE) return (T)(0 - (uint64_t)a); else return -a; } };
struct Absolute { template <class T> static T of(T a) { if constexpr (WHOLE) return a < 0 ? (T)(0 - (uint64_t)a) : a; else return std::fabs(a); } };
struct Reciprocal { template <class T> static T of(T a) { return 1 / a; } };
struct SquareRoot { template <class T> static T of(T a) { return std::sqrt(a); } };
struct ReciprocalRoot { template <class T> static T of(T a) { return 1 / std::sqrt(a); } };
struct Exponential2 { template <class T> static T of(T a) { return std::exp2(a); } };
struct Logarithm2 { template <class T> static T of(T a) { return std::log2(a); } };
struct Sine { template <class T> static T of(T a) { return std::sin(a); } };
struct Cosine { template <class T> static T of(T a) { return std::cos(a); } };
struct HyperbolicTangent { template <class T> static T of(T a) { return std::tanh(a); } };
struct Reverse { template <class T> static T of(T a) { T r = 0; for (size_t b = 0; b < 8 * sizeof(T); b++) r = (T)(r << 1 | (a >> b & 1)); return r; } };
// f at c, of d bits: from the lowest bits of a into b
struct InsertBits { template <class T> static T of(T a, T b, uint32_t c, uint32_t d) {
  const uint32_t bits = 8 * sizeof(T), at = c & 255, n = std::min(d & 255, bits);
  if (at >= bits || n == 0) return b;
  const T mask = (T)((n >= bits ? ~(T)0 : (T)(((T)1 << n) - 1)) << at);
  return (T)((b & ~mask) | ((T)(a << at) & mask));
} };
struct ExtractBits { template <class T> static T of(T a, uint32_t c, uint32_t d) {
  const uint32_t bits = 8 * sizeof(T), at = c & 255, n = d & 255, sign = std::min(at + n, bits) - 1;
  typedef std::make_unsigned_t<T> U;
  if (n == 0) return 0;
  const bool negative = std::is_signed_v<T> && ((U)a >> sign & 1);
  U x = at >= bits ? 0 : (U)((U)a >> at);
  const uint32_t kept = at >= bits ? 0 : std::min(n, bits - at);
  const U mask = kept >= bits ? ~(U)0 : (U)(((U)1 << kept) - 1);
  x &= mask;
  return (T)(negative ? x | (U)~mask : x);
} };
// a float is flushed to zero where it is denormal (.ftz), kept within 0 and 1, a NaN to 0 (.sat)
inline float flushed(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }
template <class Op> struct Flushing { template <class... T> static float of(T... x) { return flushed(Op::of(flushed(x)...)); } };
template <class Op> struct Saturating { template <class... T> static float of(T... x) { return std::fmin(std::fmax(Op::of(x...), 0.0f), 1.0f); } };

template <class T> void multiply_wide(Warp &w, const Instruction &i, uint32_t lanes) {   // and add, where there is a fourth operand
  typedef std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>> Twice;
  auto *d = lanes_at<Word<Twice>>(w, i.operand[0]);
  auto *a = lanes_at<Word<T>>(w, i.operand[1]), *b = lanes_at<Word<T>>(w, i.operand[2]);
  if (i.operands == 3) over(lanes, [=](int l) { d[l] = word<Twice>((Twice)as<T>(a[l]) * (Twice)as<T>(b[l])); });
  else {
    auto *c = lanes_at<Word<Twice>>(w, i.operand[3]);
    over(lanes, [=](int l) { d[l] = word<Twice>((Twice)as<T>(a[l]) * (Twice)as<T>(b[l])) + c[l]; });
  }
}
template <class T, bool LEFT> void shift(Warp &w, const Instruction &i, uint32_t lanes) {   // by more than there is: zero, or the sign
  auto *d = lanes_at<Word<T>>(w, i.operand[0]);
  auto *a = lanes_at<Word<T>>(w, i.operand[1]);
  auto *b = lanes_at<uint32_t>(w, i.operand[2]);
  const uint32_t bits = 8 * sizeof(T);
  over(lanes, [=](int l) {
    const uint32_t n = b[l] < bits ? b[l] : bits - 1;
    const T x = as<T>(a[l]);
    if (LEFT) d[l] = b[l] >= bits ? 0 : word<T>((T)((Word<T>)x << n));
    else d[l] = b[l] >= bits && !std::is_signed_v<T> ? 0 : word<T>((T)(x >> n));
  });
}
template <bool LEFT> void funnel_shift(Warp &w, const Instruction &i, uint32_t lanes) {     // shf: of b:a; option: the amount wraps
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]), *b = lanes_at<uint32_t>(w, i.operand[2]), *c = lanes_at<uint32_t>(w, i.operand[3]);
  const bool wraps = i.option;
  over(lanes, [=](int l) {
    const uint64_t both = (uint64_t)b[l] << 32 | a[l];
    const uint32_t n = wraps ? c[l] & 31 : std::min(c[l], 32u);
    d[l] = LEFT ? (uint32_t)(both << n >> 32) : (uint32_t)(both >> n);
  });
}
template <class T> void insert_bits(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<T>>(w, i.operand[0]), *a = lanes_at<Word<T>>(w, i.operand[1]), *b = lanes_at<Word<T>>(w, i.operand[2]);
  auto *c = lanes_at<uint32_t>(w, i.operand[3]), *n = lanes_at<uint32_t>(w, i.operand[4]);
  over(lanes, [=](int l) { d[l] = InsertBits::of(a[l], b[l], c[l], n[l]); });
}
template <class T> void extract_bits(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<T>>(w, i.operand[0]), *a = lanes_at<Word<T>>(w, i.operand[1]);
  auto *c = lanes_at<uint32_t>(w, i.operand[2]), *n = lanes_at<uint32_t>(w, i.operand[3]);
  over(lanes, [=](int l) { d[l] = word<T>(ExtractBits::of(as<T>(a[l]), c[l], n[l])); });
}
template <class T, bool ONES> void count_bits(Warp &w, const Instruction &i, uint32_t lanes) {   // popc, clz
  auto *d = lanes_at<uint32_t>(w, i.operand[0]);
  auto *a = lanes_at<Word<T>>(w, i.operand[1]);
  over(lanes, [=](int l) { d[l] = ONES ? (uint32_t)__builtin_popcountll(a[l]) : a[l] ? (uint32_t)__builtin_clzll(a[l]) - (64 - 8 * sizeof(T)) : 8 * sizeof(T); });
}
void permute_bytes(Warp &w, const Instruction &i, uint32_t lanes) {   // prmt.b32 in its general form
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]), *b = lanes_at<uint32_t>(w, i.operand[2]), *c = lanes_at<uint32_t>(w, i.operand[3]);
  over(lanes, [=](int l) {
    const uint64_t both = (uint64_t)b[l] << 32 | a[l];
    uint32_t r = 0;
    for (int k = 0; k < 4; k++) {
      const uint32_t select = c[l] >> (4 * k) & 15, byte = (uint32_t)(both >> (8 * (select & 7))) & 255;
      r |= (select & 8 ? (byte & 128 ? 255u : 0u) : byte) << (8 * k);
    }
    d[l] = r;
  });
}
void logic_of_three(Warp &w, const Instruction &i, uint32_t lanes) {   // lop3.b32: the table is the last operand
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]), *b = lanes_at<uint32_t>(w, i.operand[2]), *c = lanes_at<uint32_t>(w, i.operand[3]),
       *table = lanes_at<uint32_t>(w, i.operand[4]);
  over(lanes, [=](int l) {
    uint32_t r = 0;
    for (int k = 0; k < 8; k++) if (table[l] >> k & 1) r |= (k & 4 ? a[l] : ~a[l]) & (k & 2 ? b[l] : ~b[l]) & (k & 1 ? c[l] : ~c[l]);
    d[l] = r;
  });
}

// ---- moves, choices, conversions ----

template <class W> void move(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<W>(w, i.operand[0]), *a = lanes_at<W>(w, i.operand[1]);
  over(lanes, [=](int l) { d[l] = a[l]; });
}
void pack(Warp &w, const Instruction &i, uint32_t lanes) {      // mov.b32 r, {a, b}; bytes: of an element
  uint64_t value[LANES] = {};
  for (int e = 0; e < i.elements; e++) {
    auto *a = lanes_at<uint32_t>(w, i.operand[1 + e]);
    over(lanes, [&](int l) { value[l] |= (uint64_t)a[l] << (8 * i.bytes * e); });
  }
  if (i.bytes * i.elements == 8) { auto *d = lanes_at<uint64_t>(w, i.operand[0]); over(lanes, [&](int l) { d[l] = value[l]; }); }
  else { auto *d = lanes_at<uint32_t>(w, i.operand[0]); over(lanes, [&](int l) { d[l] = (uint32_t)value[l]; }); }
}
void unpack(Warp &w, const Instruction &i, uint32_t lanes) {    // mov.b32 {a, b}, r
  uint64_t value[LANES];
  const int from = i.operand[i.elements];
  if (i.bytes * i.elements == 8) { auto *a = lanes_at<uint64_t>(w, from); over(lanes, [&](int l) { value[l] = a[l]; }); }
  else { auto *a = lanes_at<uint32_t>(w, from); over(lanes, [&](int l) { value[l] = a[l]; }); }
  for (int e = 0; e < i.elements; e++) {
    auto *d = lanes_at<uint32_t>(w, i.operand[e]);
    over(lanes, [&](int l) { d[l] = (uint32_t)(value[l] >> (8 * i.bytes * e)) & (i.bytes == 2 ? 0xffffu : ~0u); });
  }
}
template <class W> void select(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<W>(w, i.operand[0]), *a = lanes_at<W>(w, i.operand[1]), *b = lanes_at<W>(w, i.operand[2]);
  const uint32_t p = predicate_at(w, i.operand[3]);
  over(lanes, [=](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

enum Comparison { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NOT_NUM, COMPARISONS };
template <Comparison C, class T> inline bool holds(T a, T b) {
  if constexpr (C == EQ) return a == b;
  else if constexpr (C == NE) return a < b || a > b;
  else if constexpr (C == LT) return a < b;
  else if constexpr (C == LE) return a <= b;
  else if constexpr (C == GT) return a > b;
  else if constexpr (C == GE) return a >= b;
  else if constexpr (C == EQU) return !(a < b || a > b);
  else if constexpr (C == NEU) return !(a == b);
  else if constexpr (C == LTU) return !(a >= b);
  else if constexpr (C == LEU) return !(a > b);
  else if constexpr (C == GTU) return !(a <= b);
  else if constexpr (C == GEU) return !(a < b);
  else if constexpr (C == NUM) return a == a && b == b;
  else return !(a == a && b == b);
}
enum { COMBINE_AND = 1, COMBINE_OR, COMBINE_XOR };
inline uint32_t combined(int how, uint32_t bits, uint32_t with) { return how == COMBINE_AND ? bits & with : how == COMBINE_OR ? bits | with : bits ^ with; }
template <Comparison C, class T> void compare(Warp &w, const Instruction &i, uint32_t lanes) {   // elements: how many predicates are written
  auto *a = lanes_at<Word<T>>(w, i.operand[i.elements]), *b = lanes_at<Word<T>>(w, i.operand[i.elements + 1]);
  uint32_t bits = 0;
  for (int l = 0; l < LANES; l++) bits |= holds<C>(as<T>(a[l]), as<T>(b[l])) ? 1u << l : 0;
  uint32_t others = ~bits;
  if (i.option) {
    const uint32_t with = predicate_at(w, i.operand[i.elements + 2]);
    bits = combined(i.option, bits, with), others = combined(i.option, others, with);
  }
  put_bits(w, i.operand[0], lanes, bits);
  if (i.elements == 2) put_bits(w, i.operand[1], lanes, others);
}
template <class T, int... C> Execute comparison_of(int which, std::integer_sequence<int, C...>) {
  static const Execute all[] = {&compare<(Comparison)C, T>...};
  return all[which];
}

struct BitsAnd { static uint32_t of(uint32_t a, uint32_t b) { return a & b; } };
struct BitsOr { static uint32_t of(uint32_t a, uint32_t b) { return a | b; } };
struct BitsXor { static uint32_t of(uint32_t a, uint32_t b) { return a ^ b; } };
struct BitsNot { static uint32_t of(uint32_t a, uint32_t) { return ~a; } };
struct BitsSame { static uint32_t of(uint32_t a, uint32_t) { return a; } };
template <class Op> void predicates(Warp &w, const Instruction &i, uint32_t lanes) {
  put_bits(w, i.operand[0], lanes, Op::of(predicate_at(w, i.operand[1]), predicate_at(w, i.operand[i.operands - 1])));
}

template <class To, class From> void convert_whole(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<To>>(w, i.operand[0]);
  auto *a = lanes_at<Word<From>>(w, i.operand[1]);
  over(lanes, [=](int l) { d[l] = word<To>((To)as<From>(a[l])); });
}
// Any widths, by the way of 64 bits. bytes: bits of the source; elements: bits of the target; option: see below
enum { FROM_SIGNED = 1, TO_SIGNED = 2, SATURATES = 4, FROM_WIDE_REGISTER = 8, TO_WIDE_REGISTER = 16, TO_NARROW_REGISTER = 32 };
void convert_any_whole(Warp &w, const Instruction &i, uint32_t lanes) {
  const int from_bits = i.bytes, to_bits = i.elements, drop = 64 - from_bits, extra = 64 - to_bits, how = i.option;
  const __int128 lowest = how & TO_SIGNED ? -((__int128)1 << (to_bits - 1)) : 0, highest = ((__int128)1 << (to_bits - (how & TO_SIGNED ? 1 : 0))) - 1;
  over(lanes, [&](int l) {
    const uint64_t raw = how & FROM_WIDE_REGISTER ? lanes_at<uint64_t>(w, i.operand[1])[l] : lanes_at<uint32_t>(w, i.operand[1])[l];
    __int128 x = how & FROM_SIGNED ? (__int128)((int64_t)(raw << drop) >> drop) : (__int128)(raw << drop >> drop);
    if (how & SATURATES) x = x < lowest ? lowest : x > highest ? highest : x;
    const uint64_t cut = (uint64_t)x << extra, value = how & TO_SIGNED ? (uint64_t)((int64_t)cut >> extra) : cut >> extra;
    if (how & TO_WIDE_REGISTER) lanes_at<uint64_t>(w, i.operand[0])[l] = value;
    else lanes_at<uint32_t>(w, i.operand[0])[l] = (uint32_t)value & (how & TO_NARROW_REGISTER ? 0xffffu : ~0u);
  });
}
enum Rounding { TO_NEAREST, TO_ZERO, DOWN, UP };
template <Rounding R> double to_whole(double x) { return R == TO_NEAREST ? std::rint(x) : R == TO_ZERO ? std::trunc(x) : R == DOWN ? std::floor(x) : std::ceil(x); }
// Out of range: the nearest there is; NaN: 0, as cvt does for up to 32 bits (2^63 for 64)
template <class To, class From, Rounding R> void convert_to_whole(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<Word<To>>(w, i.operand[0]);
  auto *a = lanes_at<Word<From>>(w, i.operand[1]);
  over(lanes, [=](int l) {
    const double x = to_whole<R>((double)as<From>(a[l])), low = (double)std::numeric_limits<To>::min(), high = (double)std::numeric_limits<To>::max();
    d[l] = word<To>(x != x ? (sizeof(To) == 8 ? (To)((uint64_t)1 << 63) : (To)0) : x <= low ? std::numeric_limits<To>::min() : x >= high ? std::numeric_limits<To>::max() : (To)x);
  });
}
template <class To, class From> void convert_number(Warp &w, const Instruction &i, uint32_t lanes) {   // to nearest, as C converts
  auto *d = lanes_at<Word<To>>(w, i.operand[0]);
  auto *a = lanes_at<Word<From>>(w, i.operand[1]);
  over(lanes, [=](int l) { d[l] = word<To>((To)as<From>(a[l])); });
}
template <Rounding R> struct ToWhole { template <class T> static T of(T x) { return (T)to_whole<R>((double)x); } };
struct Same { template <class T> static T of(T x) { return x; } };
void float_to_bf16(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]);
  over(lanes, [=](int l) {
    const uint32_t u = a[l];
    d[l] = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
  });
}
void floats_to_bf16x2(Warp &w, const Instruction &i, uint32_t lanes) {   // the first operand goes to the upper half
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]), *b = lanes_at<uint32_t>(w, i.operand[2]);
  over(lanes, [=](int l) { d[l] = (uint32_t)cuemu_f2bf(as<float>(a[l])) << 16 | cuemu_f2bf(as<float>(b[l])); });
}
void bf16_to_float(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]);
  over(lanes, [=](int l) { d[l] = a[l] << 16; });
}

// ---- memory ----

// Pointers of the lanes' accesses, checked: inside what a kernel may touch, and multiples of their size.
void check_device_range(Warp &w, const Instruction &i, int lane, uint64_t address, size_t bytes) {
  cuemu::Range &known = w.known[(&i - w.block->kernel->instructions.data()) % REMEMBERED_RANGES];
  if (address >= known.lo && address + bytes <= known.hi) return;
  const cuemu::Alloc *a = cuemu::find_alloc(address);
  if (!a && in_module_variable(address, bytes)) return;
  if (!a || address + bytes > a->addr + a->size) {
    cuemu::describe_address(address);
    fail_in(w, i, lane, "access of %zu bytes outside of device memory", bytes);
  }
  known = {a->addr, a->addr + a->size};
}
void profile(const Warp &w, const Instruction &i, Space space, uint32_t lanes, size_t bytes, char *const (&to)[LANES], bool writes) {
  const uint64_t shared = (uint64_t)w.block->shared;
  uint64_t address[LANES] = {};
  if (space == PARAM || space == LOCAL) return;
  for (uint32_t m = lanes; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    if (space == GENERIC) space = (uint64_t)to[l] - shared < w.block->shared_bytes ? SHARED : GLOBAL;
    address[l] = (uint64_t)to[l] - (space == SHARED ? shared : cuemu::arena_lo);
  }
  const std::string &line = w.block->kernel->sources[(size_t)i.source];
  cuemu::profile_request(&line, &line, space == SHARED ? (writes ? cuemu::WRITE_SHARED : cuemu::READ_SHARED) : writes ? cuemu::WRITE_GLOBAL : cuemu::READ_GLOBAL, bytes, address, lanes);
}
void resolve(Warp &w, const Instruction &i, int which, int place, Space space, uint32_t lanes, size_t bytes, bool writes, char *(&to)[LANES]) {
  const Block &b = *w.block;
  const int64_t offset = i.offset[which];
  uint64_t at[LANES], together = 0;
  if (i.address_wide[which]) { auto *a = lanes_at<uint64_t>(w, place); for (int l = 0; l < LANES; l++) at[l] = a[l] + (uint64_t)offset; }
  else { auto *a = lanes_at<uint32_t>(w, place); for (int l = 0; l < LANES; l++) at[l] = (uint32_t)(a[l] + (uint32_t)offset); }
  const uint64_t shared = (uint64_t)b.shared, own = b.kernel->local_bytes;
  for (uint32_t m = lanes; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    uint64_t a = at[l];
    together |= a;
    if (space == SHARED || (space == GENERIC && a - shared < b.shared_bytes)) {
      if (space == GENERIC) a -= shared;
      if (a > b.shared_bytes || b.shared_bytes - a < bytes) fail_in(w, i, l, "access of %zu bytes at byte %llu of the block's %zu bytes of shared memory", bytes, (unsigned long long)a, b.shared_bytes);
      a += shared;
    } else if (space == PARAM) {
      if (a > b.kernel->parameter_bytes || b.kernel->parameter_bytes - a < bytes) fail_in(w, i, l, "access of %zu bytes at byte %llu of %zu bytes of parameters", bytes, (unsigned long long)a, b.kernel->parameter_bytes);
      a += (uint64_t)b.parameters;
    } else if (space == LOCAL) {
      if (a > own || own - a < bytes) fail_in(w, i, l, "access of %zu bytes at byte %llu of the thread's %zu bytes of local memory", bytes, (unsigned long long)a, (size_t)own);
      a += (uint64_t)b.local + (uint64_t)(w.number * LANES + l) * own;
    } else if (!(space == GENERIC && a - (uint64_t)b.local < own * b.launch->block.x * b.launch->block.y * b.launch->block.z)) check_device_range(w, i, l, a, bytes);
    to[l] = reinterpret_cast<char *>(a);
  }
  if (cuemu::settings().profile) profile(w, i, space, lanes, bytes, to, writes);
  if (together % bytes && space != PARAM) fail_in(w, i, __builtin_ctz(lanes), "an address is no multiple of the %zu bytes that are accessed", bytes);
}

template <class Element, class Register> void load(Warp &w, const Instruction &i, uint32_t lanes) {   // elements first, then the address
  char *from[LANES];
  resolve(w, i, 0, i.operand[i.elements], i.space, lanes, i.elements * sizeof(Element), false, from);
  for (int e = 0; e < i.elements; e++) {
    auto *d = lanes_at<Word<Register>>(w, i.operand[e]);
    over(lanes, [&](int l) {
      Element x;
      memcpy(&x, from[l] + e * sizeof x, sizeof x);
      d[l] = (Word<Register>)(Register)x;
    });
  }
}
template <class Element> void store(Warp &w, const Instruction &i, uint32_t lanes) {
  char *to[LANES];
  resolve(w, i, 0, i.operand[0], i.space, lanes, i.elements * sizeof(Element), true, to);
  for (int e = 0; e < i.elements; e++) {
    auto *a = lanes_at<Word<Element>>(w, i.operand[1 + e]);
    if (is_wide((Type)i.option)) { auto *wide = lanes_at<uint64_t>(w, i.operand[1 + e]); over(lanes, [&](int l) { Element x = (Element)wide[l]; memcpy(to[l] + e * sizeof x, &x, sizeof x); }); }
    else over(lanes, [&](int l) { Element x = (Element)a[l]; memcpy(to[l] + e * sizeof x, &x, sizeof x); });
  }
}

enum AtomicKind { ATOMIC_ADD, ATOMIC_MIN, ATOMIC_MAX, ATOMIC_AND, ATOMIC_OR, ATOMIC_XOR, ATOMIC_EXCHANGE, ATOMIC_COMPARE, ATOMIC_INCREMENT, ATOMIC_DECREMENT };
template <class T> T atomic_result(int kind, T old, T x, T y) {
  switch (kind) {
    case ATOMIC_ADD: return Add::of(old, x);
    case ATOMIC_MIN: return Minimum::of(old, x);
    case ATOMIC_MAX: return Maximum::of(old, x);
    case ATOMIC_EXCHANGE: return x;
    case ATOMIC_COMPARE: return old == x ? y : old;
    case ATOMIC_INCREMENT: return old >= x ? (T)0 : (T)(old + 1);
    case ATOMIC_DECREMENT: return old == 0 || old > x ? x : (T)(old - 1);
    default:
      if constexpr (WHOLE) return kind == ATOMIC_AND ? old & x : kind == ATOMIC_OR ? old | x : old ^ x;
      return old;
  }
}
template <class T> void atomic(Warp &w, const Instruction &i, uint32_t lanes) {   // d, [a], b (, c); red has no d. elements: how many d
  char *at[LANES];
  resolve(w, i, 0, i.operand[i.elements], i.space, lanes, sizeof(T), true, at);
  auto *x = lanes_at<Word<T>>(w, i.operand[i.elements + 1]), *y = lanes_at<Word<T>>(w, i.operand[i.operands - 1]), *d = lanes_at<Word<T>>(w, i.operand[0]);
  for (uint32_t m = lanes; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    auto *p = reinterpret_cast<Word<T> *>(at[l]);
    Word<T> old = __atomic_load_n(p, __ATOMIC_RELAXED), next;
    do next = word<T>(atomic_result<T>(i.option, as<T>(old), as<T>(x[l]), as<T>(y[l])));
    while (!__atomic_compare_exchange_n(p, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (i.elements) d[l] = old;
  }
}

void address_of_space(Warp &w, const Instruction &i, uint32_t lanes) {   // cvta; option: to the space, from generic
  auto *d = lanes_at<uint64_t>(w, i.operand[0]), *a = lanes_at<uint64_t>(w, i.operand[1]);
  const Block &b = *w.block;
  over(lanes, [&](int l) {
    const uint64_t base = i.space == SHARED ? (uint64_t)b.shared : i.space == LOCAL ? (uint64_t)b.local + (uint64_t)(w.number * LANES + l) * b.kernel->local_bytes : 0;
    d[l] = i.option ? a[l] - base : a[l] + base;
  });
}

// cp.async lands at the wait: whoever reads too early finds what was there before.
void copy_async(Warp &w, const Instruction &i, uint32_t lanes) {
  char *to[LANES], *from[LANES];
  auto *n = lanes_at<uint32_t>(w, i.operand[2]), *valid = lanes_at<uint32_t>(w, i.operand[i.operands - 1]);
  const size_t bytes = n[__builtin_ctz(lanes)];
  uint32_t reading = 0;
  over(lanes, [&](int l) { if (valid[l]) reading |= 1u << l; });
  resolve(w, i, 0, i.operand[0], SHARED, lanes, bytes, true, to);
  if (reading) resolve(w, i, 1, i.operand[1], GLOBAL, reading, bytes, false, from);
  if (cuemu::settings().profile) cuemu::profile_count(cuemu::COUNT_CP_ASYNC);
  for (uint32_t m = lanes; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    const Copy c = {to[l], from[l], (uint8_t)bytes, (uint8_t)std::min<size_t>(valid[l], bytes), (uint8_t)l, w.groups_closed[l]};
    w.copies.push_back(c);
  }
}
void close_group(Warp &w, const Instruction &, uint32_t lanes) { over(lanes, [&](int l) { w.groups_closed[l]++; }); }
void wait_for_groups(Warp &w, const Instruction &i, uint32_t lanes) {   // option: all; else all but the last so many
  const int keep = i.option ? -1 : (int)lanes_at<uint32_t>(w, i.operand[0])[0];
  size_t left = 0;
  for (Copy &c : w.copies) {
    if (!(lanes >> c.lane & 1) || (keep >= 0 && c.group >= w.groups_closed[c.lane] - keep)) { w.copies[left++] = c; continue; }
    if (c.valid) memcpy(c.to, c.from, c.valid);
    memset(c.to + c.valid, 0, (size_t)(c.bytes - c.valid));
  }
  w.copies.resize(left);
}
void fence(Warp &, const Instruction &, uint32_t) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void nothing(Warp &, const Instruction &, uint32_t) {}
void trap(Warp &w, const Instruction &i, uint32_t lanes) { fail_in(w, i, __builtin_ctz(lanes), "the kernel gave up"); }

// ---- the whole warp ----

enum ShuffleKind { SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, SHUFFLE_INDEX };
template <ShuffleKind KIND> void shuffle(Warp &w, const Instruction &i, uint32_t lanes) {   // d (|p), a, b, c; elements: 2 with p
  const int e = i.elements;
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[e]), *b = lanes_at<uint32_t>(w, i.operand[e + 1]), *c = lanes_at<uint32_t>(w, i.operand[e + 2]);
  uint32_t value[LANES], inside = 0;
  memcpy(value, a, sizeof value);
  over(lanes, [&](int l) {
    const int by = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31, lowest = l & segment, highest = lowest | (clamp & ~segment);
    int from = KIND == SHUFFLE_UP ? l - by : KIND == SHUFFLE_DOWN ? l + by : KIND == SHUFFLE_XOR ? l ^ by : lowest | (by & ~segment);
    if (KIND == SHUFFLE_UP ? from >= highest : from <= highest) inside |= 1u << l;
    else from = l;
    d[l] = lanes >> from & 1 ? value[from] : 0x7fc0deadu;   // of a lane that takes no part: undefined, here a NaN
  });
  if (e == 2) put_bits(w, i.operand[1], lanes, inside);
}
void ballot(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<uint32_t>(w, i.operand[0]);
  const uint32_t votes = predicate_at(w, i.operand[1]) & lanes;
  over(lanes, [=](int l) { d[l] = votes; });
}
template <int KIND> void vote(Warp &w, const Instruction &i, uint32_t lanes) {   // all, any, uni
  const uint32_t votes = predicate_at(w, i.operand[1]) & lanes;
  const bool result = KIND == 0 ? votes == lanes : KIND == 1 ? votes != 0 : votes == lanes || votes == 0;
  put_bits(w, i.operand[0], lanes, result ? lanes : 0);
}
template <class T> void reduce(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]);
  T sum = as<T>(a[__builtin_ctz(lanes)]);
  for (uint32_t m = lanes & (lanes - 1); m; m &= m - 1) sum = atomic_result<T>(i.option, sum, as<T>(a[__builtin_ctz(m)]), 0);
  over(lanes, [=](int l) { d[l] = word<T>(sum); });
}
void match_any(Warp &w, const Instruction &i, uint32_t lanes) {
  auto *d = lanes_at<uint32_t>(w, i.operand[0]), *a = lanes_at<uint32_t>(w, i.operand[1]);
  uint32_t value[LANES];
  memcpy(value, a, sizeof value);
  over(lanes, [&](int l) {
    uint32_t same = 0;
    over(lanes, [&](int k) { if (value[k] == value[l]) same |= 1u << k; });
    d[l] = same;
  });
}
void active_mask(Warp &w, const Instruction &i, uint32_t lanes) { auto *d = lanes_at<uint32_t>(w, i.operand[0]); over(lanes, [=](int l) { d[l] = lanes; }); }

template <bool TRANSPOSED> void load_matrices(Warp &w, const Instruction &i, uint32_t) {
  char *row[LANES];
  const int n = i.elements;
  resolve(w, i, 0, i.operand[n], SHARED, n == 4 ? ALL_LANES : (1u << (8 * n)) - 1, 16, false, row);
  if (cuemu::settings().profile) cuemu::profile_count(cuemu::COUNT_LDMATRIX);
  for (int k = 0; k < n; k++) {
    uint16_t m[8][8];
    for (int r = 0; r < 8; r++) memcpy(m[r], row[k * 8 + r], 16);
    auto *d = lanes_at<uint32_t>(w, i.operand[k]);
    for (int l = 0; l < LANES; l++) {
      const int a = l / 4, b = l % 4 * 2;
      d[l] = TRANSPOSED ? m[b][a] | (uint32_t)m[b + 1][a] << 16 : m[a][b] | (uint32_t)m[a][b + 1] << 16;
    }
  }
}
void multiply_matrices(Warp &w, const Instruction &i, uint32_t) {   // d(4), a(4), b(2), c(4)
  float *d[4], *c[4];
  uint32_t *a[4], *b[2];
  for (int k = 0; k < 4; k++) d[k] = lanes_at<float>(w, i.operand[k]), a[k] = lanes_at<uint32_t>(w, i.operand[4 + k]), c[k] = lanes_at<float>(w, i.operand[10 + k]);
  for (int k = 0; k < 2; k++) b[k] = lanes_at<uint32_t>(w, i.operand[8 + k]);
  cuemu::tensor_product(d, a, b, c);
  if (cuemu::settings().profile) cuemu::profile_count(cuemu::COUNT_MMA);
}

// wgmma: d(64), a, b, whether d counts, signs of a and b, transpositions of a and b. Products are done when they are waited for.
void multiply_tiles(Warp &w, const Instruction &i, uint32_t) {
  auto whole = [&](int n) { return lanes_at<uint32_t>(w, i.operand[n])[0]; };
  const Product p = {&i, {lanes_at<uint64_t>(w, i.operand[64])[0], lanes_at<uint64_t>(w, i.operand[65])[0], whole(69) != 0, whole(70) != 0}, w.product_groups};
  for (int n = 64; n < 66; n++)
    for (int l = 1; l < LANES; l++) if (lanes_at<uint64_t>(w, i.operand[n])[l] != lanes_at<uint64_t>(w, i.operand[n])[0]) fail_in(w, i, l, "wgmma: the lane has another operand than lane 0");
  if (predicate_at(w, i.operand[66]) != ALL_LANES || whole(67) != 1 || whole(68) != 1) fail_in(w, i, 0, "wgmma: only d + a b is known");
  for (uint64_t operand : {p.tiles.a, p.tiles.b}) if (const char *why = cuemu::wgmma_refusal(operand)) fail_in(w, i, 0, "wgmma: %s", why);
  if (cuemu::settings().profile) for (int n = 0; n < 16; n++) cuemu::profile_count(cuemu::COUNT_MMA);
  w.products.push_back(p);
}
void close_products(Warp &w, const Instruction &, uint32_t) { w.product_groups++; }
void wait_for_products(Warp &w, const Instruction &i, uint32_t) {
  const int keep = (int)lanes_at<uint32_t>(w, i.operand[0])[0];
  size_t done = 0;
  for (; done < w.products.size() && w.products[done].group < w.product_groups - keep; done++) {
    float *d[64];
    for (int r = 0; r < 64; r++) d[r] = lanes_at<float>(w, w.products[done].i->operand[r]);
    cuemu::wgmma_product({w.block->shared, w.block->shared_bytes}, w.products[done].tiles, w.number, d);
  }
  w.products.erase(w.products.begin(), w.products.begin() + (long)done);
}

// ---- which function an opcode is ----

struct Request { const Opcode &op; Instruction *i; std::vector<Type> *types; Type type; };

// True if there is such a function, the operands are so many, and registers are as wide as it takes them.
bool take(const Request &r, Execute execute, const std::vector<Type> &types) {
  if (!execute || types.size() != r.op.declared.size()) return false;
  for (size_t n = 0; n < types.size(); n++) {
    const Type declared = r.op.declared[n];
    if (declared != NO_TYPE && types[n] != NO_TYPE && (is_wide(declared) != is_wide(types[n]) || (declared == PRED) != (types[n] == PRED))) return false;
  }
  r.i->execute = execute, *r.types = types;
  return true;
}
template <class F> Execute for_whole(Type t, F f) {
  switch (t) {
    case B16: case U16: return f(uint16_t());
    case S16: return f(int16_t());
    case B32: case U32: return f(uint32_t());
    case S32: return f(int32_t());
    case B64: case U64: return f(uint64_t());
    case S64: return f(int64_t());
    default: return NULL;
  }
}
template <class F> Execute for_floats(Type t, F f) { return t == F32 ? f(float()) : t == F64 ? f(double()) : NULL; }
template <class F> Execute for_numbers(Type t, F f) { return t == F32 || t == F64 ? for_floats(t, f) : for_whole(t, f); }
template <class F> Execute for_words(Type t, F f) {   // as bits
  return type_bits(t) == 16 ? f(uint16_t()) : type_bits(t) == 32 ? f(uint32_t()) : type_bits(t) == 64 ? f(uint64_t()) : NULL;
}
#define OF(function, Op) [](auto x) -> Execute { (void)x; return &function<Op, decltype(x)>; }

// Floats with .ftz and .sat, of which none is the common case.
template <class Op, template <class, class> class Shape> Execute with_modifiers(const Request &r) {
  const bool flush = r.op.has("ftz"), saturate = r.op.has("sat");
  if (flush && saturate) return Shape<Saturating<Flushing<Op>>, float>::function;
  return flush ? Shape<Flushing<Op>, float>::function : saturate ? Shape<Saturating<Op>, float>::function : NULL;
}
template <class Op, class T> struct Unary { static constexpr Execute function = &unary<Op, T>; };
template <class Op, class T> struct Binary { static constexpr Execute function = &binary<Op, T>; };
template <class Op, class T> struct Ternary { static constexpr Execute function = &ternary<Op, T>; };

bool rounds_otherwise(const Request &r) { return r.op.has("rz") || r.op.has("rm") || r.op.has("rp"); }
template <class Op> bool whole_binary(const Request &r) { return take(r, for_whole(r.type, OF(binary, Op)), {r.type, r.type, r.type}); }
template <class Op> bool any_binary(const Request &r) {
  if (rounds_otherwise(r) || r.op.has("cc")) return false;
  Execute e = r.type == F32 ? with_modifiers<Op, Binary>(r) : NULL;
  return take(r, e ? e : for_numbers(r.type, OF(binary, Op)), {r.type, r.type, r.type});
}
template <class Op> bool any_unary(const Request &r) {
  Execute e = r.type == F32 ? with_modifiers<Op, Unary>(r) : NULL;
  return take(r, e ? e : for_numbers(r.type, OF(unary, Op)), {r.type, r.type});
}
template <class Op> bool float_unary(const Request &r) {
  Execute e = r.type == F32 ? with_modifiers<Op, Unary>(r) : NULL;
  return !rounds_otherwise(r) && take(r, e ? e : for_floats(r.type, OF(unary, Op)), {r.type, r.type});
}

bool choose_copysign(const Request &r) { return take(r, for_floats(r.type, OF(binary, CopySign)), {r.type, r.type, r.type}); }

Type twice(Type t) { return t == U16 ? U32 : t == S16 ? S32 : t == U32 ? U64 : t == S32 ? S64 : NO_TYPE; }
Execute wide_product(Type t) { return t == U16 ? &multiply_wide<uint16_t> : t == S16 ? &multiply_wide<int16_t> : t == U32 ? &multiply_wide<uint32_t> : t == S32 ? &multiply_wide<int32_t> : NULL; }
bool choose_mul(const Request &r) {
  if (r.op.has("wide")) return take(r, wide_product(r.type), {twice(r.type), r.type, r.type});
  return r.op.has("hi") ? whole_binary<MultiplyHigh>(r) : any_binary<Multiply>(r);
}
bool choose_mad(const Request &r) {
  if (r.op.has("cc")) return false;
  if (r.op.has("wide")) return take(r, wide_product(r.type), {twice(r.type), r.type, r.type, twice(r.type)});
  return take(r, r.op.has("hi") ? for_whole(r.type, OF(ternary, MultiplyHighAdd)) : for_whole(r.type, OF(ternary, MultiplyAdd)), {r.type, r.type, r.type, r.type});
}
bool choose_fma(const Request &r) {
  const std::vector<Type> types = {r.type, r.type, r.type, r.type};
  if (r.op.has("rm")) return r.type == F32 && !r.op.has("ftz") && !r.op.has("sat") && take(r, &ternary<FusedDown, float>, types);
  if (rounds_otherwise(r) || r.op.has("relu")) return false;
  Execute e = r.type == F32 ? with_modifiers<Fused, Ternary>(r) : NULL;
  return take(r, e ? e : for_floats(r.type, OF(ternary, Fused)), types);
}
template <class Op, class OrNan> bool choose_extreme(const Request &r) {
  if (r.op.has("NaN")) return take(r, for_floats(r.type, OF(binary, OrNan)), {r.type, r.type, r.type});
  return !r.op.has("xorsign") && any_binary<Op>(r);
}
template <class Op, class OfBits> bool choose_logic(const Request &r) {
  if (r.type == PRED) return take(r, &predicates<OfBits>, {PRED, PRED, PRED});
  return whole_binary<Op>(r);
}
bool choose_not(const Request &r) {
  if (r.type == PRED) return take(r, &predicates<BitsNot>, {PRED, PRED});
  return take(r, for_whole(r.type, OF(unary, Not)), {r.type, r.type});
}
template <bool LEFT> bool choose_shift(const Request &r) {
  return take(r, for_whole(r.type, [](auto x) -> Execute { (void)x; return &shift<decltype(x), LEFT>; }), {r.type, r.type, U32});
}
bool choose_shf(const Request &r) {
  r.i->option = r.op.has("wrap");
  return take(r, r.op.has("l") ? &funnel_shift<true> : &funnel_shift<false>, {B32, B32, B32, U32});
}
bool choose_bfi(const Request &r) { return take(r, r.type == B32 ? &insert_bits<uint32_t> : r.type == B64 ? &insert_bits<uint64_t> : NULL, {r.type, r.type, r.type, U32, U32}); }
bool choose_bfe(const Request &r) {
  Execute e = r.type == U32 ? &extract_bits<uint32_t> : r.type == S32 ? &extract_bits<int32_t> : r.type == U64 ? &extract_bits<uint64_t> : r.type == S64 ? &extract_bits<int64_t> : NULL;
  return take(r, e, {r.type, r.type, U32, U32});
}
template <bool ONES> bool choose_count(const Request &r) { return take(r, r.type == B32 ? &count_bits<uint32_t, ONES> : r.type == B64 ? &count_bits<uint64_t, ONES> : NULL, {U32, r.type}); }
bool choose_brev(const Request &r) { return take(r, r.type == B32 ? &unary<Reverse, uint32_t> : r.type == B64 ? &unary<Reverse, uint64_t> : NULL, {r.type, r.type}); }
bool choose_prmt(const Request &r) { return r.op.part.size() == 2 && take(r, &permute_bytes, {B32, B32, B32, B32}); }
bool choose_lop3(const Request &r) { return take(r, &logic_of_three, {B32, B32, B32, B32, B32}); }

bool choose_mov(const Request &r) {
  const size_t n = r.op.declared.size();
  const Type t = r.type;
  if (t == PRED) return take(r, &predicates<BitsSame>, {PRED, PRED});
  if (n == 2) return take(r, type_bits(t) == 64 ? &move<uint64_t> : &move<uint32_t>, {t, t});
  if (n < 2 || (type_bits(t) != 32 && type_bits(t) != 64)) return false;
  r.i->elements = (uint8_t)(n - 1), r.i->bytes = (uint8_t)(type_bits(t) / 8 / (n - 1));
  if (r.i->bytes != 2 && r.i->bytes != 4) return false;
  const Type part = r.i->bytes == 2 ? B16 : B32, first = r.op.declared[0];
  std::vector<Type> types(n, part);
  const bool packs = first != NO_TYPE && type_bits(first) == type_bits(t);
  types[packs ? 0 : n - 1] = t;
  return take(r, packs ? &pack : &unpack, types);
}
bool choose_selp(const Request &r) { return take(r, type_bits(r.type) == 64 ? &select<uint64_t> : &select<uint32_t>, {r.type, r.type, r.type, PRED}); }
bool choose_setp(const Request &r) {
  static const std::unordered_map<std::string, Comparison> names = {{"eq", EQ}, {"ne", NE}, {"lt", LT}, {"le", LE}, {"gt", GT}, {"ge", GE}, {"lo", LT}, {"ls", LE}, {"hi", GT}, {"hs", GE},
    {"equ", EQU}, {"neu", NEU}, {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NOT_NUM}};
  auto name = names.find(r.op.part[1]);
  if (name == names.end() || r.op.has("ftz")) return false;
  r.i->option = r.op.has("and") ? COMBINE_AND : r.op.has("or") ? COMBINE_OR : r.op.has("xor") ? COMBINE_XOR : 0;
  const size_t written = r.op.declared.size() - 2 - (r.i->option != 0);
  std::vector<Type> types(written, PRED);
  r.i->elements = (uint8_t)written;
  types.push_back(r.type), types.push_back(r.type);
  if (r.i->option) types.push_back(PRED);
  Execute e = for_numbers(r.type, [&](auto x) -> Execute { return comparison_of<decltype(x)>(name->second, std::make_integer_sequence<int, COMPARISONS>()); });
  return (written == 1 || written == 2) && take(r, e, types);
}

template <class To, class From> Execute to_whole_function(const Opcode &op) {
  return op.has("rni") ? &convert_to_whole<To, From, TO_NEAREST> : op.has("rzi") ? &convert_to_whole<To, From, TO_ZERO> : op.has("rmi") ? &convert_to_whole<To, From, DOWN>
       : op.has("rpi") ? &convert_to_whole<To, From, UP> : NULL;
}
Execute whole_conversion(const Request &r, Type to, Type from) {
  const Type place = r.op.declared[0];
  const bool plain = type_bits(to) >= 16 && type_bits(from) >= 16 && !r.op.has("sat") && (type_bits(to) == 64 || type_bits(place) == type_bits(to)) &&
                     (is_wide(r.op.declared[1]) == is_wide(from) || r.op.declared[1] == NO_TYPE) && is_wide(place) == is_wide(to);
  if (plain) return for_whole(to, [&](auto x) { return for_whole(from, [&](auto y) -> Execute { return &convert_whole<decltype(x), decltype(y)>; }); });
  auto is_signed = [](Type t) { return t == S8 || t == S16 || t == S32 || t == S64; };
  r.i->bytes = (uint8_t)type_bits(from), r.i->elements = (uint8_t)type_bits(to);
  r.i->option = (uint8_t)((is_signed(from) ? FROM_SIGNED : 0) | (is_signed(to) ? TO_SIGNED : 0) | (r.op.has("sat") ? SATURATES : 0) | (is_wide(r.op.declared[1]) ? FROM_WIDE_REGISTER : 0) |
                          (is_wide(place) ? TO_WIDE_REGISTER : type_bits(place) <= 16 ? TO_NARROW_REGISTER : 0));
  return &convert_any_whole;
}
bool choose_cvt(const Request &r) {
  const Type from = r.type, to = type_named(r.op.part[r.op.part.size() - 2]);
  const bool from_float = from == F32 || from == F64, to_float = to == F32 || to == F64;
  if (to == NO_TYPE || rounds_otherwise(r) || r.op.has("relu") || r.op.has("f16")) return false;
  if (to == BF16X2) return take(r, from == F32 ? &floats_to_bf16x2 : NULL, {B32, F32, F32});
  if (to == BF16) return take(r, from == F32 ? &float_to_bf16 : NULL, {B16, F32});
  if (from == BF16) return take(r, to == F32 ? &bf16_to_float : NULL, {F32, B16});
  if (from_float && to_float && from == to) {
    Execute e = r.op.has("rni") ? for_floats(to, OF(unary, ToWhole<TO_NEAREST>)) : r.op.has("rzi") ? for_floats(to, OF(unary, ToWhole<TO_ZERO>)) : r.op.has("rmi") ? for_floats(to, OF(unary, ToWhole<DOWN>))
              : r.op.has("rpi") ? for_floats(to, OF(unary, ToWhole<UP>)) : r.op.has("sat") ? (to == F32 ? &unary<Saturating<Same>, float> : NULL) : for_floats(to, OF(unary, Same));
    return take(r, e, {to, from});
  }
  if (r.op.has("ftz")) return false;
  if (from_float && to_float) return !r.op.has("sat") && take(r, to == F32 ? &convert_number<float, double> : &convert_number<double, float>, {to, from});
  if (from_float) return take(r, for_whole(to, [&](auto x) { return for_floats(from, [&](auto y) { return to_whole_function<decltype(x), decltype(y)>(r.op); }); }), {to, from});
  if (to_float) return take(r, for_floats(to, [&](auto x) { return for_whole(from, [&](auto y) -> Execute { return &convert_number<decltype(x), decltype(y)>; }); }), {to, from});
  if (r.op.declared.size() != 2 || r.op.declared[0] == NO_TYPE) return false;
  return take(r, whole_conversion(r, to, from), {NO_TYPE, r.op.declared[1] == NO_TYPE ? from : NO_TYPE});
}

Space space_of(const Opcode &op) {
  for (const std::string &p : op.part) {
    if (p == "global" || p == "const") return GLOBAL;
    if (p == "shared" || p == "shared::cta") return SHARED;
    if (p == "local") return LOCAL;
    if (p == "param" || p == "param::entry") return PARAM;
  }
  return GENERIC;
}
template <class Register> Execute load_into(Type t) {
  switch (t) {
    case B8: case U8: return &load<uint8_t, Register>;
    case S8: return &load<int8_t, Register>;
    case B16: case U16: case BF16: return &load<uint16_t, Register>;
    case S16: return &load<int16_t, Register>;
    case B32: case U32: case F32: case BF16X2: return &load<uint32_t, Register>;
    case S32: return &load<int32_t, Register>;
    default: return &load<uint64_t, Register>;
  }
}
int vector_of(const Opcode &op) { return op.has("v2") ? 2 : op.has("v4") ? 4 : op.has("v8") ? 8 : 1; }
bool choose_ld(const Request &r) {
  const int n = vector_of(r.op);
  const Type t = r.type, place = r.op.declared.empty() || r.op.declared[0] == NO_TYPE ? t : r.op.declared[0];
  if (t == NO_TYPE || t == PRED || r.op.has("L2::cache_hint")) return false;
  r.i->space = space_of(r.op), r.i->elements = (uint8_t)n;
  std::vector<Type> types((size_t)n, place);
  types.push_back(NO_TYPE);
  return take(r, is_wide(place) ? load_into<uint64_t>(t) : type_bits(place) <= 16 ? load_into<uint16_t>(t) : load_into<uint32_t>(t), types);
}
bool choose_st(const Request &r) {
  const int n = vector_of(r.op);
  const Type t = r.type, place = r.op.declared.size() < 2 || r.op.declared[1] == NO_TYPE ? t : r.op.declared[1];
  if (t == NO_TYPE || t == PRED || r.op.has("L2::cache_hint")) return false;
  r.i->space = space_of(r.op), r.i->elements = (uint8_t)n, r.i->option = place;
  std::vector<Type> types((size_t)n + 1, place);
  types[0] = NO_TYPE;
  Execute e = type_bits(t) == 8 ? &store<uint8_t> : type_bits(t) == 16 ? &store<uint16_t> : type_bits(t) == 32 ? &store<uint32_t> : &store<uint64_t>;
  return take(r, e, types);
}
int atomic_kind(const Opcode &op) {
  static const char *const names[] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};
  for (int k = 0; k < 10; k++) if (op.has(names[k])) return k;
  return -1;
}
bool choose_atom(const Request &r) {
  const int kind = atomic_kind(r.op);
  if (kind < 0 || type_bits(r.type) < 32 || r.type == BF16X2) return false;
  r.i->space = space_of(r.op), r.i->option = (uint8_t)kind, r.i->elements = r.op.part[0] == "atom";
  std::vector<Type> types(r.i->elements, r.type);
  types.push_back(NO_TYPE), types.push_back(r.type);
  if (kind == ATOMIC_COMPARE) types.push_back(r.type);
  return take(r, for_numbers(r.type, [](auto x) -> Execute { if constexpr (sizeof x >= 4) return &atomic<decltype(x)>; else return NULL; }), types);
}
bool choose_cvta(const Request &r) {
  r.i->space = space_of(r.op), r.i->option = r.op.has("to");
  return r.i->space != PARAM && take(r, &address_of_space, {U64, U64});
}
bool choose_cp(const Request &r) {
  if (!r.op.has("async") || r.op.has("mbarrier") || r.op.has("bulk")) return false;
  if (r.op.has("commit_group")) return take(r, &close_group, {});
  r.i->option = r.op.has("wait_all");
  if (r.op.has("wait_all")) return take(r, &wait_for_groups, {});
  if (r.op.has("wait_group")) return take(r, &wait_for_groups, {U32});
  const size_t n = r.op.declared.size();
  if (n < 3 || r.op.declared[n - 1] == PRED || r.op.has("L2::cache_hint")) return false;
  std::vector<Type> types(n, U32);
  types[0] = types[1] = NO_TYPE;
  return n <= 4 && take(r, &copy_async, types);
}

bool together(const Request &r, Execute e, const std::vector<Type> &types, int mask) {
  r.i->flow = TOGETHER, r.i->mask = mask;
  return take(r, e, types);
}
bool choose_shfl(const Request &r) {
  const int n = (int)r.op.declared.size(), e = n - 4;
  if (e != 1 && e != 2) return false;
  r.i->elements = (uint8_t)e;
  std::vector<Type> types((size_t)n, B32);
  if (e == 2) types[1] = PRED;
  Execute f = r.op.has("up") ? &shuffle<SHUFFLE_UP> : r.op.has("down") ? &shuffle<SHUFFLE_DOWN> : r.op.has("bfly") ? &shuffle<SHUFFLE_XOR> : r.op.has("idx") ? &shuffle<SHUFFLE_INDEX> : NULL;
  return r.op.has("sync") && together(r, f, types, n - 1);
}
bool choose_vote(const Request &r) {
  if (!r.op.has("sync")) return false;
  if (r.op.has("ballot")) return together(r, &ballot, {B32, PRED, B32}, 2);
  return together(r, r.op.has("all") ? &vote<0> : r.op.has("any") ? &vote<1> : r.op.has("uni") ? &vote<2> : NULL, {PRED, PRED, B32}, 2);
}
bool choose_redux(const Request &r) {
  const int kind = atomic_kind(r.op);
  r.i->option = (uint8_t)kind;
  Execute e = r.type == S32 ? &reduce<int32_t> : r.type == U32 || r.type == B32 ? &reduce<uint32_t> : NULL;
  return kind >= 0 && kind <= ATOMIC_XOR && together(r, e, {r.type, r.type, B32}, 2);
}
bool choose_match(const Request &r) { return r.op.has("any") && r.type == B32 && together(r, &match_any, {B32, B32, B32}, 2); }
bool choose_activemask(const Request &r) { return take(r, &active_mask, {B32}); }
bool choose_ldmatrix(const Request &r) {
  const int n = r.op.has("x1") ? 1 : r.op.has("x2") ? 2 : r.op.has("x4") ? 4 : 0;
  if (n == 0 || !r.op.has("m8n8") || r.type != B16) return false;
  r.i->elements = (uint8_t)n, r.i->space = SHARED;
  std::vector<Type> types((size_t)n, B32);
  types.push_back(NO_TYPE);
  return together(r, r.op.has("trans") ? &load_matrices<true> : &load_matrices<false>, types, -1);
}
bool choose_mma(const Request &r) {
  std::string whole;
  for (const std::string &p : r.op.part) whole += p + ".";
  if (whole != "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.") return false;
  return together(r, &multiply_matrices, {F32, F32, F32, F32, B32, B32, B32, B32, B32, B32, F32, F32, F32, F32}, -1);
}
bool choose_wgmma(const Request &r) {
  std::string whole;
  for (const std::string &p : r.op.part) whole += p + ".";
  if (whole == "wgmma.fence.sync.aligned.") return together(r, &nothing, {}, -1);
  if (whole == "wgmma.commit_group.sync.aligned.") return together(r, &close_products, {}, -1);
  if (whole == "wgmma.wait_group.sync.aligned.") return together(r, &wait_for_products, {U32}, -1);
  if (whole != "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16.") return false;
  std::vector<Type> types(64, F32);
  for (Type t : {B64, B64, PRED, B32, B32, B32, B32}) types.push_back(t);
  return together(r, &multiply_tiles, types, -1);
}
bool choose_bar(const Request &r) {
  if (r.op.has("warp")) return together(r, &nothing, {B32}, 0);
  r.i->flow = BARRIER;                                         // of all threads, whatever its number
  r.i->option = r.op.has("and") ? BARRIER_AND : r.op.has("or") ? BARRIER_OR : r.op.has("popc") ? BARRIER_COUNT : BARRIER_PLAIN;
  if (r.op.has("red")) return r.i->option && take(r, &nothing, {r.i->option == BARRIER_COUNT ? U32 : PRED, U32, PRED});
  return r.op.has("sync") && take(r, &nothing, {U32});
}
bool choose_bra(const Request &r) { r.i->flow = BRANCH; return take(r, &nothing, {}); }
bool choose_ret(const Request &r) { r.i->flow = RETURN; return take(r, &nothing, {}); }
bool choose_fence(const Request &r) { return take(r, &fence, {}); }
bool choose_trap(const Request &r) { return take(r, &trap, {}); }
bool choose_nothing(const Request &r) { return take(r, &nothing, std::vector<Type>(r.op.declared.size(), NO_TYPE)); }
}  // namespace

bool choose(const Opcode &op, Instruction *i, std::vector<Type> *types) {
  typedef bool (*Chooser)(const Request &);
  static const std::unordered_map<std::string, Chooser> choosers = {
    {"add", any_binary<Add>}, {"sub", any_binary<Subtract>}, {"mul", choose_mul}, {"mad", choose_mad}, {"fma", choose_fma}, {"div", any_binary<Divide>}, {"rem", whole_binary<Remainder>},
    {"min", choose_extreme<Minimum, MinimumOrNan>}, {"max", choose_extreme<Maximum, MaximumOrNan>}, {"neg", any_unary<Negate>}, {"abs", any_unary<Absolute>},
    {"and", choose_logic<And, BitsAnd>}, {"or", choose_logic<Or, BitsOr>}, {"xor", choose_logic<Xor, BitsXor>}, {"not", choose_not}, {"shl", choose_shift<true>}, {"shr", choose_shift<false>},
    {"shf", choose_shf}, {"bfi", choose_bfi}, {"bfe", choose_bfe}, {"popc", choose_count<true>}, {"clz", choose_count<false>}, {"brev", choose_brev}, {"prmt", choose_prmt}, {"lop3", choose_lop3},
    {"rcp", float_unary<Reciprocal>}, {"sqrt", float_unary<SquareRoot>}, {"rsqrt", float_unary<ReciprocalRoot>}, {"ex2", float_unary<Exponential2>}, {"lg2", float_unary<Logarithm2>},
    {"sin", float_unary<Sine>}, {"cos", float_unary<Cosine>}, {"tanh", float_unary<HyperbolicTangent>}, {"copysign", choose_copysign},
    {"mov", choose_mov}, {"selp", choose_selp}, {"setp", choose_setp}, {"cvt", choose_cvt}, {"cvta", choose_cvta},
    {"ld", choose_ld}, {"ldu", choose_ld}, {"st", choose_st}, {"atom", choose_atom}, {"red", choose_atom}, {"cp", choose_cp}, {"membar", choose_fence}, {"fence", choose_fence},
    {"shfl", choose_shfl}, {"vote", choose_vote}, {"redux", choose_redux}, {"match", choose_match}, {"activemask", choose_activemask}, {"ldmatrix", choose_ldmatrix}, {"mma", choose_mma}, {"wgmma", choose_wgmma},
    {"bar", choose_bar}, {"barrier", choose_bar}, {"bra", choose_bra}, {"ret", choose_ret}, {"exit", choose_ret}, {"trap", choose_trap},
    {"prefetch", choose_nothing}, {"nanosleep", choose_nothing}, {"griddepcontrol", choose_nothing}};   // launches run one after the other, so the last one has nothing to wait for
  auto found = choosers.find(op.part[0]);
  return found != choosers.end() && found->second({op, i, types, type_named(op.part.back())});
}
}  // namespace ptx
